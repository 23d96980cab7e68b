"""Run a detector over a dataset, score what it found, and draw it: what train.py and eval.py have in common."""

import pathlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskx_jax.data import pipeline, splits
from maskx_jax.data.categories import Categories
from maskx_jax.data.records import Source
from maskx_jax.data.transforms import Transform, decode
from maskx_jax.evaluation import coco_metrics, coco_results
from maskx_jax.evaluation.drawing import draw_comparison
from maskx_jax.structures import Batch, Detections, PyTree
from maskx_jax.training.sharding import global_batch
from maskx_jax.training.steps import DetectStep


def detect(
    step: DetectStep,
    variables: PyTree,
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
    before_batch: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Detect on every image of a source; return COCO results entries in the pixels of the original images.

    `before_batch` is called with the number of each batch before it is worked on, on all processes; it may raise to
    break off.
    """
    batches = pipeline.evaluation_batches(
        source,
        Transform(**config.data.transform),
        config.evaluation.batch_size,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        loader=config.data.loader,
        num_workers=config.data.num_workers,
    )
    size_of_image = {image["id"]: (image["height"], image["width"]) for image in source.coco_ground_truth()["images"]}
    id_of_label = source.categories.id_of_label()
    results = []
    for number, (batch, detections) in enumerate(_one_ahead(step, variables, batches, mesh)):
        if before_batch is not None:
            before_batch(number)
        for i in np.flatnonzero(batch.valid):
            found = jax.tree.map(lambda array, i=i: array[i], detections)
            results += coco_results.detections_to_results(
                found.boxes,
                found.scores,
                found.labels,
                found.valid,
                found.masks,
                image_id=int(batch.image_ids[i]),
                image_size=size_of_image[int(batch.image_ids[i])],
                scale=float(batch.scales[i]),
                id_of_label=id_of_label,
                mask_threshold=config.evaluation.mask_threshold,
            )
    return results


def _one_ahead(
    step: DetectStep, variables: PyTree, batches: Iterator[Batch], mesh: Mesh
) -> Iterator[tuple[Batch, Detections]]:
    """Yield each batch with its detections on the host, while the device works on the next one."""
    waiting: list[tuple[Batch, Detections]] = []
    for batch in batches:
        on_device = global_batch(mesh, (batch.images, batch.image_sizes))
        waiting.append((batch, step(variables, *on_device)))
        if len(waiting) > 1:
            yield _gather(*waiting.pop(0))
    for pair in waiting:
        yield _gather(*pair)


def _gather(batch: Batch, detections: Detections) -> tuple[Batch, Detections]:
    """Bring the detections of all processes to this one, with what is known of their images."""
    known = (batch.image_ids, batch.scales, batch.valid)
    if jax.process_count() > 1:
        detections = multihost_utils.process_allgather(detections, tiled=True)
        known = multihost_utils.process_allgather(known, tiled=True)
    image_ids, scales, valid = known
    host = jax.tree.map(np.asarray, detections)
    return batch.replace(image_ids=image_ids, scales=scales, valid=valid), host  # type: ignore[attr-defined]


def score(results: list[dict[str, Any]], source: Source, config: ConfigDict) -> dict[str, Any]:
    """Return the metrics of results on a source, for all classes and for those with (A) and without masks (B)."""
    kinds = ("bbox",) if config.model.mask_predictor == "none" else ("bbox", "segm")
    if config.evaluation.boundary and "segm" in kinds:
        kinds = (*kinds, "boundary")
    groups = _scored_groups(source.categories, config)
    return coco_metrics.evaluate(source.coco_ground_truth(), results, kinds, groups, config.evaluation.backend)


def _scored_groups(categories: Categories, config: ConfigDict) -> dict[str, list[int]]:
    return mask_groups(categories, splits.mask_labels(config.evaluation.split or config.data.mask_split, categories))


def mask_groups(categories: Categories, allowed: np.ndarray) -> dict[str, list[int]]:
    """Return the category ids of A (masks allowed in training) and B, where both exist."""
    ids = np.array(categories.ids)
    groups = {"A": ids[allowed[1:]].tolist(), "B": ids[~allowed[1:]].tolist()}
    return groups if groups["A"] and groups["B"] else {}


def check_categories(found: Categories, trained: list[dict[str, Any]]) -> None:
    """Check that a dataset has the classes that a model was trained on.

    Raises:
      ValueError: names or their order differ.
    """
    names = tuple(category["name"] for category in trained)
    if found.names != names:
        only = sorted(set(found.names) ^ set(names))
        raise ValueError(
            f"the dataset has {len(found)} classes, the checkpoint {len(names)}; found in only one of them or in "
            f"another order: {only[:10]}"
        )


def flatten(metrics: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of `coco_metrics.evaluate` under names such as "segm/A/AP", without those per class."""
    flat = {
        f"{kind}/{group}/{name}": value
        for kind in ("bbox", "segm", "boundary")
        for group, values in metrics.get(kind, {}).items()
        for name, value in values.items()
    }
    means = metrics.get("harmonic_mean", {})
    return flat | {f"{kind}/harmonic_mean": value for kind, value in means.items()}


def draw(results: Mapping[str, list[dict[str, Any]]], source: Source, config: ConfigDict, folder: pathlib.Path) -> None:
    """Write pictures of the first images: ground truth, and what each model predicts; classes are marked A or B.

    Args:
      results: COCO results entries by the title of their panel.
      source: of the images.
      config: of a run on them.
      folder: to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ground_truth = source.coco_ground_truth()
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    groups = _scored_groups(source.categories, config)
    group_of_id = {category_id: group for group, members in groups.items() for category_id in members}
    for index in range(min(config.evaluation.num_pictures, len(source))):
        record = source[index]
        annotations = [a for a in ground_truth["annotations"] if a["image_id"] == record.image_id]
        own = {
            title: [entry for entry in entries if entry["image_id"] == record.image_id]
            for title, entries in results.items()
        }
        threshold = config.evaluation.picture_score_threshold
        picture = draw_comparison(decode(record), annotations, own, names, group_of_id, threshold)
        cv2.imwrite(str(folder / f"{record.image_id}.png"), picture[..., ::-1])
