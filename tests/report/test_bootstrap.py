"""Intervals over images: AP of weighted images is that of repeated ones, and intervals hold what they should."""

import hotcoco
import numpy as np
import pytest

from maskx_jax.report import bootstrap
from maskx_jax.report.analysis import analyse
from maskx_jax.report.inputs import Dataset, Model
from maskx_jax.report.matches import Prepared
from tests.report.made import results, sample


def test_an_image_of_weight_two_counts_as_two_images(shapes_truth):
    found = results(shapes_truth)
    chosen = [image["id"] for image in shapes_truth["images"][:12]]
    weights = np.random.default_rng(1).integers(0, 4, 12)

    def repeated(entries, key):
        copies = [
            {**entry, key: 1000 * copy + entry[key], **({"id": number} if key == "image_id" and "id" in entry else {})}
            for copy in range(3)
            for number, entry in enumerate(entries, start=1 + copy * len(entries))
            if entry[key] in chosen and copy < weights[chosen.index(entry[key])]
        ]
        return copies

    few = {
        "images": [image for image in shapes_truth["images"] if image["id"] in chosen],
        "annotations": [a for a in shapes_truth["annotations"] if a["image_id"] in chosen],
        "categories": shapes_truth["categories"],
    }
    many = few | {"images": repeated(few["images"], "id"), "annotations": repeated(few["annotations"], "image_id")}

    def per_class(ground_truth, entries, weights):
        prepared = Prepared(ground_truth, ("segm",), 100)
        matches = analyse(Dataset(ground_truth, {}, ("segm",)), Model("", entries), prepared, weights).matches["segm"]
        return bootstrap.average_precisions(matches, weights)

    once = per_class(few, [entry for entry in found if entry["image_id"] in chosen], weights[None])
    as_copies = per_class(many, repeated(found, "image_id"), np.ones((1, weights.sum()), int))
    np.testing.assert_allclose(once, as_copies, atol=1e-12)


def test_intervals_hold_the_mean_over_samples():
    rng = np.random.default_rng(0)
    labels, size = range(40), 100
    samples = [sample(rng, size, len(labels)) for _ in range(60)]
    once, weights = np.ones((1, size), int), bootstrap.draws(size, 100)

    def mean_ap(matches, weights):
        return bootstrap.group_means(bootstrap.average_precisions(matches, weights).mean(axis=0), labels)

    measured = [mean_ap(matches, once).item() for matches in samples]
    drawn = [mean_ap(matches, weights) for matches in samples]
    expected = np.mean(measured)
    moved = [bootstrap.interval(values, value) for values, value in zip(drawn, measured, strict=True)]
    plain = [np.quantile(values, [0.025, 0.975]) for values in drawn]
    held, held_if_not_moved = (np.mean([low <= expected <= high for low, high in ends]) for ends in (moved, plain))
    assert held >= 0.85 and held > held_if_not_moved + 0.05


def test_hotcoco_counts_an_image_that_is_drawn_twice_once(shapes_truth):
    """Why the intervals are not hotcoco's: without repetitions the draws spread too little."""
    one, other = results(shapes_truth, seed=1), results(shapes_truth, seed=2, found=0.6)
    dataset, prepared = Dataset(shapes_truth, {}, ("segm",)), Prepared(shapes_truth, ("segm",), 100)
    weights = bootstrap.draws(len(shapes_truth["images"]), 400)

    def spread(weights):
        analysed = [
            analyse(dataset, Model("", found), prepared, weights).draws["segm"][:, 1:] for found in (one, other)
        ]
        aps = [bootstrap.group_means(draws.mean(axis=0), range(6)) for draws in analysed]
        return (aps[1] - aps[0]).std()

    evaluators = [prepared.evaluator(prepared.datasets(found, "segm"), "segm") for found in (one, other)]
    theirs = hotcoco.compare(*evaluators, n_bootstrap=400)["ci"]["AP"]["std_err"]
    assert theirs == pytest.approx(spread(np.minimum(weights, 1)), rel=0.12)
    assert theirs < 0.85 * spread(weights)


def test_a_class_without_objects_has_no_interval():
    assert bootstrap.interval(np.full(10, np.nan), np.nan) is None
    assert bootstrap.group_means(np.array([[np.nan, 0.5], [np.nan, np.nan]]), [0, 1]).tolist()[0] == 0.5
    assert bootstrap.draws(0, 3).shape == (3, 0)
    assert bootstrap.draws(5, 3).sum(axis=1).tolist() == [5, 5, 5]
