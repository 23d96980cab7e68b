"""Fast R-CNN, equation 3, with the point of change at beta."""


def smooth_l1(x, beta):
    return 0.5 * x * x / beta if abs(x) < beta else abs(x) - 0.5 * beta


def masked_mean(values, mask):
    chosen = [v for v, m in zip(values, mask, strict=True) if m]
    return sum(chosen) / len(chosen) if chosen else 0.0
