"""Evaluate as the config of a run says: detect over a source, score what was found, write it down and draw it."""

import collections
import contextlib
import itertools
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from maskx_jax import files, inference
from maskx_jax.coco import mask_classes
from maskx_jax.coco.categories import Categories
from maskx_jax.coco.keypoints import skeletons_of
from maskx_jax.data import roles
from maskx_jax.data.reading import read_record
from maskx_jax.data.records import Source
from maskx_jax.data.sources import open_source
from maskx_jax.data.transforms import Transform, decode
from maskx_jax.distributed.processes import from_first_process, gather_objects, gather_parts
from maskx_jax.evaluation import checks, entry_processes, metrics, results, scores
from maskx_jax.evaluation.drawing import draw_comparison
from maskx_jax.inference import DetectStep
from maskx_jax.models.build import produces
from maskx_jax.runs import workdir as workdirs
from maskx_jax.structures import PyTree

# COCO results entries, gone through several times.
Entries = Iterable[dict[str, Any]]
# What of a run's config may be otherwise when it is evaluated: fields, and sections.
MAY_CHANGE = (
    *("evaluation", "data.transform", "data.loader", "data.num_workers", "data.read_ahead"),
    "data.shapes.num_eval",
)
# Category ids by the name of the group.
Groups = Mapping[str, Sequence[int]]


def detect(
    step: DetectStep,
    variables: PyTree,
    source: Source,
    config: ConfigDict,
    mesh: Mesh,
    before_batch: Callable[[int], None] | None = None,
) -> Entries | None:
    """Detect on every image of a source; return COCO results entries in the pixels of the original images.

    Each process makes and holds the entries of its own images. The first one returns those of all, image after image
    in the order of the source; the others return None. `before_batch` is called with the number of each batch on all
    of them; it may raise to break off.

    Raises:
      RuntimeError: a record is broken, or an image was not detected on exactly once.
    """
    detected = inference.detect(
        step,
        variables,
        source,
        Transform(**config.data.transform),
        mesh,
        batch_size=config.evaluation.batch_size,
        loader=config.data.loader,
        num_workers=config.data.num_workers,
        read_ahead=config.data.read_ahead,
    )
    maker = entry_processes.open_maker(
        config.evaluation.num_processes,
        id_of_label=source.categories.id_of_label(),
        mask_threshold=config.evaluation.mask_threshold,
        grid=config.evaluation.paste_grid,
        keypoint_grid=config.evaluation.keypoint_grid,
        keypoint_score=config.evaluation.keypoint_score,
    )
    with contextlib.closing(maker):
        own = list(_encoded_entries(detected, maker, before_batch))
    image_ids = list(itertools.chain(*gather_objects([image_id for image_id, _ in own])))
    _check_each_once(image_ids, source.image_ids.tolist())
    parts = gather_parts([encoded for _, encoded in own])
    if parts is None:
        return None
    encoded_of_id = dict(zip(image_ids, itertools.chain(*parts), strict=True))
    return results.EncodedResults(encoded_of_id[image_id] for image_id in source.image_ids.tolist())


def _encoded_entries(
    detected: Iterable[Sequence[inference.ImageDetections]],
    maker: entry_processes.EntryMaker,
    before_batch: Callable[[int], None] | None,
) -> Iterator[tuple[int, bytes]]:
    """Yield the id and the encoded entries of each image; see `detect`."""
    waiting: collections.deque[tuple[int, Callable[[], bytes]]] = collections.deque()

    def first() -> tuple[int, bytes]:
        image_id, encoded = waiting.popleft()
        return image_id, encoded()

    for number, images in enumerate(detected):
        if before_batch is not None:
            before_batch(number)
        for image in images:
            encoded = maker.submit(image.found, image_id=image.image_id, image_size=image.size, scale=image.scale)
            waiting.append((image.image_id, encoded))
        # Their detections are in memory.
        while len(waiting) > maker.most_waiting:
            yield first()
    while waiting:
        yield first()


