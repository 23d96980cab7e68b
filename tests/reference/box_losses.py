"""BoxInst's losses from their definitions, cell by cell, in float64."""

import math

OFFSETS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]


def covered(low, high, size, box_low, box_high):
    """Return for each of `size` parts of an interval whether at least half of it lies in another one."""
    parts = []
    for i in range(size):
        start, end = low + i / size * (high - low), low + (i + 1) / size * (high - low)
        common = min(end, box_high) - max(start, box_low)
        parts.append(common > 0 and common >= 0.5 * (end - start))
    return parts


def dice(values, target):
    common = sum(value for value, is_in in zip(values, target, strict=True) if is_in)
    return 1 - 2 * common / (sum(value**2 for value in values) + sum(target) + 1e-5)


def projection_loss(logits, rows, columns):
    probabilities = [[1 / (1 + math.exp(-z)) for z in row] for row in logits]
    shadow_on_rows = [max(row) for row in probabilities]
    shadow_on_columns = [max(column) for column in zip(*probabilities, strict=True)]
    return dice(shadow_on_rows, rows) + dice(shadow_on_columns, columns)


def neighbours(size, dilation):
    """Yield (number of the neighbour, row, column, its row, its column) for all neighbours inside the grid."""
    for number, (down, right) in enumerate(OFFSETS):
        for row in range(size):
            for column in range(size):
                other_row, other_column = row + down * dilation, column + right * dilation
                if 0 <= other_row < size and 0 <= other_column < size:
                    yield number, row, column, other_row, other_column


def pairwise_loss(one, other):
    """Return -log of the probability that two cells with these logits are both object, or both background."""
    p, q = 1 / (1 + math.exp(-one)), 1 / (1 + math.exp(-other))
    return -math.log(p * q + (1 - p) * (1 - q))


def is_similar(lab, other, similarity):
    return math.exp(-math.dist(lab, other) / 2) >= similarity
