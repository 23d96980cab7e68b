"""Berman et al. 2018, from the definition: the Lovász extension of the Jaccard loss as a set function."""


def jaccard_loss(mistakes, labels):
    """One minus the IoU of a mask that is right except at the pixels of the set `mistakes` (equation 6)."""
    truth = {i for i, label in enumerate(labels) if label}
    union = truth | mistakes
    return len(mistakes) / len(union) if union else 0.0


def lovasz_hinge(logits, labels):
    """Equation 8: the sum over the sorted errors of an error times the step of the set function at it."""
    errors = [1 - z if label else 1 + z for z, label in zip(logits, labels, strict=True)]
    mistakes: set[int] = set()
    loss, before = 0.0, 0.0
    for i in sorted(range(len(errors)), key=lambda i: -errors[i]):
        mistakes = mistakes | {i}
        after = jaccard_loss(mistakes, labels)
        loss += max(errors[i], 0.0) * (after - before)
        before = after
    return loss
