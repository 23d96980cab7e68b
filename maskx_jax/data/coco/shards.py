"""Writes the examples of a split in order to shards, each with what its examples leave behind.

While a split is written, its shards are in a folder of their own, three files each, of which the last one says that the
shard is whole:

    <number>.array_record    the examples
    <number>.ground_truth    JSON of the images kept, and of their annotations: a line each
    <number>.npz             for the index and the report
"""

import dataclasses
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core.file_adapters import ArrayRecordFileAdapter
from tensorflow_datasets.core.utils import shard_utils

from maskx_jax.data.coco.examples import Examples
from maskx_jax.data.coco.report import Report

DATASET = "coco_records"
# Readers open all files of a split at once, of two splits in training, and many systems allow 1,024.
MAX_SHARDS = 256


def plan(image_bytes: np.ndarray, num_shards: int | None = None) -> list[range]:
    """Return which images each shard of a split takes, equally many.

    Args:
      image_bytes: int `n`, about how large the example of each image is.
      num_shards: how many, at most one an image; None takes the number that TFDS takes by size, at most `MAX_SHARDS`.
    """
    number = len(image_bytes)
    by_size = shard_utils.ShardConfig.calculate_number_shards(int(image_bytes.sum()), number)
    ends = shard_utils.get_shard_boundaries(number, num_shards or min(by_size, MAX_SHARDS))
    return [range(begin, end) for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def write_shard(stem: Path, split: str, examples: Iterable[Examples], description: str) -> None:
    """Write the files of a shard; see the top of this file.

    Another process may write the same shard at the same time: whichever ends last replaces the same by the same.

    Args:
      stem: their folder and the number of the shard.
      split: name of the split.
      examples: of successive images.
      description: of what decides the examples.
    """
    target, stem = stem, stem.with_name(f"{stem.name}-{secrets.token_hex(8)}")
    whole = Examples(Report(split))
    num_bytes = 0

    def records() -> Iterator[tuple[int, bytes]]:
        nonlocal num_bytes
        for made in examples:
            whole.report.merge(made.report)
            for name in ("image_ids", "sizes", "labels", "has_mask", "images", "annotations"):
                getattr(whole, name).extend(getattr(made, name))
            num_bytes += sum(map(len, made.records))
            # Without keys: nothing is sorted.
            yield from ((0, record) for record in made.records)

    ArrayRecordFileAdapter.write_examples(stem.with_suffix(".array_record"), records())
    with stem.with_suffix(".ground_truth").open("w") as file:
        file.write(", ".join(whole.images) + "\n" + ", ".join(whole.annotations) + "\n")
    np.savez(
        stem.with_suffix(".npz"),
        image_ids=np.array(whole.image_ids, np.int64),
        sizes=np.array(whole.sizes, np.int32).reshape(-1, 2),
        num_objects=np.array([len(labels) for labels in whole.labels], np.int32),
        labels=np.concatenate([np.zeros(0, np.int32), *whole.labels]),
        has_mask=np.concatenate([np.zeros(0, bool), *whole.has_mask]),
        num_bytes=np.int64(num_bytes),
        file_bytes=np.array(_file_bytes(stem), np.int64),
        report=np.array(json.dumps(dataclasses.asdict(whole.report))),
        description=np.array(description),
    )
    # That of an older shard of another description would say that this one is it, if the process ended here.
    target.with_suffix(".npz").unlink(missing_ok=True)
    for suffix in (".array_record", ".ground_truth", ".npz"):
        stem.with_suffix(suffix).replace(target.with_suffix(suffix))


def num_whole(stem: Path, description: str) -> int | None:
    """Return how many examples a shard of a description has, or None if there is no whole one, and it is to be made."""
    try:
        with stem.with_suffix(".npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
            # All of it, lest damage shows only when the shards are joined.
            shard = dict(stored)
        is_whole = shard["description"] == description and np.array_equal(shard["file_bytes"], _file_bytes(stem))
        return len(shard["image_ids"]) if is_whole else None
    # A file is missing, or damaged by a full disk or a power cut: zipfile, zlib and NumPy have many errors for that.
    except Exception:
        return None


def _file_bytes(stem: Path) -> list[int]:
    return [stem.with_suffix(suffix).stat().st_size for suffix in (".array_record", ".ground_truth")]


def join(
    stems: Sequence[Path],
    directory: Path,
    report: Report,
    header: Mapping[str, Any],
    *,
    num_images: int,
    fewest_images: int,
) -> tfds.core.SplitInfo:
    """Turn the shards of a split into its files of a prepared directory; the shards stay until their folder goes.

    A shard whose images are all left out makes no file.

    Args:
      stems: those of `write_shard`, in order.
      directory: of the dataset.
      report: of the split, what reading its annotations found; what its examples found is added.
      header: the entries of the ground truth besides images and annotations.
      num_images: of the split, with those that are left out.
      fewest_images: that are to be kept.

    Returns:
      What TFDS has to know of the split.

    Raises:
      ValueError: fewer are kept.
    """
    name = report.split
    kept = []
    shards = []
    for stem in stems:
        with np.load(stem.with_suffix(".npz"), allow_pickle=False) as stored:
            shard = dict(stored)
        report.merge(Report(**json.loads(str(shard.pop("report")))))
        if len(shard["image_ids"]):
            kept.append(stem)
            shards.append(shard)
    shard_lengths = [len(shard["image_ids"]) for shard in shards]
    if sum(shard_lengths) < fewest_images:
        raise ValueError(
            f"split {name!r}: {sum(shard_lengths)} of {num_images} images can be read; expected at least "
            f"{fewest_images}, one for each shard"
        )
    template = tfds.core.ShardedFileTemplate(
        data_dir=directory, dataset_name=DATASET, split=name, filetype_suffix=ArrayRecordFileAdapter.FILE_SUFFIX
    )
    for number, stem in enumerate(kept):
        target = template.sharded_filepath(shard_index=number, num_shards=len(kept))
        _link(stem.with_suffix(".array_record"), Path(target))
    index = {
        key: np.concatenate([shard[key] for shard in shards])
        for key in ("image_ids", "sizes", "num_objects", "labels", "has_mask")
    }
    with (directory / f"index_{name}.npz").open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **index)
    _join_ground_truth(
        [stem.with_suffix(".ground_truth") for stem in kept], directory / f"annotations_{name}.json", header
    )
    (directory / f"report_{name}.json").write_text(json.dumps(report.to_json(), indent=2))
    return tfds.core.SplitInfo(
        name=name,
        shard_lengths=shard_lengths,
        num_bytes=sum(int(shard["num_bytes"]) for shard in shards),
        filename_template=template,
    )


def _join_ground_truth(parts: Sequence[Path], target: Path, header: Mapping[str, Any]) -> None:
    """Write what `json.dumps` writes of the whole, a shard at a time."""
    with target.open("w") as file:
        file.write("{" + "".join(f"{json.dumps(key)}: {json.dumps(value)}, " for key, value in header.items()))
        for line, key in enumerate(("images", "annotations")):
            file.write(f'"{key}": [')
            written = False
            for part in parts:
                text = part.read_text().split("\n")[line]
                file.write(", " * (written and bool(text)) + text)
                written = written or bool(text)
            file.write("], " if line == 0 else "]}")


def link_splits(output: Path, directory: Path) -> list[tfds.core.SplitInfo]:
    """Give a dataset's files another place too, without a copy where the disk allows it; return its splits there."""
    infos = []
    for name, info in tfds.builder_from_directory(output).info.splits.items():
        infos.append(
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=info.shard_lengths,
                num_bytes=info.num_bytes,
                filename_template=info.filename_template.replace(data_dir=directory),
            )
        )
        companions = (f"index_{name}.npz", f"annotations_{name}.json", f"report_{name}.json")
        for path in (*map(Path, info.filepaths), *(output / companion for companion in companions)):
            _link(path, directory / path.name)
    return infos


def _link(path: Path, target: Path) -> None:
    """Give a file another place too, without a copy where the disk allows it."""
    try:
        os.link(path, target)
    except OSError:
        shutil.copy2(path, target)


def write_info(directory: Path, features: tfds.features.FeaturesDict, splits: Sequence[tfds.core.SplitInfo]) -> None:
    """Write the files by which TFDS knows a directory as a dataset."""
    identity = tfds.core.dataset_info.DatasetIdentity(
        name=DATASET,
        version=tfds.core.Version("1.0.0"),
        data_dir=str(directory),
        module_name="maskx_jax.data.coco.builder",
    )
    info = tfds.core.DatasetInfo(
        builder=identity,
        description="Images with boxes, and masks where there are any; made by `python -m maskx_jax prepare`.",
        features=features,
        # Example i of the data is image i of the index.
        disable_shuffling=True,
    )
    info.set_file_format("array_record")
    info.set_splits(tfds.core.splits.SplitDict(list(splits)))
    info.write_to_directory(directory)
