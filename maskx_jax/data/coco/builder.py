"""Turns COCO-style annotations and images into a TFDS dataset; `source` reads it back by index.

A prepared directory holds, beside the files of TFDS (ArrayRecord, readable with `tfds.builder_from_directory`):

    categories.json             the `categories` of the COCO files: ids, names, and keypoints where there are any
    index_<split>.npz           sizes, image ids, labels and has_mask of every image, to read without any record
    annotations_<split>.json    the annotations kept, in COCO's format: the ground truth of evaluation
    report_<split>.json         what was dropped or repaired, and why; see `report.REASONS`
"""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from maskx_jax import errors
from maskx_jax.coco.categories import Categories, same_classes
from maskx_jax.coco.keypoints import Skeleton, same_skeletons, skeletons_of
from maskx_jax.data.coco import shards
from maskx_jax.data.coco.annotations import Instances
from maskx_jax.data.coco.examples import Examples, Rules, features_of, size_of
from maskx_jax.data.coco.images import UnreadableImageError, check_header, missing_files
from maskx_jax.data.coco.report import Report
from maskx_jax.data.coco.source import CATEGORIES_FILE
from maskx_jax.data.coco.streaming import Annotations, open_instances
from maskx_jax.data.coco.unfinished import has_parts, work_folder
from maskx_jax.data.coco.workers import choose_workers, make_examples

PREDICTED_MASKS = ("use", "drop")
KEYPOINTS = ("use", "drop")


