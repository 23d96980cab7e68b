import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from maskx_jax.ops import boxes as box_ops
from maskx_jax.ops.box_losses import cover_cells, pairwise_loss, projection_loss, similar_neighbours
from tests.reference import box_losses as reference

SIZE = 7
rng = np.random.default_rng(0)
LOGITS = jnp.asarray(rng.normal(0, 2, (5, SIZE, SIZE)), jnp.float32)
# Tight, wider, narrower on one side, far away, and an empty region.
BOXES = jnp.array([[10, 20, 40, 60]] * 5, jnp.float32)
REGIONS = jnp.array(
    [[10, 20, 40, 60], [7, 18, 44, 67.5], [15, 9, 60, 50.5], [100, 100, 120, 130], [20, 30, 20, 30]], jnp.float32
)


def test_covered_cells_equal_the_reference():
    rows, columns = jax.jit(functools.partial(cover_cells, size=SIZE))(BOXES, REGIONS)
    for i, ((x1, y1, x2, y2), (left, top, right, bottom)) in enumerate(
        zip(BOXES.tolist(), REGIONS.tolist(), strict=True)
    ):
        assert rows[i].tolist() == reference.covered(top, bottom, SIZE, y1, y2)
        assert columns[i].tolist() == reference.covered(left, right, SIZE, x1, x2)
    assert rows[0].all() and columns[0].all()
    assert not rows[3:].any() and not columns[3:].any()


def test_a_widened_box_keeps_its_middle_only_where_both_sides_move_alike():
    box = jnp.array([10.0, 20.0, 30.0, 60.0])
    np.testing.assert_allclose(box_ops.widen(box, jnp.ones(4)), box)
    np.testing.assert_allclose(box_ops.widen(box, jnp.array([1.2, 1.0, 1.0, 1.1])), [8, 20, 30, 62])


def test_the_projection_loss_equals_the_reference():
    rows, columns = cover_cells(BOXES, REGIONS, SIZE)
    found = jax.jit(projection_loss)(LOGITS, rows, columns)
    expected = [
        reference.projection_loss(z.tolist(), r.tolist(), c.tolist())
        for z, r, c in zip(LOGITS, rows, columns, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_projection_loss_is_zero_for_the_box_itself_and_for_what_fills_it():
    rows, columns = cover_cells(BOXES[1:2], REGIONS[1:2], SIZE)
    assert not rows.all() and not columns.all()
    box = rows[:, :, None] & columns[:, None, :]
    # A frame of one cell has the shadows of the box.
    inner = box & jnp.roll(box, (1, 1), (1, 2)) & jnp.roll(box, (-1, -1), (1, 2))
    assert inner.any()
    for mask in (box, box & ~inner):
        assert projection_loss(jnp.where(mask, 50.0, -50.0), rows, columns) == pytest.approx(0, abs=1e-5)
    everything, nothing = (projection_loss(jnp.full((1, SIZE, SIZE), z), rows, columns) for z in (50.0, -50.0))
    assert everything > 0.05 and nothing == pytest.approx(2)


@pytest.mark.parametrize("dilation", [1, 2])
def test_the_pairwise_loss_equals_the_reference(dilation):
    found = jax.jit(functools.partial(pairwise_loss, dilation=dilation))(LOGITS)
    assert found.shape == (5, 8, SIZE, SIZE)
    for region, logits in enumerate(LOGITS.tolist()):
        for number, row, column, *other in reference.neighbours(SIZE, dilation):
            expected = reference.pairwise_loss(logits[row][column], logits[other[0]][other[1]])
            assert found[region, number, row, column] == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_pairwise_loss_of_a_sure_mask_counts_its_border_and_is_finite():
    half = jnp.where(jnp.arange(SIZE) < 3, 200.0, -200.0)
    logits = jnp.stack([jnp.full((SIZE, SIZE), z) for z in (200.0, -200.0)] + [jnp.tile(half, (SIZE, 1))])
    inside = jnp.ones_like(logits, bool)
    pairs = similar_neighbours(jnp.zeros((*logits.shape, 3)), inside, 1, 0.3)
    loss, gradient = jax.value_and_grad(lambda z: jnp.where(pairs, pairwise_loss(z, 1), 0).sum())(logits)
    found = jnp.where(pairs, pairwise_loss(logits, 1), 0)
    assert (found[:2] == 0).all() and found[2].max() == pytest.approx(200 - math.log(2))
    # Columns 2 and 3 differ: 3 neighbours in each of 7 rows, two fewer at each end, from both sides.
    assert (found[2] > 0).sum() == 2 * (3 * SIZE - 2)
    assert jnp.isfinite(loss) and jnp.isfinite(gradient).all()


@pytest.mark.parametrize(("dilation", "similarity"), [(1, 0.3), (2, 0.8)])
def test_similar_neighbours_equal_the_reference(dilation, similarity):
    lab = rng.normal(0, 0.5, (2, SIZE, SIZE, 3)).astype(np.float32)
    inside_box = rng.random((2, SIZE, SIZE)) < 0.7
    function = functools.partial(similar_neighbours, dilation=dilation, similarity=similarity)
    found = np.asarray(jax.jit(function)(lab, inside_box))
    expected = np.zeros_like(found)
    for region in range(2):
        for number, row, column, *other in reference.neighbours(SIZE, dilation):
            here, there = (row, column), tuple(other)
            expected[(region, number, *here)] = inside_box[region][here] and reference.is_similar(
                lab[region][here], lab[region][there], similarity
            )
    assert 0.02 < expected.mean() < 0.9
    np.testing.assert_array_equal(found, expected)


def test_of_one_colour_all_neighbours_inside_the_grid_count_and_of_a_border_none_across():
    everything = jnp.ones((1, SIZE, SIZE), bool)
    grey = jnp.full((1, SIZE, SIZE, 3), 50.0)
    pairs = similar_neighbours(grey, everything, 2, 0.3)
    assert pairs.sum() == len(list(reference.neighbours(SIZE, 2)))
    # The distance at which the similarity is 0.3.
    step = -2 * math.log(0.3)
    for size, is_apart in ((0.99 * step, False), (1.01 * step, True)):
        two = grey.at[:, :, 4:, 1].add(size)
        across = similar_neighbours(two, everything, 1, 0.3)[:, :, :, 3:5]
        assert (across.sum() < similar_neighbours(grey, everything, 1, 0.3)[:, :, :, 3:5].sum()) == is_apart


def test_gradients():
    rows, columns = cover_cells(BOXES[:3], REGIONS[:3], SIZE)
    check = functools.partial(check_grads, order=1, modes=["rev"], rtol=0.02, eps=1e-3)
    check(jax.jit(lambda z: projection_loss(z, rows, columns)), (LOGITS[:3],))
    check(jax.jit(lambda z: pairwise_loss(z, 2).mean()), (LOGITS[:3],))
