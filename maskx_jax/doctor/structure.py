"""Reads a COCO file whatever state it is in: names what is wrong with its structure, and goes on with what is sound.

The rules are `data.coco.annotations`', which `prepare` stops at; here each is counted, and mended in memory.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskx_jax import files
from maskx_jax.coco.categories import Categories
from maskx_jax.data.coco import annotations as rules
from maskx_jax.data.coco.annotations import SECTIONS, Fault
from maskx_jax.doctor.findings import Change, Findings


@dataclasses.dataclass
class Split:
    """A COCO file that is mended as far as it is looked at.

    Attributes:
      name: of the split.
      path: the file.
      folder: of its pictures, or None where they are not looked at.
      header: its entries besides the three lists.
      categories: the bijection between labels and category ids.
      images: with sound and unique ids and names.
      annotations: with sound and unique ids that refer to these categories and images.
      findings: what was found.
      changes: what was mended, where `keeps_changes`.
    """

    name: str
    path: Path
    folder: Path | None
    keeps_changes: bool = False
    header: dict[str, Any] = dataclasses.field(default_factory=dict)
    categories: Categories = dataclasses.field(default_factory=lambda: Categories((), ()))
    category_entries: list[dict] = dataclasses.field(default_factory=list)
    images: list[dict] = dataclasses.field(default_factory=list)
    annotations: list[dict] = dataclasses.field(default_factory=list)
    findings: Findings = dataclasses.field(default_factory=Findings)
    changes: list[Change] = dataclasses.field(default_factory=list)

    def sizes(self) -> np.ndarray:
        """Return int64 `n 2`: height and width of each image, 0 where they are not known."""
        pairs = [(image.get("height") or 0, image.get("width") or 0) for image in self.images]
        return np.array(pairs, np.int64).reshape(-1, 2)

    def change(self, section: str, entry: dict, cause: str | Sequence[str], **after: Any) -> None:
        """Give fields of an entry other values."""
        if self.keeps_changes:
            causes = [cause] if isinstance(cause, str) else cause
            before = {key: entry[key] for key in after if key in entry}
            self.changes.append(Change(section, entry.get("id"), causes, before, after))
        entry.update(after)

    def drop(self, section: str, entry: dict, cause: str | Sequence[str]) -> None:
        """Note that an entry is left out; who calls takes it out of the list."""
        if self.keeps_changes:
            causes = [cause] if isinstance(cause, str) else cause
            self.changes.append(Change(section, entry.get("id"), causes, dict(entry), None))

    def to_coco(self) -> dict[str, Any]:
        """Return it as a COCO instances dictionary; its entries are the same objects."""
        lists = {"images": self.images, "annotations": self.annotations, "categories": self.category_entries}
        return {**self.header, **lists}


def read(name: str, path: Path, folder: Path | None, keeps_changes: bool = False, allow_outside: bool = False) -> Split:
    """Read a COCO file and mend its structure in memory.

    Raises:
      OSError: it cannot be read.
      ValueError: it is not JSON, or no object at its top.
    """
    constants: collections.Counter[str] = collections.Counter()

    def constant(text: str) -> float:
        constants[text] += 1
        return float(text)

    content = files.read_json(path, parse_constant=constant)
    split = Split(name, path, folder, keeps_changes)
    for text, number in constants.items():
        split.findings.add("file_constants", text, f"{number} times")
    with path.open("rb") as file:
        if file.read(3) == b"\xef\xbb\xbf":
            split.findings.add("file_mark", path.name)
    _read_sections(split, content)
    categories = _mend_categories(split)
    images = _mend_images(split, allow_outside)
    _mend_annotation_ids(split)
    _mend_references(split, {"category_id": categories, "image_id": images})
    _mend_flags(split)
    return split


def _read_sections(split: Split, content: Any) -> None:
    for fault in rules.section_faults(content):
        if fault.cause == "file_no_object":
            raise ValueError(f"{split.path}: {fault.message}")
        split.findings.add(fault.cause, split.path.name, fault.message)
    sections = {key: content.pop(key, None) for key in SECTIONS}
    lists = {key: value if isinstance(value, list) else [] for key, value in sections.items()}
    sound = {
        key: entries
        if all(isinstance(entry, dict) for entry in entries)
        else [e for e in entries if isinstance(e, dict)]
        for key, entries in lists.items()
    }
    split.header = content
    split.images, split.annotations, split.category_entries = (sound[key] for key in SECTIONS)
    for key in ("images", "categories"):
        if not sound[key]:
            split.findings.add(f"{key}_empty", split.path.name)


def _mend_categories(split: Split) -> dict[Any, int]:
    """Return what references to the ids as they were become."""
    entries = split.category_entries
    _add(split.findings, (fault for fault in rules.category_faults(entries) if fault.cause == "category_invalid"))
    new_ids = _mend_ids(split, "categories", "category_invalid")
    kept: list[dict] = []
    ids: set[int] = set()
    names: set[str] = set()
    for entry in entries:
        if not isinstance(entry.get("name"), str):
            split.change("categories", entry, "category_invalid", name=str(entry["id"]))
        if entry["id"] in ids:
            split.findings.add("category_repeated", entry["id"], f"its name is {entry['name']!r}")
            split.drop("categories", entry, "category_repeated")
            continue
        if entry["name"] in names:
            split.findings.add("category_repeated", entry["id"], f"the name {entry['name']!r} is another's")
            split.change("categories", entry, "category_repeated", name=f"{entry['name']} ({entry['id']})")
        kept.append(entry)
        ids.add(entry["id"])
        names.add(entry["name"])
    split.category_entries = kept
    split.categories = Categories.from_coco(kept)
    _look_at_category_ids(split)
    return new_ids


def _look_at_category_ids(split: Split) -> None:
    ids = split.categories.ids
    if not ids:
        return
    if min(ids) < 0:
        split.findings.add("category_negative", min(ids))
    if 0 in ids:
        split.findings.add("category_zero", 0)
    if ids[-1] - ids[0] + 1 > len(ids):
        split.findings.add("category_gaps", split.path.name, f"{len(ids)} ids from {ids[0]} to {ids[-1]}")
    alike: dict[str, list[str]] = {}
    for name in split.categories.names:
        alike.setdefault("".join(re.split(r"[\s_-]+", name)).casefold(), []).append(name)
    for group in alike.values():
        if len(group) > 1:
            split.findings.add("category_alike", group[1], f"beside {group[0]!r}", group[1])


def _mend_images(split: Split, allow_outside: bool) -> dict[Any, int]:
    """Return what references to the ids as they were become."""
    _add(split.findings, rules.id_faults(split.images, "images"), one_by_one=True)
    new_ids = _mend_ids(split, "images", "image_id_invalid")
    kept: list[dict] = []
    ids: set[int] = set()
    first_of_file: dict[str, int] = {}
    for image in split.images:
        if image["id"] in ids:
            split.drop("images", image, "image_id_repeated")
            continue
        faults = list(rules.image_faults(image, allow_outside))
        _add(split.findings, faults)
        causes = {fault.cause for fault in faults}
        if "file_name_invalid" in causes:
            split.drop("images", image, "file_name_invalid")
            continue
        if "image_size_invalid" in causes:
            split.change("images", image, "image_size_invalid", height=None, width=None)
        first = first_of_file.setdefault(image["file_name"], image["id"])
        if first != image["id"]:
            split.findings.add("image_same_file", image["id"], f"{image['file_name']!r} is the file of image {first}")
        kept.append(image)
        ids.add(image["id"])
    split.images = kept
    return new_ids


def _mend_annotation_ids(split: Split) -> None:
    _add(split.findings, rules.id_faults(split.annotations, "annotations"), one_by_one=True)
    _mend_ids(split, "annotations", "annotation_id_invalid")
    ids: dict[int, dict] = {}
    if len({annotation["id"] for annotation in split.annotations}) == len(split.annotations):
        return
    kept = []
    free = max(annotation["id"] for annotation in split.annotations) + 1
    for annotation in split.annotations:
        first = ids.setdefault(annotation["id"], annotation)
        if first is not annotation:
            if first == annotation:
                split.drop("annotations", annotation, "annotation_id_repeated")
                continue
            split.change("annotations", annotation, "annotation_id_repeated", id=free)
            free += 1
        kept.append(annotation)
    split.annotations = kept


def _mend_ids(split: Split, section: str, cause: str) -> dict[Any, int]:
    """Make whole numbers of ids that are none; return which became which."""
    entries = split.category_entries if section == "categories" else getattr(split, section)
    if rules.are_integers([entry.get("id") for entry in entries]):
        return {}
    wrong = [entry for entry in entries if not rules.is_integer(entry.get("id"))]
    taken = {entry["id"] for entry in entries if rules.is_integer(entry.get("id"))}
    # Texts of numbers keep their number, whatever stands before them.
    taken |= {number for entry in wrong if (number := _whole_number(entry.get("id"))) is not None}
    free = max(taken, default=0) + 1
    new_ids: dict[Any, int] = {}
    for entry in wrong:
        before = entry.get("id")
        number = _whole_number(before)
        if number is None:
            number, free = free, free + 1
        if isinstance(before, str | float):
            number = new_ids.setdefault(before, number)
        split.change(section, entry, cause, id=number)
    return new_ids


def _mend_references(split: Split, new_ids: dict[str, dict[Any, int]]) -> None:
    known = {"category_id": set(split.categories.ids), "image_id": {image["id"] for image in split.images}}
    for key, reason in (("category_id", "unknown_category"), ("image_id", "unknown_image")):
        faults = list(rules.reference_faults(split.annotations, key))
        _add(split.findings, faults)
        for fault in faults:
            (annotation,) = fault.entries
            before = annotation.get(key)
            number = new_ids[key].get(before) if isinstance(before, str | float) else None
            number = _whole_number(before) if number is None else number
            split.change("annotations", annotation, "reference_invalid", **{key: number})
        kept = []
        for annotation in split.annotations:
            if annotation[key] in known[key]:
                kept.append(annotation)
            else:
                split.findings.add(reason, annotation["id"], f"{key} {annotation[key]}")
                split.drop("annotations", annotation, reason)
        split.annotations = kept


def _mend_flags(split: Split) -> None:
    for annotation in split.annotations:
        if annotation.get("iscrowd") == 0 and "ignore" not in annotation:
            continue
        faults = list(rules.flag_faults(annotation))
        _add(split.findings, faults)
        for fault in faults:
            key = fault.cause.removesuffix("_invalid")
            number = _whole_number(annotation[key])
            split.change("annotations", annotation, fault.cause, **{key: number if number in (0, 1) else 0})
        filled = dict(annotation)
        for reason in rules.fill_flags(filled):
            split.findings.add(reason, annotation["id"])
            split.change("annotations", annotation, reason, iscrowd=filled["iscrowd"])


def mend_box_format(split: Split) -> None:
    """Find whether most boxes are fractions or corners, once all sizes are known, and make COCO's of these."""
    sizes = {image["id"]: (image.get("width"), image.get("height")) for image in split.images}
    for fault in rules.box_format_faults(split.annotations, split.images):
        split.findings.add(fault.cause, split.path.name, fault.message)
        boxes = np.array([annotation["bbox"] for annotation in fault.entries], np.float64)
        image_sizes = np.array([sizes[annotation["image_id"]] for annotation in fault.entries], np.float64)
        if fault.cause == "boxes_fractions":
            concerned = rules.are_fractions(boxes, image_sizes)
            boxes = boxes * np.tile(image_sizes, 2)
        else:
            # Few of the others can be told apart, and a tool writes all in one way.
            concerned = np.asarray((boxes[:, 2:] > boxes[:, :2]).all(axis=1))
            boxes = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
        for index in np.flatnonzero(concerned).tolist():
            split.change("annotations", fault.entries[index], fault.cause, bbox=boxes[index].tolist())


def _add(findings: Findings, faults: Iterable[Fault], one_by_one: bool = False) -> None:
    for fault in faults:
        for entry in fault.entries if one_by_one else [{"id": fault.entries[0].get("id")}]:
            findings.add(fault.cause, entry.get("id"), fault.message)


def _whole_number(value: Any) -> int | None:
    """Return the whole number that a text or a float says, or None."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value):
        return int(value)
    if isinstance(value, float) and value.is_integer() and rules.is_integer(int(value)):
        return int(value)
    return int(value) if isinstance(value, int) and rules.is_integer(int(value)) else None