# Equal in a dataset and in what is added to it.
_SAME_FILES = ("features.json", CATEGORIES_FILE)
# To be counted up with what records hold: a run does not go on with those of another version.
_RECORDS_VERSION = 3
# What an object takes in an example, nearly all of it its mask.
_OBJECT_BYTES = 1640
# Examples are made, and held in memory, by so many images and about so many bytes at a time.
_IMAGES_AT_ONCE = 32
_BYTES_AT_ONCE = 2**22


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A shard to write.

    Attributes:
      number: among those of its split.
      parts: of the images whose examples it takes: those of a part are made, and held in memory, together.
      description: of what decides its examples; of the same description they are the same.
    """

    number: int
    parts: Sequence[range]
    description: str

    @property
    def images(self) -> range:
        """The images of all parts."""
        return range(self.parts[0].start, self.parts[-1].stop)

    def stem(self, folder: Path) -> Path:
        """Return the path of its files in a folder, without their suffixes; see `shards`."""
        return folder / f"{self.number:05d}"


@dataclasses.dataclass
class _Split:
    """One split on its way."""

    instances: Instances
    rules: Rules
    report: Report
    fewest_images: int

    def bad_images(self, numbers: Iterable[int], progress: tqdm, before_image: Callable[[], None]) -> list[str]:
        """Return what is wrong with the files of some images, as far as it shows without decoding their pixels."""
        folder = self.rules.folder
        images = [self.instances.images[number] for number in numbers]
        missing = missing_files(folder, (image["file_name"] for image in images))
        bad = []
        for image in images:
            message = missing.get(image["file_name"])
            if message is None:
                try:
                    check_header(folder / image["file_name"], size_of(image))
                except UnreadableImageError as error:
                    message = str(error)
            progress.update()
            before_image()
            if message is not None:
                bad.append(f"image {image['id']}: {message}")
        return bad

    def image_files(self) -> np.ndarray:
        """Return int64 `n 2`: the bytes of each image file, and when it was changed (ns); zeros for what is missing."""

        def of(image: dict) -> tuple[int, int]:
            # What cannot be used may be skipped, and is named otherwise where it is read.
            with contextlib.suppress(OSError):
                status = (self.rules.folder / image["file_name"]).stat()
                return status.st_size, status.st_mtime_ns
            return 0, 0

        return np.array([of(image) for image in self.instances.images], np.int64)

    def plan(self, num_shards: int | None) -> list[_Shard]:
        """Return all shards of the split."""
        image_files = self.image_files()
        annotations = self.instances.annotations
        numbers = [len(annotations[image["id"]]) for image in self.instances.images]
        image_bytes = image_files[:, 0] + _OBJECT_BYTES * np.array(numbers, np.int64)
        read = annotations.stamp if isinstance(annotations, Annotations) else None
        # Whether bad images are skipped is not of a shard without any.
        rules = dataclasses.replace(self.rules, skip_bad_images=False)
        of_all = f"{_RECORDS_VERSION} {read} {rules} {self.report}".encode("utf-8", "surrogatepass")

        def describe(images: range) -> str:
            digest = hashlib.sha256(of_all)
            digest.update(image_files[images.start : images.stop].tobytes())
            for image, entries in self.instances.entries(images):
                digest.update(f"{image}{len(entries)}".encode("utf-8", "surrogatepass"))
            return digest.hexdigest()

        return [
            _Shard(number, list(_parts(images, image_bytes)), describe(images))
            for number, images in enumerate(shards.plan(image_bytes, num_shards))
        ]

    def is_whole(self, shard: _Shard, folder: Path) -> bool:
        """Return whether a shard need not be written again."""
        number = shards.num_whole(shard.stem(folder), shard.description)
        return number is not None and (self.rules.skip_bad_images or number == len(shard.images))

    def write(
        self,
        todo: Sequence[_Shard],
        folder: Path,
        num_workers: int,
        progress: tqdm,
        before_image: Callable[[], None],
    ) -> None:
        """Write shards into a folder."""
        parts = (list(self.instances.entries(part)) for shard in todo for part in shard.parts)

        def counted(made: Iterable[Examples]) -> Iterator[Examples]:
            for examples in made:
                yield examples
                progress.update(examples.num_images)

        with contextlib.closing(make_examples(self.rules, parts, num_workers, before_image)) as made:
            for shard in todo:
                examples = counted(itertools.islice(made, len(shard.parts)))
                shards.write_shard(shard.stem(folder), self.rules.split, examples, shard.description)


def _parts(images: range, image_bytes: np.ndarray) -> Iterator[range]:
    """Yield the images in parts of about `_BYTES_AT_ONCE`, and at most `_IMAGES_AT_ONCE`."""
    begin, num_bytes = images.start, 0
    for index in images:
        if index > begin and (index - begin == _IMAGES_AT_ONCE or num_bytes + image_bytes[index] > _BYTES_AT_ONCE):
            yield range(begin, index)
            begin, num_bytes = index, 0
        num_bytes += int(image_bytes[index])
    yield range(begin, images.stop)


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
    add: bool = False,
    num_workers: int | None = 1,
    part: tuple[int, int] | None = None,
    before_image: Callable[[], None] = lambda: None,
) -> dict[str, Report]:
    """Check COCO-style annotations and images and write them as one TFDS dataset.

    All annotations and the headers of all images are checked before anything is written; the pixels are decoded as they
    are written. The output appears at once when all is done; a failed run leaves nothing behind. One that is
    killed leaves a hidden folder beside the output, with which the next run goes on: shards that are whole there are
    not made again, where nothing of their input has changed.

    Several machines that share a disk write a part each, at any time and in any order; then a run without a part makes
    the same dataset of them as it does alone. A part checks the headers of its own images. Once there are parts, the
    hidden folder stays until the dataset is there, also where a run fails.

    Args:
      output: the directory to make, on a disk of this machine or a shared one.
      splits: for each split its annotations (JSON) and its folder of images.
      num_shards: files a split is written to, at most one per image; None takes as many as TFDS would, by size, but at
        most `shards.MAX_SHARDS`. There are fewer where all images of one are left out.
      skip_bad_images: leave out images that are missing, corrupt, too large or of another size than the JSON says,
        with their annotations, instead of stopping.
      drop_unknown: leave out annotations of unknown categories and images instead of stopping.
      allow_outside: take image files outside their folder, named by an absolute path or by `..`.
      predicted_masks: "use" masks that `label` predicted, with their quality as their weight in training, or "drop"
        them: their objects have boxes only.
        No mask that a model made is taken for the truth unasked: it would be scored against, too.
      keypoints: "use" those that the categories name, or "drop" them: records have none.
      overwrite: replace the dataset that is at `output`.
      add: add the splits to the dataset that is at `output`, whose classes and keypoints they have to have.
      num_workers: how many processes make the records, which are the same with any number; None takes one a core, and
        fewer of few images. With more than 1 a program that calls this does so below `if __name__ == "__main__":`.
      part: (i, n), i from 1 to n: write the i-th of n parts of the shards, and no dataset; None writes what is missing
        of them, and the dataset.
      before_image: called before each image (before some of them, with several processes) and before the output
        appears; what it raises ends the work.

    Returns:
      For each split what was kept, dropped and repaired; of a part, what reading the annotations found.

    Raises:
      FileExistsError: there is something at `output` already, or there are parts of other splits.
      FileNotFoundError: an annotation file or image folder is missing.
      ValueError: an input is unsound; the message names file and id.
    """
    for path in (output, *(path for pair in splits.values() for path in pair)):
        if re.match(r"\w\w+:/", str(path)):
            raise ValueError(f"got {str(path)!r}; expected a local path: prepare on a local disk, and copy the result")
    output = Path(output).expanduser()
    _check_output(output, overwrite or add)
    if add:
        _check_addition(output, splits)
    if num_shards is not None and num_shards < 1:
        raise ValueError(f"num_shards is {num_shards}; expected at least 1")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"num_workers is {num_workers}; expected at least 1")
    if part is not None and not 1 <= part[0] <= part[1]:
        raise ValueError(f"part is {part[0]}/{part[1]}; expected 1/n to n/n, n the number of parts")
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
            keypoints == "use",
        )
    _check_same_categories(todo)
    if add:
        there = Categories.from_coco(json.loads((output / CATEGORIES_FILE).read_bytes()))
        same_classes(there, next(iter(todo.values())).instances.categories, f"{output} and the added", same_ids=True)
    smallest = min(len(split.instances.images) for split in todo.values())
    if num_shards is not None and num_shards > smallest:
        raise ValueError(f"num_shards is {num_shards}; the smallest split has {smallest} images")
    plans = {name: split.plan(num_shards) for name, split in todo.items()}
    index, step = part or (1, 1)
    most = max(map(len, plans.values()))
    if step > most:
        raise ValueError(f"part is {index}/{step}; expected at most {most} parts, one a shard")
    output.parent.mkdir(parents=True, exist_ok=True)
    # Beside the output, so that the move at the end is one rename.
    with work_folder(output, is_part=part is not None) as folder:
        if part is None:
            _check_parts(folder, todo)
        own = {name: planned[index - 1 :: step] for name, planned in plans.items()}
        _write_shards(todo, own, folder, num_workers, before_image)
        if part is None:
            written = _join(todo, plans, folder, output if add else None)
            before_image()
            _move(written, output, folder / "replaced")
    return {name: split.report for name, split in todo.items()}


def _folder_of(folder: Path, split: str) -> Path:
    """Return where the shards of a split lie in a work folder."""
    return folder / f"shards_{split}"


def _check_parts(folder: Path, splits: Iterable[str]) -> None:
    """Refuse parts of other splits than are to be joined: they would be lost."""
    if has_parts(folder):
        own = {_folder_of(folder, split).name for split in splits}
        others = sorted({path.name for path in folder.glob("shards_*")} - own)
        if others:
            raise FileExistsError(
                f"{folder} holds parts of other splits, {', '.join(others)}; give all splits, or remove it"
            )


def _write_shards(
    splits: Mapping[str, _Split],
    planned: Mapping[str, Sequence[_Shard]],
    folder: Path,
    num_workers: int | None,
    before_image: Callable[[], None],
) -> None:
    """Check the images of the shards that are not whole in the work folder, and write these shards."""
    missing = {}
    for name, split in splits.items():
        of_split = _folder_of(folder, name)
        of_split.mkdir(exist_ok=True)
        missing[name] = [shard for shard in planned[name] if not split.is_whole(shard, of_split)]
    images = {name: [image for shard in of_split for image in shard.images] for name, of_split in missing.items()}
    _check_images(splits, images, before_image)
    num_images = sum(map(len, images.values()))
    workers = choose_workers(num_images, num_workers)
    with tqdm(total=num_images, desc="writing records", unit="image", disable=None) as progress:
        for name, split in splits.items():
            split.write(missing[name], _folder_of(folder, name), workers, progress, before_image)
    for split in splits.values():
        if isinstance(split.instances.annotations, Annotations):
            split.instances.annotations.check()


def _join(
    splits: Mapping[str, _Split], plans: Mapping[str, Sequence[_Shard]], folder: Path, added_to: Path | None
) -> Path:
    """Make the dataset of the shards in a work folder, with the splits of another dataset if one is given."""
    written = folder / "written"
    shutil.rmtree(written, ignore_errors=True)
    written.mkdir()
    infos = shards.link_splits(added_to, written) if added_to else []
    infos += [
        shards.join(
            [shard.stem(_folder_of(folder, name)) for shard in plans[name]],
            written,
            split.report,
            split.instances.header,
            num_images=len(split.instances.images),
            fewest_images=split.fewest_images,
        )
        for name, split in splits.items()
    ]
    split = next(iter(splits.values()))
    shards.write_info(written, features_of(split.rules), infos)
    named = {category_id: skeleton.to_coco() for category_id, skeleton in split.rules.skeletons.items()}
    categories = [entry | named.get(entry["id"], {}) for entry in split.instances.categories.to_coco()]
    (written / CATEGORIES_FILE).write_text(json.dumps(categories, indent=2))
    if added_to and any((written / name).read_bytes() != (added_to / name).read_bytes() for name in _SAME_FILES):
        raise ValueError(
            f"{added_to} and the added splits differ in keypoints, in whether predicted masks are used, or in the "
            "version that prepared them"
        )
    return written


def _check_images(
    splits: Mapping[str, _Split], images: Mapping[str, Sequence[int]], before_image: Callable[[], None]
) -> None:
    """Name all that cannot be used of some images of each split, as far as it shows without their pixels.

    A split that leaves out bad images finds them when it reads them.
    """
    splits = {name: split for name, split in splits.items() if not split.rules.skip_bad_images}
    if not splits:
        return
    num_images = sum(len(images[name]) for name in splits)
    with tqdm(total=num_images, desc="checking images", unit="image", disable=None) as progress:
        bad = {name: split.bad_images(images[name], progress, before_image) for name, split in splits.items()}
    if not any(bad.values()):
        return
    raise UnreadableImageError(
        "; ".join(
            f"split {name!r}: {len(messages)} of {len(images[name])} images cannot be used: {errors.some(messages)}"
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


def _check_addition(output: Path, splits: Iterable[str]) -> None:
    if not (output / CATEGORIES_FILE).exists():
        raise FileNotFoundError(f"{output}: found no prepared dataset to add to")
    for name in splits:
        if (output / f"index_{name}.npz").exists():
            raise FileExistsError(f"{output} has a split {name!r}; give another name")


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
    use_keypoints: bool,
) -> _Split:
    if not folder.is_dir():
        raise FileNotFoundError(f"split {name!r}: there is no image folder {folder}")
    report = Report(name)
    instances = open_instances(annotations, report, drop_unknown, allow_outside)
    skeletons = _skeletons(instances, report, annotations) if use_keypoints else {}
    rules = Rules(name, folder, instances.categories, skip_bad_images, use_predicted_masks, skeletons)
    return _Split(instances, rules, report, fewest_images)


def _skeletons(instances: Instances, report: Report, path: Path) -> dict[int, Skeleton]:
    """Return what the categories of a split say of keypoints, and count those that say nothing of theirs."""
    with _remedy_named(f"{path}: "):
        skeletons = skeletons_of(instances.header["categories"])
    for category_id in sorted(instances.with_keypoints - set(skeletons)):
        report.add("keypoints_unnamed", category_id)
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
            same_skeletons(split.rules.skeletons, other.rules.skeletons, what)
