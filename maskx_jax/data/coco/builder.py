"""Turns COCO-style annotations and images into a TFDS dataset, and reads it back by index.

A prepared directory holds, beside the files of TFDS (ArrayRecord, readable with `tfds.builder_from_directory`):

    categories.json             the `categories` of the COCO files: ids, names, and keypoints where there are any
    index_<split>.npz           sizes, image ids, labels and has_mask of every image, to read without any record
    annotations_<split>.json    the annotations kept, in COCO's format: the ground truth of evaluation
    report_<split>.json         what was dropped or repaired, and why; see `report.REASONS`
"""

import contextlib
import dataclasses
import itertools
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from maskx_jax import errors
from maskx_jax.coco.categories import same_classes
from maskx_jax.coco.keypoints import Skeleton, same_skeletons, skeletons_of
from maskx_jax.data.coco import keypoints as keypoint_rules
from maskx_jax.data.coco.annotations import Instances, read_instances
from maskx_jax.data.coco.images import UnreadableImageError, check_header, missing_files, read_image
from maskx_jax.data.coco.objects import check_objects
from maskx_jax.data.coco.report import Report
from maskx_jax.data.coco.source import CATEGORIES_FILE
from maskx_jax.data.records import PACKED_SHAPE

# TFDS orders examples by 128-bit keys.
_NUM_KEYS = 1 << 128
PREDICTED_MASKS = ("use", "drop")
KEYPOINTS = ("use", "drop")


