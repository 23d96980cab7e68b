"""Self-training: a run labels the objects that have only boxes, learns from their masks too, and labels them again.

The output holds a folder for each round, `1`, `2` and so on, and `rounds.json`, what came of them. In a round's folder
are `train.json`, the annotations with predicted masks, `data`, a dataset prepared from them, and `run`, the run that
learned from it. Whatever is finished there is not done again.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from maskx_jax import errors, files
from maskx_jax.data.coco.annotations import read_instances
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.predicted import is_predicted
from maskx_jax.data.coco.report import Report
from maskx_jax.evaluation.scores import flatten
from maskx_jax.labelling.label import THRESHOLD, label
from maskx_jax.runs import workdir as workdirs
from maskx_jax.runs.logs import info, read_metrics
from maskx_jax.training.checks import check_config
from maskx_jax.training.loop import PARTS, Parts, train

ROUNDS_FILE = "rounds.json"
# Annotations (JSON) and folder of images of each split, by its name.
Splits = Mapping[str, tuple[str | pathlib.Path, str | pathlib.Path]]
# Every evaluation measures the first.
_SHOWN = {
    "box AP": "bbox/all/AP",
    "mask AP": "segm/all/AP",
    "mask AP on A": "segm/A/AP",
    "mask AP on B": "segm/B/AP",
    "harmonic mean": "segm/harmonic_mean",
}


@dataclasses.dataclass(frozen=True)
class Round:
    """What came of a round; round 0 is the run that labels first, which has metrics alone.

    Attributes:
      metrics: of its last evaluation, see `evaluation.scores.flatten`; empty where training evaluates nothing.
      num_boxes_only: objects of the training set whose own mask is missing, or may not be used.
      num_masks: how many of them have a predicted mask.
      mean_quality: of these masks; None where there are none.
    """

    metrics: Mapping[str, float | None]
    num_boxes_only: int | None = None
    num_masks: int | None = None
    mean_quality: float | None = None


def config_of_rounds(workdir: str | pathlib.Path, num_steps: int | None = None) -> ConfigDict:
    """Return how each round trains: as the first run did, in fewer steps, from what the round before has learned.

    The classes are scored in the groups of the first run, although those of B have masks to learn from now.

    Args:
      workdir: of the run that labels first.
      num_steps: of a round, by default a quarter of the run's; warm-up and decays of the learning rate, and the warm-up
        of box losses, come as much earlier.

    Raises:
      FileNotFoundError: the directory holds no run.
      ValueError: it is damaged.
    """
    config = workdirs.read_config(workdir)
    if num_steps is None:
        num_steps = max(1, config.train.num_steps // 4)
    fraction = num_steps / config.train.num_steps
    groups = workdirs.read_group_names(workdir)
    chosen = config.evaluation.mask_classes or config.data.mask_classes
    if groups is not None or chosen == "annotated":
        # Without groups all classes are scored together, whatever masks they come to have.
        chosen = ConfigDict(groups) if groups else "all"
    with config.ignore_type():
        config.data.update(source="prepared", mask_classes="annotated")
        config.evaluation.mask_classes = chosen
        config.initialize.update(new=(), unused=(), classes=(), keep=())
        optimizer = config.optimizer
        optimizer.decay_steps = tuple(round(fraction * step) for step in optimizer.decay_steps)
        optimizer.warmup_steps = round(fraction * optimizer.warmup_steps)
        # Only R-CNNs have any; runs from before there were any do not say.
        if supervision := config.model.get(config.model.family, {}).get("box_supervision"):
            supervision.warmup_steps = round(fraction * supervision.warmup_steps)
        config.train.num_steps = num_steps
    return config


def self_train(
    output: str | pathlib.Path,
    *,
    workdir: str | pathlib.Path,
    splits: Splits,
    config: ConfigDict | None = None,
    rounds: int = 2,
    threshold: float = THRESHOLD,
    skip_bad_images: bool = False,
    drop_unknown: bool = False,
    allow_outside: bool = False,
    parts: Parts = PARTS,
) -> list[Round]:
    """Label, prepare and train in rounds; return what came of the first run and of each round.

    In each round masks are predicted for the objects that the first run had none of, in round 1 by that run and later
    by the run of the round before. The weight of such a mask in the loss is its quality. What is scored against are
    human-drawn masks alone.

    Args:
      output: folder of the rounds, on a local disk; rounds that were begun there are continued.
      workdir: of the run that labels first.
      splits: annotations (JSON) and folder of images of the splits that the run trains and evaluates on, by their
        names in its config.
      config: of every round's run, but for `data.directory` and `initialize.path`; see `config_of_rounds`.
      rounds: how many there are.
      threshold: quality from which a mask is taken, 0 to 1.
      skip_bad_images: leave out images that cannot be read, instead of stopping.
      drop_unknown: leave out annotations of unknown categories and images, instead of stopping.
      allow_outside: take image files outside their folder, named by an absolute path or by `..`.
      parts: see `training.loop.train`.

    Raises:
      InterruptedRun: SIGTERM or SIGINT came in training; another call continues.
      FileNotFoundError: an input is missing.
      ValueError: an input or a field of the config is unsound, the model makes no masks, the evaluation's masks are
        predicted, the run is itself that of a round, or the rounds were begun with other arguments.
    """
    output, workdir = _absolute(output), _absolute(workdir)
    splits = {name: (_absolute(annotations), _absolute(images)) for name, (annotations, images) in splits.items()}
    first, config = workdirs.read_config(workdir), config or config_of_rounds(workdir)
    # Before hours of labelling.
    check_config(config, jax.device_count())
    _check(workdir, splits, config, rounds, drop_unknown, allow_outside)
    training = _Training(
        splits=splits,
        config=config,
        threshold=threshold,
        # The human-drawn masks of other classes stay unused in all rounds.
        mask_classes=first.data.mask_classes,
        skip_bad_images=skip_bad_images,
        drop_unknown=drop_unknown,
        allow_outside=allow_outside,
        parts=parts,
    )
    # Without skip_bad_images, drop_unknown and allow_outside: they change nothing of what is read without them, and the
    # next call may answer an error by one.
    begun = {
        "workdir": workdir,
        "splits": splits,
        "threshold": threshold,
        "config": {name: new for name, (_, new) in workdirs.changed_fields(first, config).items()},
    }
    begun = json.loads(json.dumps(begun, default=os.fspath))
    with contextlib.closing(workdirs.lock(output)):
        done = _read_rounds(output / ROUNDS_FILE, begun) or [Round(_last_metrics(workdir))]
        for number in range(len(done), rounds + 1):
            # In round 1 too: what a killed call leaves is continued by one with the same arguments only.
            _write_rounds(output / ROUNDS_FILE, begun, done)
            folder = output / str(number)
            info(f"round {number} of {rounds}: {folder}")
            done.append(training.round(folder, output / str(number - 1) / "run" if number > 1 else workdir))
        _write_rounds(output / ROUNDS_FILE, begun, done)
    return done[: rounds + 1]


def table(rounds: Sequence[Round]) -> str:
    """Return the rounds as text: masks, their mean quality, and the scores in percent."""
    shown = {title: name for title, name in _SHOWN.items() if any(one.metrics.get(name) is not None for one in rounds)}
    titles = ["round", "masks", "quality", *shown]
    rows = [titles]
    for number, one in enumerate(rounds):
        scores = [one.metrics.get(name) for name in shown.values()]
        masks = "-" if one.num_masks is None else f"{one.num_masks} of {one.num_boxes_only}"
        quality = "-" if one.mean_quality is None else f"{one.mean_quality:.2f}"
        rows.append([str(number), masks, quality, *("-" if s is None else f"{100 * s:.1f}" for s in scores)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)


@dataclasses.dataclass(frozen=True)
class _Training:
    """What the rounds have in common; see `self_train`."""

    splits: Splits
    config: ConfigDict
    threshold: float
    mask_classes: str | Sequence[str]
    skip_bad_images: bool
    drop_unknown: bool
    allow_outside: bool
    parts: Parts

    def round(self, folder: pathlib.Path, before: str | pathlib.Path) -> Round:
        """Label by the run `before` and train from it on what it has labelled; continue what is in the folder."""
        annotations, data, run = folder / "train.json", folder / "data", folder / "run"
        train_split = self.config.data.train_split
        source, images = self.splits[train_split]
        folder.mkdir(exist_ok=True)
        if not annotations.exists():
            report = label(
                source,
                annotations,
                workdir=before,
                images=images,
                threshold=self.threshold,
                mask_classes=self.mask_classes,
                skip_bad_images=self.skip_bad_images,
                drop_unknown=self.drop_unknown,
                allow_outside=self.allow_outside,
            )
            info(report.table())
        if not data.exists():
            splits = {**self.splits, train_split: (annotations, images)}
            prepare(
                data,
                splits,
                skip_bad_images=self.skip_bad_images,
                drop_unknown=self.drop_unknown,
                allow_outside=self.allow_outside,
                predicted_masks="use",
                num_workers=None,
            )
        config = self.config.copy_and_resolve_references()
        with config.ignore_type():
            config.data.directory, config.initialize.path = str(data), os.fspath(before)
        metrics = train(config, str(run), parts=self.parts)
        counts = json.loads(annotations.with_suffix(".report.json").read_bytes())
        taken = [row for row in counts["classes"].values() if row["masks"]]
        num_masks = counts["num_masks"]
        mean = sum(row["masks"] * row["mean_quality"] for row in taken) / num_masks if num_masks else None
        return Round(flatten(metrics) if metrics else _last_metrics(run), counts["num_boxes_only"], num_masks, mean)


def _absolute(path: str | pathlib.Path) -> pathlib.Path:
    # A run may lie in an object store.
    return pathlib.Path(path).expanduser().absolute() if "://" not in str(path) else epath.Path(path)


def _check(
    workdir: pathlib.Path, splits: Splits, config: ConfigDict, rounds: int, drop_unknown: bool, allow_outside: bool
) -> None:
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1")
    if (rounds_file := workdir.parent.parent / ROUNDS_FILE).exists():
        # It does not know which of the masks that it was trained on are human-drawn.
        raise ValueError(
            f"{workdir} is a round's run; expected the run that labelled first: to continue, give {rounds_file.parent} "
            "as the output, and more rounds"
        )
    train_split, eval_split = config.data.train_split, config.data.eval_split
    if train_split == eval_split:
        raise ValueError(f"the run trains and evaluates on {train_split!r}; expected a split of its own to score on")
    if splits.keys() != {train_split, eval_split}:
        raise ValueError(
            f"got the splits {', '.join(sorted(splits))}; expected those that the run trains and evaluates on: "
            f"{train_split}, {eval_split}"
        )
    path = pathlib.Path(splits[eval_split][0])
    instances = read_instances(path, Report("annotations"), drop_unknown, allow_outside)
    predicted = [a["id"] for objects in instances.annotations.values() for a in objects if is_predicted(a)]
    if predicted:
        raise ValueError(
            f"{path}: the masks of annotations {errors.some(predicted)} are predicted; expected human-drawn masks to "
            "score against"
        )


def _write_rounds(path: pathlib.Path, begun: Mapping[str, Any], rounds: Sequence[Round]) -> None:
    files.write_json(path, {"begun": begun, "rounds": [dataclasses.asdict(one) for one in rounds]})


def _read_rounds(path: pathlib.Path, begun: Mapping[str, Any]) -> list[Round]:
    """Return the rounds that are finished, none where there is no file of them.

    Raises:
      ValueError: they were begun with other arguments, or the file is damaged.
    """
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
        before, rounds = dict(content["begun"]), [Round(**fields) for fields in content["rounds"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {errors.one_line(error)}; expected what an earlier call has written") from error
    changed = [
        f"{name}: {before.get(name)!r} -> {value!r}" for name, value in begun.items() if before.get(name) != value
    ]
    if changed:
        raise ValueError(
            f"{path.parent} was begun with other arguments: {'; '.join(changed)}; take another folder for the output"
        )
    return rounds


def _last_metrics(workdir: str | pathlib.Path) -> Mapping[str, float | None]:
    """Return the numbers of a run's last evaluation; nothing where it has made none."""
    evaluated = [line for line in read_metrics(os.fspath(workdir)) if _SHOWN["box AP"] in line]
    return {name: value for name, value in evaluated[-1].items() if name != "step"} if evaluated else {}
