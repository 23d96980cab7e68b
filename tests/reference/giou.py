"""Rezatofighi et al. 2019, algorithm 1."""


def giou(box, other):
    left, top = max(box[0], other[0]), max(box[1], other[1])
    right, bottom = min(box[2], other[2]), min(box[3], other[3])
    common = max(right - left, 0) * max(bottom - top, 0)
    area = sum((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    hull = (max(box[2], other[2]) - min(box[0], other[0])) * (max(box[3], other[3]) - min(box[1], other[1]))
    union = area - common
    return common / union - (hull - union) / hull