def _check_each_once(found: Sequence[int], expected: Collection[int]) -> None:
    counts = collections.Counter(found)
    missing = sorted(set(expected) - set(counts))
    doubled = sorted(image_id for image_id, count in counts.items() if count > 1)
    if missing or doubled:
        raise RuntimeError(
            f"detected on {len(found)} images, expected each of the source's {len(expected)} once: "
            f"{len(missing)} missing, image ids {missing[:10]}; {len(doubled)} doubled, {doubled[:10]}"
        )


def open_evaluated(config: ConfigDict, directory: str | None = None, split: str | None = None) -> Source:
    """Open the images that a run is evaluated on.

    Args:
      config: of the run; what is given below is written into it.
      directory: prepared dataset, where it is not that of the run.
      split: of it, likewise.

    Raises:
      ValueError: these are given for a source that is not prepared; see also `open_source`.
      FileNotFoundError: a file of the source is missing.
    """
    data = config.data
    if data.source != "prepared" and (directory or split):
        raise ValueError(f"got --directory or --split for data.source {data.source!r}; expected them with 'prepared'")
    data.directory = directory or data.directory
    data.eval_split = split or data.eval_split
    return open_source(data, training=False, seed=config.seed)


def score(found: Entries, ground_truth: Mapping[str, Any], config: ConfigDict, groups: Groups) -> dict[str, Any]:
    """Return the metrics of what was found, for all classes and for groups of them; see `metrics.score`.

    Args:
      found: COCO results entries.
      ground_truth: a COCO instances dict; see `Source.coco_ground_truth`.
      config: of the run.
      groups: see `trained_groups`.
    """
    return metrics.score(
        ground_truth,
        found,
        kinds(config),
        groups,
        config.evaluation.backend,
        config.model.max_detections,
    )


def kinds(config: ConfigDict) -> tuple[str, ...]:
    """Return what is scored: boxes, masks where the model makes them, and their boundaries where the config says so."""
    return scores.kinds(produces(config.model), config.evaluation.boundary)


def check_ground_truth(config: ConfigDict, source: Source) -> None:
    """Check that a source says what scoring needs to know of keypoints, where the model finds some.

    All processes have to call it. Only the first one reads the annotations.

    Raises:
      ValueError: it has no keypoints, or they have no sigmas.
      RuntimeError: the same, on the other processes.
    """
    if "keypoints" in kinds(config):
        from_first_process(lambda: checks.keypoint_sigmas(source.coco_ground_truth()))


def scored_groups(categories: Categories, config: ConfigDict) -> dict[str, list[int]]:
    """Return the category ids of A and B as the config says, where both exist, or of the groups that it names.

    Raises:
      ValueError: it names a class that there is not.
    """
    chosen = config.evaluation.mask_classes or config.data.mask_classes
    if isinstance(chosen, ConfigDict):
        return {group: categories.ids_of_names(names) for group, names in chosen.items()}
    return scores.mask_groups(categories, mask_classes.mask_labels(chosen, categories))


def groups_of_run(
    workdir: str | pathlib.Path, begun: ConfigDict, categories: Categories, config: ConfigDict
) -> dict[str, list[int]]:
    """Return the category ids of the groups that an evaluation of a run is scored in.

    They are those of its training data, unless the evaluation's config names other classes than the run's.

    Args:
      workdir: of the run.
      begun: config of the run.
      categories: of the data that are evaluated on.
      config: of the evaluation.

    Raises:
      ValueError: as `scored_groups` and `workdir.read_groups`.
    """
    if config.evaluation.mask_classes == begun.evaluation.mask_classes:
        groups = workdirs.read_groups(workdir, categories)
        if groups is not None:
            return groups
    return scored_groups(categories, config)


def trained_groups(source: Source, config: ConfigDict) -> dict[str, list[int]]:
    """Return the category ids of A, B and mixed as a training set has them, where there is more than one of these.

    Where the config names classes, they are those of `scored_groups`. With "annotated" the index decides: all boxes of
    a class in A have a mask, none of one in B, some of a mixed one. Mixed classes are a group of their own: they count
    neither for A nor for B.
    """
    if (config.evaluation.mask_classes or config.data.mask_classes) != "annotated":
        return scored_groups(source.categories, config)
    allowed = mask_classes.mask_labels(config.data.mask_classes, source.categories)
    return scores.groups_of_roles(source.categories, roles.class_roles(source, allowed))


