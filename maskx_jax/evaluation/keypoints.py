"""From the maps of a box to keypoints: where each map peaks once it covers the pixels of the box, and how high.

A map holds logits over `m m` cells of its box. Detectron, detectron2 and torchvision resize it by bicubic
interpolation (a = -0.75) to a whole number of pixels and take the pixel of the largest value. Only two things differ:
of which image the pixels are (`Grid`), and what the score of a keypoint is (`Score`).
"""

from typing import Literal, get_args

import numpy as np

# Along a side: finer than a map of 56 cells can say where something is.
_MOST_CELLS = 2048

Grid = Literal["image", "canvas"]
Score = Literal["probability", "logit"]


def decode(maps: np.ndarray, boxes: np.ndarray, score: Score = "probability") -> np.ndarray:
    """Return where each keypoint of some boxes lies, and its score: float32 `d k 3` of (x, y, score).

    A box of `w` by `h` pixels, each 1 or more, is covered by `ceil(w)` by `ceil(h)` cells, so that a point is known to
    a pixel; a longer side than 2,048 by 2,048. Maps are resized one by one: the memory is that of one, 17 MB at most.

    Args:
      maps: `d k m m`, logits over the cells of each box.
      boxes: `d 4`, xyxy, in the pixels whose grid decides. Points are in the same pixels, continuous.
      score: "logit": the interpolated logit at the peak (torchvision, Detectron). "probability": its exponential over
        the sum of those of the map's cells (detectron2); at most 1, which interpolated peaks would exceed.

    Raises:
      ValueError: shapes do not fit, a value is not finite, or the kind of score is unknown.
    """
    maps, boxes = np.asarray(maps, np.float32), np.asarray(boxes)
    if maps.ndim != 4 or maps.shape[2] != maps.shape[3] or boxes.shape != (len(maps), 4):
        raise ValueError(f"got maps {maps.shape} and boxes {boxes.shape}; expected (d, k, m, m) and (d, 4)")
    if not (np.isfinite(maps).all() and np.isfinite(boxes).all()):
        raise ValueError("a map or a box is not finite")
    if score not in get_args(Score):
        raise ValueError(f"unknown score of keypoints {score!r}; expected 'probability' or 'logit'")
    corners = boxes[:, :2]
    sides = np.maximum(boxes[:, 2:] - corners, boxes.dtype.type(1))
    numbers = np.minimum(np.ceil(sides), _MOST_CELLS).astype(int)
    peaks = np.zeros((*maps.shape[:2], 3))
    for index, size in enumerate(numbers.tolist()):
        for keypoint, cells in enumerate(maps[index]):
            peaks[index, keypoint] = _peak(cells, (size[0], size[1]))
    points = corners[:, None] + (peaks[..., :2] + 0.5) * (sides / numbers)[:, None]
    scores = peaks[..., 2]
    if score == "probability":
        largest = maps.max(axis=(2, 3))
        sums = np.exp(maps - largest[..., None, None]).sum(axis=(2, 3))
        scores = np.minimum(np.exp(scores - largest) / sums, 1)
    return np.concatenate([points, scores[..., None]], axis=-1).astype(np.float32)


def _peak(cells: np.ndarray, size: tuple[int, int]) -> tuple[int, int, float]:
    """Return the column and the row of the largest value of a map resized to (width, height), and the value."""
    # Scoring stored results, which reads and writes entries too, does without it.
    import cv2

    resized = cv2.resize(cells, size, interpolation=cv2.INTER_CUBIC)
    row, column = divmod(int(resized.argmax()), size[0])
    return column, row, float(resized[row, column])
