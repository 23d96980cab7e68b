"""The order of the examples, as a pure function of (seed, step).

No state is kept, so every host computes the same order, and a resumed run continues it from any step at no cost.
"""

import functools
from collections.abc import Iterator, Sequence

import numpy as np

LANDSCAPE, PORTRAIT = 0, 1
ORIENTATION_NAMES = ("landscape", "portrait")

_IMAGES_AT_A_TIME = 2**12


class Schedule:
    """An endless order of global batches, each of one orientation.

    Step `t` is landscape where `(t + 1) * L // N > t * L // N`, with `L` landscape examples of `N`: an even mix, known
    without a history. Each orientation is an endless stream of epochs, each of them a permutation of its examples, cut
    into batches without regard to where an epoch ends.

    Args:
      sizes: int `N 2`, height and width of every image.
      batch_size: of the global batch.
      seed: of the order.
      repeat_factors: float `N`, how often each image appears in an epoch; see `repeat_factors`. Fractions are rounded
        up or down at random, once.
      single_canvas: treat every image as landscape, for a canvas that takes both.

    Raises:
      ValueError: no example, a batch size below 1, or repeat factors of another length or below 0.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        seed: int,
        repeat_factors: np.ndarray | None = None,
        single_canvas: bool = False,
    ) -> None:
        if len(sizes) == 0:
            raise ValueError("the dataset has no image to schedule")
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        examples = np.arange(len(sizes))
        if repeat_factors is not None:
            factors = np.asarray(repeat_factors, np.float64)
            if factors.shape != (len(sizes),) or not (factors >= 0).all():
                raise ValueError(
                    f"repeat_factors has shape {factors.shape} and minimum {factors.min(initial=0)}; "
                    f"expected {len(sizes)} values of 0 or more"
                )
            whole = np.floor(factors).astype(int)
            rounded = whole + (np.random.default_rng((seed, 2)).random(len(factors)) < factors - whole)
            examples = np.repeat(examples, rounded)
            if len(examples) == 0:
                raise ValueError("repeat_factors leave no example in an epoch")
        orientation = orientations(sizes, single_canvas)[examples]
        self.batch_size = batch_size
        self.seed = seed
        self.examples = tuple(examples[orientation == which] for which in (LANDSCAPE, PORTRAIT))

    @property
    def epoch_size(self) -> int:
        """Examples of an epoch, repeats included."""
        return sum(map(len, self.examples))

    def epoch_of(self, step: int) -> float:
        """Return how many epochs are done before `step`."""
        return step * self.batch_size / self.epoch_size

    def step(self, step: int) -> tuple[int, np.ndarray]:
        """Return the orientation and the example indices `batch_size` of a global batch.

        Raises:
          ValueError: the step is negative.
        """
        if step < 0:
            raise ValueError(f"step is {step}; expected 0 or more")
        num_landscape, total = len(self.examples[LANDSCAPE]), self.epoch_size
        earlier = step * num_landscape // total
        orientation = LANDSCAPE if (step + 1) * num_landscape // total > earlier else PORTRAIT
        if orientation == PORTRAIT:
            earlier = step - earlier
        epoch_size = len(self.examples[orientation])
        positions = earlier * self.batch_size + np.arange(self.batch_size)
        epochs, within = np.divmod(positions, epoch_size)
        indices = np.empty(self.batch_size, int)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            indices[chosen] = _permutation(self, orientation, epoch)[within[chosen]]
        return orientation, indices

    def candidates(self, orientation: int, index: int) -> Iterator[int]:
        """Yield an example and then, each once, the others of its orientation that can stand in for it.

        They come in the order of their indices, the first one after the last: which of them is the first good one
        depends on nothing but which are good.
        """
        yield index
        others = np.unique(self.examples[orientation])
        others = np.roll(others, -np.searchsorted(others, index))
        yield from others[others != index].tolist()


# An epoch's permutation of COCO takes 2 ms and 1 MB; a batch needs two at most, where an epoch ends.
@functools.lru_cache(maxsize=8)
def _permutation(schedule: Schedule, orientation: int, epoch: int) -> np.ndarray:
    rng = np.random.default_rng((schedule.seed, 0, orientation, epoch))
    return rng.permutation(schedule.examples[orientation])


def orientations(sizes: np.ndarray, single_canvas: bool = False) -> np.ndarray:
    """Return for every image, int `N`, whether it is `LANDSCAPE` (width >= height) or `PORTRAIT`."""
    portrait = sizes[:, 1] < sizes[:, 0]
    return np.where(portrait & (not single_canvas), PORTRAIT, LANDSCAPE)


def evaluation_order(
    sizes: np.ndarray, batch_size: int, single_canvas: bool = False
) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Return the batches of one pass in order: (orientation, indices `batch_size`, valid `batch_size`).

    Every image is valid exactly once; the last batch of an orientation is filled up with its first image.

    Raises:
      ValueError: a batch size below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
    which = orientations(sizes, single_canvas)
    batches = []
    for orientation in (LANDSCAPE, PORTRAIT):
        examples = np.flatnonzero(which == orientation)
        for start in range(0, len(examples), batch_size):
            chosen = examples[start : start + batch_size]
            indices = np.full(batch_size, examples[0])
            indices[: len(chosen)] = chosen
            batches.append((orientation, indices, np.arange(batch_size) < len(chosen)))
    return batches


def repeat_factors(
    image_labels: Sequence[np.ndarray], num_categories: int, threshold: float = 0.001, keep_empty: bool = True
) -> np.ndarray:
    """Return float `N`: how often each image should be seen in an epoch (LVIS; Gupta, Dollar and Girshick, 2019).

    A category on the share `f` of the images has `r = max(1, sqrt(threshold / f))`; an image takes the largest `r` of
    its categories. An image without objects (crowd regions are none) takes 1, or 0 where `keep_empty` is false.
    """
    counts = np.fromiter(map(len, image_labels), np.int64, len(image_labels))
    labels = np.concatenate([np.zeros(0, np.int32), *image_labels])
    share = _num_images_with(labels, counts, num_categories + 1) / max(1, len(counts))
    of_category = np.sqrt(np.maximum(1.0, threshold / np.maximum(share, 1e-12)))
    factors = np.full(len(counts), float(keep_empty))
    starts = np.cumsum(counts) - counts
    factors[counts > 0] = np.maximum.reduceat(of_category[labels], starts[counts > 0])
    return factors


def _num_images_with(labels: np.ndarray, counts: np.ndarray, num_labels: int) -> np.ndarray:
    """Return for each label, int `num_labels`, the number of images that have it.

    Args:
      labels: of all images, one image after the other.
      counts: int `N`, labels of each image.
    """
    found = np.zeros(num_labels, np.int64)
    ends = np.concatenate([[0], np.cumsum(counts)])
    # Sorting parts that fit a processor's cache, of 32 bits, takes a fifth of the time of sorting all at once.
    kind = np.int32 if _IMAGES_AT_A_TIME * num_labels < 2**31 else np.int64
    for first in range(0, len(counts), _IMAGES_AT_A_TIME):
        part = counts[first : first + _IMAGES_AT_A_TIME]
        image = np.repeat(np.arange(len(part), dtype=kind), part)
        pairs = image * num_labels + labels[ends[first] : ends[first + len(part)]]
        pairs.sort()
        # A pair of image and label counts once.
        found += np.bincount(pairs[np.diff(pairs, prepend=-1) > 0] % num_labels, minlength=num_labels)
    return found