def measured_metrics(config: ConfigDict, groups: Groups, source: Source) -> set[str]:
    """Return the metrics that have objects of a source to be measured on; a group without masks has no mask AP.

    All processes have to call it. Only the first one reads the annotations, which may take gigabytes there.

    Raises: as `check_ground_truth`.
    """

    def read() -> tuple[bool, bool]:
        ground_truth = source.coco_ground_truth()
        if "keypoints" in kinds(config):
            checks.keypoint_sigmas(ground_truth)
        any_keypoints = any(any((entry.get("keypoints") or ())[2::3]) for entry in ground_truth["annotations"])
        return any_keypoints, metrics.has_frequencies(ground_truth)

    any_keypoints, has_frequencies = from_first_process(read)
    boxes, masks = roles.count_labels(source, np.ones(len(source.categories) + 1, bool))
    label_of_id = source.categories.label_of_id()
    members = {"all": source.categories.ids, **groups}

    def has_objects(name: str) -> bool:
        kind, group, *_ = name.split("/")
        if kind == "keypoints":
            return any_keypoints
        counts = boxes if kind == "bbox" else masks
        parts = ("A", "B") if group == "harmonic_mean" else (group,)
        return all(any(counts[label_of_id[i]] for i in members[part]) for part in parts)

    names = scores.metric_names(
        kinds(config),
        groups,
        config.model.max_detections,
        has_frequencies,
    )
    return set(filter(has_objects, names))


def write(
    found: Entries,
    source: Source,
    config: ConfigDict,
    folder: pathlib.Path,
    groups: Groups,
    others: Mapping[str, Entries] | None = None,
) -> dict[str, Any]:
    """Write the config and results.json, score these, write metrics.json, table.txt and pictures; return the metrics.

    Args:
      found: COCO results entries.
      source: that they were found in.
      config: of the run, as it was evaluated.
      folder: to write to.
      groups: see `trained_groups`.
      others: results of other models, by the title of their panel in the pictures.
    """
    workdirs.write_config(folder, config)
    # First: scoring may take more memory than there is, and detecting again costs more than both.
    results.write_results(folder / "results.json", found)
    ground_truth = source.coco_ground_truth()
    measured = score(found, ground_truth, config, groups)
    scores.write(measured, folder)
    panels = {"predictions": found, **(others or {})}
    draw(panels, source, ground_truth, config, files.folder_in(folder, "pictures"), groups)
    return measured


def draw(
    found: Mapping[str, Entries],
    source: Source,
    ground_truth: Mapping[str, Any],
    config: ConfigDict,
    folder: pathlib.Path,
    groups: Groups,
    pictures: Mapping[int, Mapping[str, np.ndarray]] | None = None,
) -> None:
    """Write pictures of the first images: ground truth, and what each model predicts; classes are marked by group.

    Args:
      found: COCO results entries by the title of their panel.
      source: of the images.
      ground_truth: of the source.
      config: of a run on them.
      folder: to write to.
      groups: as of `score`.
      pictures: of images by their id, see `drawing.draw_comparison`.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    group_of_id = {category_id: group for group, members in groups.items() for category_id in members}
    # What a dataset has without use need not be sound.
    skeletons = skeletons_of(ground_truth["categories"]) if source.skeleton else {}
    count = min(config.evaluation.num_pictures, len(source))
    image_ids = set(source.image_ids[:count].tolist())
    shown = {title: [entry for entry in entries if entry["image_id"] in image_ids] for title, entries in found.items()}
    for index in range(count):
        record = read_record(source, index)
        annotations = [a for a in ground_truth["annotations"] if a["image_id"] == record.image_id]
        panels = {
            title: [entry for entry in entries if entry["image_id"] == record.image_id]
            for title, entries in shown.items()
        }
        threshold = config.evaluation.picture_score_threshold
        others = (pictures or {}).get(record.image_id)
        picture = draw_comparison(decode(record), annotations, panels, names, group_of_id, threshold, others, skeletons)
        _, encoded = cv2.imencode(".png", picture[..., ::-1])
        files.write_bytes(folder / f"{record.image_id}.png", encoded.tobytes())