@dataclasses.dataclass
class _Split:
    """One split on its way: what goes in, and what its examples leave behind."""

    instances: Instances
    folder: Path
    report: Report
    skip_bad_images: bool
    use_predicted_masks: bool
    fewest_images: int
    before_image: Callable[[], None]
    skeletons: Mapping[int, Skeleton] = dataclasses.field(default_factory=dict)
    progress: tqdm | None = None
    image_ids: list[int] = dataclasses.field(default_factory=list)
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    labels: list[np.ndarray] = dataclasses.field(default_factory=list)
    has_mask: list[np.ndarray] = dataclasses.field(default_factory=list)
    images: list[dict] = dataclasses.field(default_factory=list)
    annotations: list[dict] = dataclasses.field(default_factory=list)

    def examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield a key and an example for each image, in the order of the JSON."""
        # TFDS sorts by key in buckets of equal ranges. Keys 0, 1, 2, ... would all fall into the first one, which is
        # sorted in memory: for COCO 19 GB.
        stride = _NUM_KEYS // len(self.instances.images)
        for index, image in enumerate(self.instances.images):
            self.before_image()
            example = self._example(image)
            if self.progress is not None:
                self.progress.update()
            if example is not None:
                yield index * stride, example
        if len(self.image_ids) < self.fewest_images:
            raise ValueError(
                f"split {self.report.split!r}: {len(self.image_ids)} of {len(self.instances.images)} images can be "
                f"read; expected at least {self.fewest_images}, one for each shard"
            )

    def _example(self, image: dict) -> dict[str, Any] | None:
        annotations = self.instances.annotations[image["id"]]
        size = _size_of(image)
        try:
            data, actual_size, reasons = read_image(self.folder / image["file_name"], size)
        except UnreadableImageError as error:
            if not self.skip_bad_images:
                raise UnreadableImageError(f"image {image['id']}: {error}. Use skip_bad_images to go on") from error
            self.report.add(error.reason, image["id"])
            for annotation in annotations:
                self.report.add("annotation_image_skipped", annotation["id"])
            return None
        for reason in [*reasons, *(["image_size_filled"] if size is None else [])]:
            self.report.add(reason, image["id"])

        objects, ground_truth = check_objects(
            annotations, actual_size, self.instances.categories, self.report, self.use_predicted_masks
        )
        if self.skeletons:
            objects["keypoints"], ground_truth = keypoint_rules.check_keypoints(
                ground_truth, actual_size, self.skeletons, self.report
            )
            labelled = (objects["keypoints"][..., 2] > 0).any(axis=1)
            self.report.num_with_keypoints = (self.report.num_with_keypoints or 0) + int(labelled.sum())
        objects_only = ~objects["is_crowd"]
        if not annotations:
            self.report.add("image_negative", image["id"])
        elif not ground_truth:
            self.report.add("image_all_dropped", image["id"])
        elif not objects_only.any():
            self.report.add("image_crowd_only", image["id"])
        self.report.num_images += 1
        self.report.num_objects += int(objects_only.sum())
        self.report.num_masks += int(objects["has_mask"].sum())
        self.report.num_crowds += int(objects["is_crowd"].sum())

        self.image_ids.append(image["id"])
        self.sizes.append(actual_size)
        self.labels.append(objects["labels"][objects_only])
        self.has_mask.append(objects["has_mask"][objects_only])
        height, width = actual_size
        self.images.append({**image, "height": height, "width": width})
        self.annotations += ground_truth
        return {
            "image": data,
            "image_id": image["id"],
            "height": height,
            "width": width,
            "file_name": image["file_name"],
            "objects": objects,
        }

    def bad_images(self, progress: tqdm) -> list[str]:
        """Return what is wrong with the image files, as far as it shows without decoding their pixels."""
        missing = missing_files(self.folder, (image["file_name"] for image in self.instances.images))
        bad = []
        for image in self.instances.images:
            message = missing.get(image["file_name"])
            if message is None:
                try:
                    check_header(self.folder / image["file_name"], _size_of(image))
                except UnreadableImageError as error:
                    message = str(error)
            progress.update()
            self.before_image()
            if message is not None:
                bad.append(f"image {image['id']}: {message}")
        return bad

    def write_companions(self, directory: Path) -> None:
        """Write the index, the ground truth and the report of a split whose examples are all written."""
        name = self.report.split
        np.savez_compressed(
            directory / f"index_{name}.npz",
            image_ids=np.array(self.image_ids, np.int64),
            sizes=np.array(self.sizes, np.int32),
            num_objects=np.array([len(labels) for labels in self.labels], np.int32),
            labels=np.concatenate(self.labels),
            has_mask=np.concatenate(self.has_mask),
        )
        ground_truth = {**self.instances.header, "images": self.images, "annotations": self.annotations}
        (directory / f"annotations_{name}.json").write_text(json.dumps(ground_truth))
        (directory / f"report_{name}.json").write_text(json.dumps(self.report.to_json(), indent=2))


class _NewInfo(tfds.core.DatasetInfo):
    """Information on a dataset that nobody has made before: TFDS would look in its bucket and leave a folder behind."""

    def initialize_from_bucket(self) -> None:
        pass


class CocoRecords(tfds.core.GeneratorBasedBuilder):
    """The TFDS builder of prepared datasets. Its output is read without it."""

    VERSION = tfds.core.Version("1.0.0")
    # No package: nothing of the dataset is to be looked up beside this file.
    pkg_dir_path = None

    def __init__(self, splits: Mapping[str, _Split], **arguments: Any) -> None:
        self._splits = splits
        super().__init__(**arguments)

    def _log_download_bytes(self) -> None:
        """Print nothing: nothing is downloaded, and sizes are not known."""

    def _log_download_done(self) -> None:
        """Print nothing: the place it would name is a temporary one."""

    def _info(self) -> tfds.core.DatasetInfo:
        def per_object(*shape: int, dtype: type) -> tfds.features.Tensor:
            # As bytes: tf.train.Example would make an int64 of every byte of a mask.
            return tfds.features.Tensor(shape=(None, *shape), dtype=dtype, encoding="bytes")

        skeletons = list(next(iter(self._splits.values())).skeletons.values())
        keypoints = {"keypoints": per_object(len(skeletons[0].names), 3, dtype=np.float32)} if skeletons else {}
        return _NewInfo(
            builder=self,
            description="Images with boxes, and masks where there are any; made by `python -m maskx_jax prepare`.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3)),
                    "image_id": np.int64,
                    "height": np.int32,
                    "width": np.int32,
                    "file_name": tfds.features.Text(),
                    "objects": {
                        "boxes": per_object(4, dtype=np.float32),
                        "labels": per_object(dtype=np.int32),
                        "masks": per_object(*PACKED_SHAPE, dtype=np.uint8),
                        "mask_frames": per_object(4, dtype=np.float32),
                        "has_mask": per_object(dtype=np.bool_),
                        "is_crowd": per_object(dtype=np.bool_),
                        "annotation_ids": per_object(dtype=np.int64),
                        **keypoints,
                    },
                }
            ),
            # Example i of the data is image i of the index.
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        return {name: self._generate_examples(name) for name in self._splits}

    def _generate_examples(self, name: str) -> Iterator[tuple[int, dict[str, Any]]]:
        return self._splits[name].examples()


def prepare(
    output: str | Path,
    splits: Mapping[str, tuple[str | Path, str | Path]],
    num_shards: int | None = None,
    *,
    skip_bad_images: bool = False,
    drop_unknown: bool = False,
    allow_outside: bool = False,
    predicted_masks: str = "drop",
    keypoints: str = "use",
    overwrite: bool = False,
    before_image: Callable[[], None] = lambda: None,
) -> dict[str, Report]:
    """Check COCO-style annotations and images and write them as one TFDS dataset.

    All annotations and the headers of all images are checked before anything is written; the pixels are decoded as they
    are written. The output appears at once when all is done; a failed run leaves nothing behind.

    Args:
      output: the directory to make, on a local disk.
      splits: for each split its annotations (JSON) and its folder of images.
      num_shards: files a split is written to, at most one per image; None leaves it to TFDS (by size).
      skip_bad_images: leave out images that are missing, corrupt, too large or of another size than the JSON says,
        with their annotations, instead of stopping.
      drop_unknown: leave out annotations of unknown categories and images instead of stopping.
      allow_outside: take image files outside their folder, named by an absolute path or by `..`.
      predicted_masks: "use" masks that `label` predicted as any others, or "drop" them: their objects have boxes only.
        No mask that a model made is taken for the truth unasked: it would be scored against, too.
      keypoints: "use" those that the categories name, or "drop" them: records have none.
      overwrite: replace the dataset that is at `output`.
      before_image: called before each image and before the output appears; what it raises ends the work.

    Returns:
      For each split what was kept, dropped and repaired.

    Raises:
      FileExistsError: there is something at `output` already.
      FileNotFoundError: an annotation file or image folder is missing.
      ValueError: an input is unsound; the message names file and id.
    """
    for path in (output, *(path for pair in splits.values() for path in pair)):
        if re.match(r"\w\w+:/", str(path)):
            raise ValueError(f"got {str(path)!r}; expected a local path: prepare on a local disk, and copy the result")
    output = Path(output).expanduser()
    _check_output(output, overwrite)
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"num_shards is {num_shards}; expected at least 1")
    for name, value, choices in (
        ("predicted_masks", predicted_masks, PREDICTED_MASKS),
        ("keypoints", keypoints, KEYPOINTS),
    ):
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; expected one of {', '.join(choices)}")
    if not splits:
        raise ValueError("there is no split to prepare; expected at least one")
    todo = {}
    for name, (annotations, folder) in splits.items():
        # Names that TFDS takes; it understands "all" as all splits.
        if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII) or name == "all":
            raise ValueError(f"split name {name!r}: expected letters, digits and _, and not 'all'")
        todo[name] = _open_split(
            name,
            Path(annotations).expanduser(),
            Path(folder).expanduser(),
            drop_unknown,
            allow_outside,
            skip_bad_images,
            predicted_masks == "use",
            num_shards or 1,
            before_image,
        )
        if keypoints == "use":
            todo[name].skeletons = _skeletons(todo[name], Path(annotations))
    _check_same_categories(todo)
    smallest = min(len(split.instances.images) for split in todo.values())
    if num_shards is not None and num_shards > smallest:
        raise ValueError(f"num_shards is {num_shards}; the smallest split has {smallest} images")
    if not skip_bad_images:
        _check_images(todo)
    _write(todo, output, num_shards, before_image)
    return {name: split.report for name, split in todo.items()}


def _write(todo: Mapping[str, _Split], output: Path, num_shards: int | None, before_image: Callable[[], None]) -> None:
    """Write the dataset beside the output, and put it there when all is done."""
    # TFDS's bars know no totals.
    tfds.disable_progress_bar()
    output.parent.mkdir(parents=True, exist_ok=True)
    num_images = sum(len(split.instances.images) for split in todo.values())
    # Beside the output, so that the move at the end is one rename.
    with (
        tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary,
        tqdm(total=num_images, desc="writing records", unit="image", disable=None) as progress,
    ):
        for split in todo.values():
            split.progress = progress
        builder = CocoRecords(todo, data_dir=temporary, file_format="array_record")
        builder.download_and_prepare(
            download_config=tfds.download.DownloadConfig(num_shards=num_shards, try_download_gcs=False)
        )
        written = Path(builder.data_dir)
        split = next(iter(todo.values()))
        named = {category_id: skeleton.to_coco() for category_id, skeleton in split.skeletons.items()}
        categories = [entry | named.get(entry["id"], {}) for entry in split.instances.categories.to_coco()]
        (written / CATEGORIES_FILE).write_text(json.dumps(categories, indent=2))
        for split in todo.values():
            split.write_companions(written)
        before_image()
        _move(written, output, Path(temporary) / "replaced")


def _size_of(image: dict) -> tuple[int, int] | None:
    return (image["height"], image["width"]) if image.get("height") else None


def _check_images(splits: Mapping[str, _Split]) -> None:
    """Name all images of all splits that cannot be used, as far as it shows without their pixels."""
    num_images = sum(len(split.instances.images) for split in splits.values())
    with tqdm(total=num_images, desc="checking images", unit="image", disable=None) as progress:
        bad = {name: split.bad_images(progress) for name, split in splits.items()}
    if not any(bad.values()):
        return
    raise UnreadableImageError(
        "; ".join(
            f"split {name!r}: {len(messages)} of {len(splits[name].instances.images)} images cannot be used: "
            f"{errors.some(messages)}"
            for name, messages in bad.items()
            if messages
        )
        + ". Use skip_bad_images to leave them out"
    )


def _move(written: Path, output: Path, replaced: Path) -> None:
    """Put what is written in the place of the output; what was there goes to `replaced`, and back where this fails."""
    if output.exists():
        output.rename(replaced)
    try:
        written.rename(output)
    except BaseException:
        if replaced.exists() and not output.exists():
            replaced.rename(output)
        raise


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{output} exists; choose another output, or overwrite it")
    # Lest a mistyped output deletes something else.
    if not output.is_dir() or (any(output.iterdir()) and not (output / CATEGORIES_FILE).exists()):
        raise FileExistsError(f"{output} exists and is no prepared dataset; it is not overwritten")


def _open_split(
    name: str,
    annotations: Path,
    folder: Path,
    drop_unknown: bool,
    allow_outside: bool,
    skip_bad_images: bool,
    use_predicted_masks: bool,
    fewest_images: int,
    before_image: Callable[[], None],
) -> _Split:
    if not folder.is_dir():
        raise FileNotFoundError(f"split {name!r}: there is no image folder {folder}")
    report = Report(name)
    instances = read_instances(annotations, report, drop_unknown, allow_outside)
    return _Split(instances, folder, report, skip_bad_images, use_predicted_masks, fewest_images, before_image)


def _skeletons(split: _Split, path: Path) -> dict[int, Skeleton]:
    """Return what the categories of a split say of keypoints, and count those that say nothing of theirs."""
    with _remedy_named(f"{path}: "):
        skeletons = skeletons_of(split.instances.header["categories"])
    every = itertools.chain.from_iterable(split.instances.annotations.values())
    for category_id in keypoint_rules.unnamed(every, skeletons):
        split.report.add("keypoints_unnamed", category_id)
    return skeletons


@contextlib.contextmanager
def _remedy_named(where: str = "") -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}{error}. Use keypoints=drop to leave keypoints out") from None


def _check_same_categories(splits: Mapping[str, _Split]) -> None:
    (first, split), *others = splits.items()
    for name, other in others:
        what = f"splits {first!r} and {name!r}"
        same_classes(split.instances.categories, other.instances.categories, what, same_ids=True)
        with _remedy_named():
            same_skeletons(split.skeletons, other.skeletons, what)
