"""Reads one split of a prepared dataset by index; `builder` says what such a directory holds."""

import contextlib
import dataclasses
import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from maskx_jax import errors
from maskx_jax.coco.categories import Categories
from maskx_jax.coco.keypoints import Skeleton, skeletons_of
from maskx_jax.data.coco.shard_files import allow_open_files, check_files
from maskx_jax.data.records import BrokenRecordError, Record, identity_of
from maskx_jax.structures import Keypoints

CATEGORIES_FILE = "categories.json"
_TFDS_FEATURES = "tensorflow_datasets.core.features."
_LARGEST_INDEX_BYTES = 2**31
_INDEX_ARRAYS = ("image_ids", "sizes", "num_objects", "labels", "has_mask")
# Those of this process that are in use: together they must not open more files than it may.
_open_sources: weakref.WeakSet["CocoSource"] = weakref.WeakSet()


class CocoSource:
    """One split of a prepared dataset, read by index; see `records.Source`.

    Args:
      directory: what `prepare` wrote, on a local disk or an object store.
      split: its name.

    Raises:
      FileNotFoundError: there is no prepared dataset, or no such split; the message names those that exist.
      OSError: it has more files than this process may open.
      ValueError: the dataset is damaged, a file of records missing or cut off, or it asks for code that is not TFDS's
        own.
    """

    def __init__(self, directory: str | Path, split: str) -> None:
        self._directory = epath.Path(directory).expanduser()
        categories = self._directory / CATEGORIES_FILE
        if not categories.exists():
            raise FileNotFoundError(
                f"{self._directory}: expected a dataset made by prepare; found no {categories.name}"
            )
        self._split = split
        index = self._directory / f"index_{split}.npz"
        if not index.exists():
            found = sorted(path.stem.removeprefix("index_") for path in self._directory.glob("index_*.npz"))
            raise FileNotFoundError(f"{self._directory}: found no split {split!r}; it has {found}")
        with _damage_named(categories):
            entries = json.loads(categories.read_bytes())
            self.categories = Categories.from_coco(entries)
            self.skeleton: Skeleton | None = next(iter(skeletons_of(entries).values()), None)
        with _damage_named(index):
            arrays = _read_index(index, len(self.categories))
        self.image_ids, self.sizes = arrays["image_ids"], arrays["sizes"]
        index_arrays = [arrays[name] for name in _INDEX_ARRAYS]
        named = [str(self.skeleton)] if self.skeleton else []
        self.identity = identity_of(self.categories, len(self.sizes), *index_arrays, *named)
        ends = np.cumsum(arrays["num_objects"])[:-1]
        self.image_labels = np.split(arrays["labels"], ends)
        self.image_has_mask = np.split(arrays["has_mask"], ends)
        with _damage_named(self._directory):
            _check_features(self._directory / "features.json")
            builder = tfds.builder_from_directory(self._directory)
            self._records = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
            if len(self._records) != len(self.sizes):
                raise ValueError(f"{len(self._records)} records in split {split!r}; its index has {len(self.sizes)}")
            files = {file.filename: file.examples_in_shard for file in builder.info.splits[split].file_instructions}
            self._num_files = len(files)
            _open_sources.add(self)
            allow_open_files(sum(source._num_files for source in _open_sources))
            check_files(files)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of a split of {len(self)}")
        records = self._records
        try:
            example = records[index]
        except (MemoryError, OSError):
            raise
        except Exception as error:
            # ArrayRecord has one error for all: what is not corrupted could not be read for the moment.
            if isinstance(error, RuntimeError) and not str(error).startswith("Corrupted"):
                # A file that could not be opened, or that is stale, stays so in what has it open.
                if self._records is records:
                    self._records = dataclasses.replace(records)
                raise OSError(f"{self._directory}: split {self._split!r} cannot be read: {error}") from error
            raise BrokenRecordError(f"its record cannot be decoded: {error}") from error
        objects = example["objects"]
        return Record(
            image=bytes(example["image"]),
            image_id=int(example["image_id"]),
            size=(int(example["height"]), int(example["width"])),
            boxes=objects["boxes"],
            labels=objects["labels"],
            masks=objects["masks"],
            mask_frames=objects["mask_frames"],
            has_mask=objects["has_mask"],
            is_crowd=objects["is_crowd"],
            keypoints=_keypoints(objects.get("keypoints")) if self.skeleton else None,
            mask_weight=objects.get("mask_weight"),
            is_predicted=objects.get("is_predicted"),
        )

    def coco_ground_truth(self) -> dict:
        """Return the annotations that `prepare` kept, as a COCO instances dictionary."""
        path = self._directory / f"annotations_{self._split}.json"
        with _damage_named(path):
            return json.loads(path.read_bytes())


def _keypoints(stored: np.ndarray | None) -> Keypoints | None:
    if stored is None:
        return None
    return Keypoints(points=stored[..., :2], labelled=stored[..., 2] > 0, visible=stored[..., 2] == 2)


@contextlib.contextmanager
def _damage_named(path: epath.Path) -> Iterator[None]:
    """Turn what reading a damaged file of a prepared dataset raises into one error that names it."""
    try:
        yield
    except (MemoryError, OSError):
        raise
    # zipfile, zlib, json, protocol buffers and TFDS have an error each, and a RecursionError is possible too.
    except Exception as error:
        raise ValueError(
            f"{path} is damaged, prepare the dataset again: {type(error).__name__}: {errors.one_line(error)}"
        ) from error


def _read_index(path: epath.Path, num_categories: int) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
        # What a few kilobytes can be made to unpack to.
        if (num_bytes := sum(entry.file_size for entry in stored.zip.infolist())) > _LARGEST_INDEX_BYTES:
            raise ValueError(f"its arrays take {num_bytes} bytes; expected at most {_LARGEST_INDEX_BYTES}")
        arrays = {name: stored[name] for name in _INDEX_ARRAYS}
    num_images, num_objects = len(arrays["image_ids"]), len(arrays["labels"])
    shapes = [(num_images,), (num_images, 2), (num_images,), (num_objects,), (num_objects,)]
    for (name, array), shape in zip(arrays.items(), shapes, strict=True):
        kind = "b" if name == "has_mask" else "i"
        if array.shape != shape or array.dtype.kind != kind:
            raise ValueError(f"{name} is {array.dtype} {array.shape}; expected {shape} of kind {kind!r}")
    if num_images == 0 or arrays["sizes"].min() < 1 or len(set(arrays["image_ids"].tolist())) != num_images:
        raise ValueError("expected images with ids of their own, and sizes of 1 or more")
    if arrays["num_objects"].min() < 0 or arrays["num_objects"].sum() != num_objects:
        raise ValueError(f"num_objects adds up to {arrays['num_objects'].sum()}; expected {num_objects}")
    if num_objects and not 1 <= arrays["labels"].min() <= arrays["labels"].max() <= num_categories:
        raise ValueError(
            f"labels go from {arrays['labels'].min()} to {arrays['labels'].max()}; expected 1 to {num_categories}"
        )
    return arrays


def _check_features(path: epath.Path) -> None:
    """Admit only TFDS's own features: to read any other, TFDS imports whatever module the file names."""
    todo = [json.loads(path.read_bytes())]
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            for key, value in node.items():
                # Both spellings that protocol buffers take, and TFDS's older form.
                is_class = key in ("pythonClassName", "python_class_name", "type") and isinstance(value, str)
                if is_class and not value.startswith(_TFDS_FEATURES):
                    raise ValueError(f"{path.name} names the class {value!r}; expected one of {_TFDS_FEATURES}*")
        todo += node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
