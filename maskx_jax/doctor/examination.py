"""Looks at the splits of a dataset and says what was found: what `python -m maskx_jax doctor` does.

    from maskx_jax.doctor.examination import examine

    found = examine({"train": ("train.json", "images/train"), "val": ("val.json", "images/val")})
    print(found.table())

doctor.json holds `found.to_json()`.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskx_jax.coco.garbage import no_garbage_collection
from maskx_jax.doctor import keypoints, objects, pictures, sets, shapes, statistics, structure
from maskx_jax.doctor.advice import Advice, advise
from maskx_jax.doctor.causes import LEVELS
from maskx_jax.doctor.structure import Split


@dataclasses.dataclass(frozen=True)
class Examination:
    """What was found in the splits of a dataset.

    Attributes:
      splits: in their order, each with its `findings`, and its `changes` where they were asked for.
      statistics: of each split, what `statistics.measure` returns.
      advice: what the config could have otherwise; none without one.
      canvas: how the objects of the first split lie on the config's canvas; empty without one.
    """

    splits: dict[str, Split]
    statistics: dict[str, dict[str, Any]]
    advice: list[Advice] = dataclasses.field(default_factory=list)
    canvas: dict[str, Any] = dataclasses.field(default_factory=dict)

    def count(self, level: str) -> int:
        """Return the number of cases of "error", "warning" or "note" in all splits."""
        return sum(split.findings.count(level) for split in self.splits.values())

    def to_json(self) -> dict[str, Any]:
        """Return what doctor.json holds."""
        return {
            "totals": {level: self.count(level) for level in LEVELS},
            "splits": {
                name: {
                    "annotations": str(split.path),
                    "pictures": None if split.folder is None else str(split.folder),
                    "num_images": len(split.images),
                    "num_annotations": len(split.annotations),
                    "findings": [finding.to_json() for finding in split.findings],
                    "statistics": self.statistics[name],
                }
                for name, split in self.splits.items()
            },
            "advice": [dataclasses.asdict(advice) for advice in self.advice],
            "canvas": self.canvas,
        }

    def table(self) -> str:
        """Return what was found as text, a line for each cause."""
        parts = []
        for name, split in self.splits.items():
            where = "pictures not looked at" if split.folder is None else f"pictures in {split.folder}"
            numbers = {level: split.findings.count(level) for level in LEVELS}
            counts = ", ".join(f"{number} {level}{'s' * (number != 1)}" for level, number in numbers.items())
            head = f"split {name}: {len(split.images)} images, {len(split.annotations)} annotations ({where}): {counts}"
            parts.append(f"{head}\n{split.findings.table()}".rstrip())
        if self.advice:
            parts.append("\n".join(["advice", *(f"  {advice.line()}" for advice in self.advice)]))
        return "\n\n".join(parts)


def examine(
    splits: Mapping[str, tuple[str | Path, str | Path | None]],
    *,
    config: Mapping[str, Any] | None = None,
    keep_changes: bool = False,
) -> Examination:
    """Look at COCO files and their pictures; nothing is written.

    Args:
      splits: for each split its annotations (JSON) and its folder of images, or None: no picture is looked at. The
        first one is taken as that which is trained on.
      config: to advise on, as of training.
      keep_changes: whether `changes` of the splits say what a repair changes.

    Raises:
      OSError: a file cannot be read, or a folder does not exist.
      ValueError: a file is not JSON.
    """
    if not splits:
        raise ValueError("there is no split to look at; expected at least one")
    read, found, seen = {}, {}, {}
    with no_garbage_collection():
        for name, (path, folder) in splits.items():
            where = None if folder is None else Path(folder).expanduser()
            split = read[name] = structure.read(name, Path(path).expanduser(), where, keep_changes)
            seen[name] = pictures.examine(split)
            structure.mend_box_format(split)
            found[name] = objects.examine(split)
            keypoints.examine(split)
            shapes.examine(split, found[name])
            sets.examine(split, found[name])
    measured = {name: statistics.measure(split, found[name]) for name, split in read.items()}
    in_order = list(read.values())
    advice, canvas = ([], {}) if config is None else advise(in_order[0], found[in_order[0].name], config)
    sets.compare(in_order, found)
    keypoints.compare(in_order)
    pictures.compare(in_order, seen)
    return Examination(read, measured, advice, canvas)
