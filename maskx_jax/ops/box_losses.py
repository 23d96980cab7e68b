"""What a box says of the mask inside it: BoxInst's losses (Tian et al., CVPR 2021) over the cells of regions.

BoxInst computes them on the whole map of an image; here each region is a grid of its own, whose cells lie closer or
farther apart as the region is small or large.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# To what is divided by in the Dice loss, so that two empty profiles give 1 and no NaN.
_EPSILON = 1e-5


def cover_cells(
    boxes: Float[Array, "r 4"], regions: Float[Array, "r 4"], size: int
) -> tuple[Bool[Array, "r size"], Bool[Array, "r size"]]:
    """Return which rows and which columns of the grid over each region lie in its box, at least by half.

    Args:
      boxes: of the objects.
      regions: one for each box.
      size: cells along each side.
    """
    edges = jnp.arange(size + 1) / size

    def along(axis: int) -> Bool[Array, "r size"]:
        start, end = regions[:, axis, None], regions[:, axis + 2, None]
        positions = start + edges * (end - start)
        low, high = positions[:, :-1], positions[:, 1:]
        common = jnp.minimum(high, boxes[:, axis + 2, None]) - jnp.maximum(low, boxes[:, axis, None])
        # In an empty region no cell has a length that could be covered.
        return (common > 0) & (common >= 0.5 * (high - low))

    return along(1), along(0)


def projection_loss(
    logits: Float[Array, "r m m"], rows: Bool[Array, "r m"], columns: Bool[Array, "r m"]
) -> Float[Array, "r"]:
    """Return how far the mask's shadows on both axes are from those of the box, 0 to 2: BoxInst's projection loss.

    A shadow is the maximum of the probabilities over a row or a column; the loss of each axis is Dice's.

    Args:
      logits: of the cells of regions.
      rows: which rows are in the box.
      columns: which columns are.
    """
    probabilities = jax.nn.sigmoid(logits)
    return _dice(probabilities.max(axis=2), rows) + _dice(probabilities.max(axis=1), columns)


def pairwise_loss(logits: Float[Array, "r m m"], dilation: int) -> Float[Array, "r 8 m m"]:
    """Return -log of the probability that a cell and each of its eight neighbours are of the same side.

    Both are object or both are background: p_i p_j + (1 - p_i) (1 - p_j), computed in logarithms. It is BoxInst's
    pairwise affinity loss, of which only the pairs of a similar colour count.

    Args:
      logits: of the cells of regions.
      dilation: how many cells away the neighbours are, along each axis. Those outside the grid have logit 0; they must
        not count: see `similar_neighbours`.
    """
    object_, background = jax.nn.log_sigmoid(logits)[:, None], jax.nn.log_sigmoid(-logits)[:, None]
    others = _neighbours(logits, dilation)
    both_object = object_ + jax.nn.log_sigmoid(others)
    both_background = background + jax.nn.log_sigmoid(-others)
    return -jnp.logaddexp(both_object, both_background)


def similar_neighbours(
    lab: Float[Array, "r m m 3"],
    inside_box: Bool[Array, "r m m"],
    dilation: int,
    similarity: float,
) -> Bool[Array, "r 8 m m"]:
    """Return where the pairwise loss counts: a cell in the box, and a neighbour in the grid of a similar colour.

    The similarity of two colours is exp(-d / 2), d their distance, as in BoxInst.

    Args:
      lab: colours of the cells of regions, in CIE Lab.
      inside_box: which cells are in the box.
      dilation: as of `pairwise_loss`.
      similarity: the least that counts, above 0.
    """
    squares = sum(jnp.square(lab[..., i][:, None] - _neighbours(lab[..., i], dilation)) for i in range(3))
    is_similar = squares <= (-2 * math.log(similarity)) ** 2
    return is_similar & inside_box[:, None] & _neighbours(jnp.ones_like(inside_box), dilation)


def _dice(probabilities: Float[Array, "r m"], target: Bool[Array, "r m"]) -> Float[Array, "r"]:
    common = (probabilities * target).sum(axis=1)
    return 1 - 2 * common / (jnp.square(probabilities).sum(axis=1) + target.sum(axis=1) + _EPSILON)


def _neighbours(cells: Array, dilation: int) -> Array:
    """Return the eight neighbours of each cell, row by row; zeros (False) where they lie outside the grid."""
    size = cells.shape[-1]
    padded = jnp.pad(cells, ((0, 0), (dilation, dilation), (dilation, dilation)))
    starts = (0, dilation, 2 * dilation)
    return jnp.stack(
        [
            padded[:, row : row + size, column : column + size]
            for row in starts
            for column in starts
            if (row, column) != (dilation, dilation)
        ],
        axis=1,
    )
