"""Maps of keypoints and their boxes, made by NumPy alone, see `op_inputs.py`."""

import numpy as np

NUM_KEYPOINTS = 17
SIDE = 56


def boxes() -> np.ndarray:
    """Return boxes `d 4` of all sizes: smaller than a pixel, than the map, as large, larger, thin, over the border."""
    corners_and_sides = [
        *(
            (3.25, 7.5, 0.25, 0.5),
            (10, 20, 1, 300.125),
            (40.5, 3.125, 30, 41.5),
            (0, 0, 56, 56),
            (8.25, 9.5, 55.875, 57),
        ),
        *((-20.5, 30.25, 112, 90.625), (100.125, -4, 200.5, 310), (5, 6, 640.375, 12.5)),
    ]
    given = np.array(corners_and_sides, np.float32)
    return np.concatenate([given[:, :2], given[:, :2] + given[:, 2:]], axis=1)


def maps() -> np.ndarray:
    """Return logits `d k m m`: hills of eight cells with noise on them; those of the first two keypoints are noise."""
    random = np.random.RandomState(18)
    count = len(boxes())
    hills = random.normal(0, 4, (count, NUM_KEYPOINTS, SIDE // 8, SIDE // 8))
    logits = hills.repeat(8, axis=2).repeat(8, axis=3) + random.normal(0, 1, (count, NUM_KEYPOINTS, SIDE, SIDE))
    logits[:, :2] = random.normal(0, 3, (count, 2, SIDE, SIDE))
    return logits.astype(np.float32)
