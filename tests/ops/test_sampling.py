import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from maskx_jax.ops.per_image import per_image
from maskx_jax.ops.sampling import draw, top_k
from tests.ops.collectives import collectives


@functools.cache
def sampler(num_samples, fraction):
    """Return the jitted sampler of a batch of keys, for one image."""
    one_image = functools.partial(draw, num_samples=num_samples, foreground_fraction=fraction)
    return jax.jit(jax.vmap(one_image, in_axes=(0, None, None)))


def image(num_foreground, num_background, num_ignored, seed=0):
    """Return masks of candidates of three kinds in mixed order."""
    kinds = np.repeat([2, 1, 0], [num_foreground, num_background, num_ignored])
    np.random.default_rng(seed).shuffle(kinds)
    return jnp.asarray(kinds == 2), jnp.asarray(kinds == 1)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@pytest.mark.parametrize(
    ("kinds", "fraction", "expected_foreground", "expected_valid"),
    [
        ((30, 60, 10), 0.25, 4, 16),  # enough of both
        ((2, 60, 38), 0.25, 2, 16),  # background fills what foreground leaves
        ((0, 60, 40), 0.25, 0, 16),  # no foreground
        ((30, 5, 65), 0.25, 4, 9),  # too little background: foreground does not exceed its fraction
        ((30, 0, 70), 0.25, 4, 4),
        ((0, 0, 100), 0.25, 0, 0),  # nothing at all
        ((100, 0, 0), 1.0, 16, 16),
        ((30, 70, 0), 0.0, 0, 16),
    ],
)
def test_counts_are_exact_without_duplicates_and_foreground_first(kinds, fraction, expected_foreground, expected_valid):
    foreground, background = image(*kinds)
    drawn = sampler(16, fraction)(keys(20), foreground, background)
    for indices, is_foreground, valid in zip(*map(np.asarray, drawn), strict=True):
        assert valid.sum() == expected_valid and is_foreground.sum() == expected_foreground
        np.testing.assert_array_equal(is_foreground, np.arange(16) < expected_foreground)
        np.testing.assert_array_equal(valid, np.arange(16) < expected_valid)
        assert len(set(indices[valid])) == expected_valid
        assert np.asarray(foreground)[indices[is_foreground]].all()
        assert np.asarray(background)[indices[valid & ~is_foreground]].all()
        assert ((indices >= 0) & (indices < 100)).all()


def test_more_samples_than_candidates_leave_invalid_slots():
    foreground, background = image(3, 4, 2)
    drawn = sampler(20, 0.5)(keys(5), foreground, background)
    assert (drawn.valid.sum(axis=1) == 7).all() and (drawn.foreground.sum(axis=1) == 3).all()
    assert ((drawn.indices >= 0) & (drawn.indices < 9)).all()


def test_every_candidate_of_a_kind_is_drawn_equally_often():
    foreground, background = image(10, 20, 10)
    trials = 4000
    drawn = sampler(12, 0.25)(keys(trials), foreground, background)
    counts = np.bincount(np.asarray(drawn.indices)[np.asarray(drawn.valid)], minlength=40)
    for kind, probability in ((foreground, 3 / 10), (background, 9 / 20)):
        deviation = np.sqrt(trials * probability * (1 - probability))
        np.testing.assert_array_less(np.abs(counts[np.asarray(kind)] - trials * probability), 4.5 * deviation)
    assert counts[~np.asarray(foreground | background)].sum() == 0


def test_pairs_are_drawn_together_as_chance_has_it():
    foreground, background = image(6, 0, 0)
    trials = 4000
    drawn = np.asarray(sampler(2, 1.0)(keys(trials, seed=1), foreground, background).indices)
    counts = np.bincount(drawn[:, 0] * 6 + drawn[:, 1], minlength=36).reshape(6, 6)
    assert counts.diagonal().sum() == 0
    ordered_pairs = counts[~np.eye(6, dtype=bool)]
    deviation = np.sqrt(trials / 30 * (29 / 30))
    np.testing.assert_array_less(np.abs(ordered_pairs - trials / 30), 4.5 * deviation)


def test_the_key_decides():
    foreground, background = image(30, 60, 10)
    first, again, other = (sampler(16, 0.5)(keys(1, seed), foreground, background).indices for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_jit_equals_no_jit_and_vmap_equals_loop():
    foreground, background = image(30, 60, 10)
    together = sampler(16, 0.5)(keys(10), foreground, background)
    for i, key in enumerate(keys(10)[:3]):
        alone = draw(key, foreground, background, 16, 0.5)
        for name in alone._fields:
            np.testing.assert_array_equal(getattr(alone, name), getattr(together, name)[i])


def test_more_candidates_that_are_neither_change_nothing():
    foreground, background = image(30, 60, 10)
    plain = sampler(16, 0.5)(keys(10), foreground, background)
    padded = sampler(16, 0.5)(keys(10), jnp.pad(foreground, (0, 33)), jnp.pad(background, (0, 33)))
    for name in plain._fields:
        np.testing.assert_array_equal(getattr(plain, name), getattr(padded, name))


def test_top_k_takes_the_best_first_and_ties_in_order():
    scores = jnp.array([0.5, 0.9, 0.5, -jnp.inf, 0.9, 0.1])
    assert top_k(scores, 5).tolist() == [1, 4, 0, 2, 5]
    assert top_k(scores, 6).tolist() == [1, 4, 0, 2, 5, 3]


def test_top_k_of_a_batch_equals_laxs():
    scores = jnp.asarray(np.random.default_rng(0).integers(0, 20, (4, 3, 50)) / 20, jnp.float32)
    for function in (top_k, jax.jit(top_k, static_argnums=1)):
        np.testing.assert_array_equal(function(scores, 10), jax.lax.top_k(scores, 10)[1])


def test_top_k_stops_at_the_number_of_scores():
    assert top_k(jnp.arange(3.0), 10).tolist() == [2, 1, 0]


def test_a_batch_split_over_devices_sends_nothing():
    def one_image(key, foreground, background):
        return draw(key, foreground, background, 16, 0.25)

    masks = jnp.ones((8, 50), bool)
    assert not collectives(per_image(one_image), keys(8), masks, masks)
    assert not collectives(per_image(lambda scores: top_k(scores, 7)), jnp.ones((16, 50)))
