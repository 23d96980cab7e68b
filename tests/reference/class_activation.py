"""Class activations cell by cell, and their interpolation point by point."""

import math


def class_activations(region, row):
    """Return what each cell adds to the logit of the class, from 0 at the lowest to 1 at the highest.

    Args:
      region: rows of cells, each the channels of one.
      row: the weights of the class.
    """
    values = [[sum(x * w for x, w in zip(cell, row, strict=True)) for cell in cells] for cells in region]
    flat = [value for cells in values for value in cells]
    lowest, highest = min(flat), max(flat)
    return [[(value - lowest) / (highest - lowest) for value in cells] for cells in values]


def interpolate(cells, size):
    """Return the value of a grid of cells at the middles of the cells of a finer grid over the same square."""
    own = len(cells)

    def places(index):
        position = (index + 0.5) * own / size - 0.5
        low = math.floor(position)
        return [(min(max(low + i, 0), own - 1), abs(1 - i - (position - low))) for i in (0, 1)]

    return [
        [sum(cells[row][column] * a * b for row, a in places(y) for column, b in places(x)) for x in range(size)]
        for y in range(size)
    ]
