"""Run a detector over a dataset, score what it found, and draw it: what train.py and eval.py have in common."""

import collections
import pathlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import cv2
import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskx_jax import files
from maskx_jax.coco import mask_classes
from maskx_jax.coco.categories import Categories
from maskx_jax.data import pipeline, roles
from maskx_jax.data.records import Source
from maskx_jax.data.transforms import Transform, decode
from maskx_jax.distributed.mesh import global_batch, local_part
from maskx_jax.distributed.processes import gather_objects
from maskx_jax.evaluation import checks as coco_checks
from maskx_jax.evaluation import matching, paste_masks, scores
from maskx_jax.evaluation import metrics as coco_metrics
from maskx_jax.evaluation import results as coco_results
from maskx_jax.evaluation.drawing import draw_comparison
from maskx_jax.models.build import produces
from maskx_jax.structures import Batch, Detections, PyTree

DetectStep = Callable[[PyTree, jax.Array, jax.Array], Detections]


def detect(
    step: DetectStep,
    variables: PyTree,
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
    before_batch: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Detect on every image of a source; return COCO results entries in the pixels of the original images.

    Each process makes the entries of its own images. All of them return the same list, in the same order on any number
    of processes. `before_batch` is called with the number of each batch on all of them; it may raise to break off.

    Raises:
      RuntimeError: a record is broken, or an image was not detected on exactly once.
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
    # For each batch its images, as pairs of id and entries.
    own = []
    for number, (batch, detections) in enumerate(_one_ahead(step, variables, batches, mesh)):
        if before_batch is not None:
            before_batch(number)
        images = []
        for i in np.flatnonzero(batch.valid):
            found = jax.tree.map(lambda array, i=i: array[i], detections)
            image_id = int(batch.image_ids[i])
            results = coco_results.detections_to_results(
                found.boxes,
                found.scores,
                found.labels,
                found.valid,
                found.masks,
                image_id=image_id,
                image_size=size_of_image[image_id],
                scale=float(batch.scales[i]),
                id_of_label=id_of_label,
                mask_threshold=config.evaluation.mask_threshold,
                grid=config.evaluation.paste_grid,
            )
            images.append((image_id, results))
        own.append(images)
    # A batch lies on the processes in their order.
    images = [image for parts in zip(*gather_objects(own), strict=True) for part in parts for image in part]
    _check_each_once([image_id for image_id, _ in images], size_of_image)
    return [entry for _, results in images for entry in results]


def _one_ahead(
    step: DetectStep, variables: PyTree, batches: Iterator[Batch], mesh: Mesh
) -> Iterator[tuple[Batch, Detections]]:
    """Yield each batch of this process with its detections on the host, while the device works on the next one."""
    waiting: list[tuple[Batch, Detections]] = []
    for batch in batches:
        on_device = global_batch(mesh, (batch.images, batch.image_sizes))
        waiting.append((batch, step(variables, *on_device)))
        if len(waiting) > 1:
            batch, detections = waiting.pop(0)
            yield batch, local_part(detections)
    for batch, detections in waiting:
        yield batch, local_part(detections)


def _check_each_once(found: Sequence[int], expected: Collection[int]) -> None:
    counts = collections.Counter(found)
    missing = sorted(set(expected) - set(counts))
    doubled = sorted(image_id for image_id, count in counts.items() if count > 1)
    if missing or doubled:
        raise RuntimeError(
            f"detected on {len(found)} images, expected each of the source's {len(expected)} once: "
            f"{len(missing)} missing, image ids {missing[:10]}; {len(doubled)} doubled, {doubled[:10]}"
        )


def score(
    results: list[dict[str, Any]],
    source: Source,
    config: ConfigDict,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> dict[str, Any]:
    """Return the metrics of results on a source, for all classes and for groups of them.

    Args:
      results: COCO results entries.
      source: of the ground truth.
      config: of the run.
      groups: category ids by the name of the group; by default those with (A) and without masks (B).
    """
    return coco_metrics.evaluate(
        source.coco_ground_truth(),
        results,
        _kinds(config),
        scored_groups(source.categories, config) if groups is None else groups,
        config.evaluation.backend,
        config.model.max_detections,
    )


def score_file(
    results_path: str | pathlib.Path,
    annotations_path: str | pathlib.Path,
    with_masks: str = "all",
    *,
    boundary: bool = False,
    backend: str = "hotcoco",
    max_detections: int | None = None,
) -> dict[str, Any]:
    """Return the metrics of a COCO results file on a file of COCO annotations.

    Args:
      results_path: boxes, masks or both; what one entry has, all need.
      annotations_path: COCO instances, or LVIS'.
      with_masks: the classes of A; see `mask_classes.mask_labels`.
      boundary: score the borders of masks too.
      backend: see `coco_metrics.evaluate`.
      max_detections: see `coco_metrics.evaluate`.

    Raises:
      OSError: a file cannot be read.
      ValueError: a file is malformed; one line that names it and the entry.
    """
    matching.check_backend(backend)
    ground_truth = files.read_json(annotations_path)
    results = coco_results.read_results(results_path)
    kinds = scores.kinds_of(results)
    try:
        coco_checks.check_ground_truth(ground_truth, kinds)
    except ValueError as error:
        raise ValueError(f"{annotations_path}: {error}") from None
    categories = Categories.from_coco(
        [{**category, "id": coco_checks.as_id(category["id"])} for category in ground_truth["categories"]]
    )
    groups = scores.mask_groups(categories, mask_classes.mask_labels(with_masks, categories))
    if boundary and "segm" in kinds:
        kinds = (*kinds, "boundary")
    try:
        return coco_metrics.evaluate(ground_truth, results, kinds, groups, backend, max_detections)
    except ValueError as error:
        raise ValueError(f"{results_path}: {error}") from None


def expected_metrics(
    config: ConfigDict, groups: Collection[str], ground_truth: Mapping[str, Any] | None = None
) -> set[str]:
    """Return the names that `flatten` gives to what `score` returns, such as "segm/B/AP", before anything is scored.

    Args:
      config: of the run.
      groups: their names, beside "all".
      ground_truth: to be scored against; LVIS' has metrics of its own.

    Raises:
      ValueError: the backend, or the convention by which masks are pasted, is unknown.
      ModuleNotFoundError: the backend is not installed.
    """
    matching.check_backend(config.evaluation.backend)
    paste_masks.check_grid(config.evaluation.paste_grid)
    has_frequencies = ground_truth is not None and coco_metrics.has_frequencies(ground_truth)
    names = coco_metrics.metric_definitions(config.model.max_detections, has_frequencies)
    kinds = _kinds(config)
    expected = {f"{kind}/{group}/{name}" for kind in kinds for group in ("all", *groups) for name in names}
    if {"A", "B"} <= set(groups):
        expected |= {f"{kind}/harmonic_mean" for kind in kinds}
    return expected


def _kinds(config: ConfigDict) -> tuple[str, ...]:
    if "masks" not in produces(config.model):
        return ("bbox",)
    return ("bbox", "segm", "boundary") if config.evaluation.boundary else ("bbox", "segm")


def scored_groups(categories: Categories, config: ConfigDict) -> dict[str, list[int]]:
    """Return the category ids of A and B as the config says, where both exist."""
    return scores.mask_groups(
        categories, mask_classes.mask_labels(config.evaluation.mask_classes or config.data.mask_classes, categories)
    )


def trained_groups(source: Source, config: ConfigDict) -> dict[str, list[int]]:
    """Return the category ids of A, B and mixed as a training set has them, where there is more than one of these.

    Where the config names classes, they are those of `scored_groups`. With "annotated" the index decides: all boxes of
    a class in A have a mask, none of one in B, some of a mixed one. Mixed classes are a group of their own: they count
    neither for A nor for B.
    """
    if (config.evaluation.mask_classes or config.data.mask_classes) != "annotated":
        return scored_groups(source.categories, config)
    role_of_label = roles.class_roles(source, mask_classes.mask_labels(config.data.mask_classes, source.categories))[1:]
    # No array of ids: they may have more than 64 bits.
    members = list(zip(source.categories.ids, role_of_label.tolist(), strict=True))
    groups = {group: [i for i, role in members if role == group] for group in ("A", "B", "mixed")}
    groups = {group: ids for group, ids in groups.items() if ids}
    return groups if len(groups) > 1 else {}


def measured_metrics(config: ConfigDict, groups: Mapping[str, Sequence[int]], source: Source) -> set[str]:
    """Return the metrics that have objects of a source to be measured on; a group without masks has no mask AP.

    Raises: as `expected_metrics`.
    """
    boxes, masks = roles.count_labels(source, np.ones(len(source.categories) + 1, bool))
    label_of_id = source.categories.label_of_id()
    members = {"all": source.categories.ids, **groups}

    def has_objects(name: str) -> bool:
        kind, group, *_ = name.split("/")
        counts = boxes if kind == "bbox" else masks
        parts = ("A", "B") if group == "harmonic_mean" else (group,)
        return all(any(counts[label_of_id[i]] for i in members[part]) for part in parts)

    return set(filter(has_objects, expected_metrics(config, groups, source.coco_ground_truth())))


def write_evaluation(
    results: list[dict[str, Any]],
    source: Source,
    config: ConfigDict,
    folder: pathlib.Path,
    groups: Mapping[str, Sequence[int]] | None = None,
    others: Mapping[str, list[dict[str, Any]]] | None = None,
) -> dict[str, Any]:
    """Write results.json, score the results, and write metrics.json, table.txt and pictures; return the metrics.

    Args:
      results: COCO results entries.
      source: that they were found in.
      config: of the run.
      folder: to write to.
      groups: category ids by the name of the group; None takes those of `scored_groups`.
      others: results of other models, by the title of their panel in the pictures.
    """
    # First: scoring may take more memory than there is, and detecting again costs more than both.
    coco_results.write_results(folder / "results.json", results)
    metrics = score(results, source, config, groups)
    report(metrics, folder)
    draw({"predictions": results, **(others or {})}, source, config, files.folder_in(folder, "pictures"), groups)
    return metrics


def report(metrics: Mapping[str, Any], folder: pathlib.Path | None) -> None:
    """Print the table of metrics; write it and the metrics into a folder, if one is given."""
    table = scores.format_table(metrics)
    print(f"AP in percent; A: classes with masks in training, B: without\n{table}")
    if folder is not None:
        files.write_json(folder / "metrics.json", metrics)
        files.write_text(folder / "table.txt", f"{table}\n\n{scores.format_class_table(metrics)}\n")
        print(f"wrote {folder}")


def draw(
    results: Mapping[str, list[dict[str, Any]]],
    source: Source,
    config: ConfigDict,
    folder: pathlib.Path,
    groups: Mapping[str, Sequence[int]] | None = None,
) -> None:
    """Write pictures of the first images: ground truth, and what each model predicts; classes are marked A or B.

    Args:
      results: COCO results entries by the title of their panel.
      source: of the images.
      config: of a run on them.
      folder: to write to.
      groups: as of `score`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    ground_truth = source.coco_ground_truth()
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    groups = scored_groups(source.categories, config) if groups is None else groups
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
        _, encoded = cv2.imencode(".png", picture[..., ::-1])
        files.write_bytes(folder / f"{record.image_id}.png", encoded.tobytes())
