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
from ml_collections import ConfigDict

from maskx_jax import errors, files
from maskx_jax.data.coco.builder import prepare
from maskx_jax.data.coco.predicted import is_predicted
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
    """What came of a round.

    Attributes:
      num_boxes_only: objects of the training set that no person's mask is known of.
      num_masks: how many of them have a predicted mask in this round; none in round 0, the run that all began with.
      mean_quality: of these masks; None where there are none.
      metrics: of the last evaluation, see `evaluation.scores.flatten`; empty where the run evaluates nothing.
    """

    num_boxes_only: int
    num_masks: int
    mean_quality: float | None
    metrics: Mapping[str, float | None]


def config_of_rounds(workdir: str | pathlib.Path, num_steps: int | None = None) -> ConfigDict:
    """Return how each round trains: as the run did, in fewer steps, from what the round before has learned.

    The classes that are scored as A stay those of the run, although those of B have masks to learn from now.

    Args:
      workdir: of the run that labels first.
      num_steps: of a round, a quarter of the run's by default; its warm-up and decays come as much earlier.

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
    if groups is not None:
        chosen = groups.get("A", "all")
    with config.ignore_type():
        config.data.update(source="prepared", mask_classes="annotated")
        config.evaluation.mask_classes = chosen
        config.initialize.update(new=(), unused=(), classes=(), keep=())
        optimizer = config.optimizer
        optimizer.decay_steps = tuple(round(fraction * step) for step in optimizer.decay_steps)
        optimizer.warmup_steps = round(fraction * optimizer.warmup_steps)
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
    parts: Parts = PARTS,
) -> list[Round]:
    """Label, prepare and train in rounds; return what came of the run and of each round.

    Masks are predicted of the objects that the run had no masks of, by the run itself at first and then by that of the
    round before, from the same annotations each time. A mask counts in the loss by its quality. What is scored are
    masks that people have drawn.

    Args:
      output: folder of the rounds, made or gone on with; on a local disk.
      workdir: of the run that labels first.
      splits: annotations (JSON) and folder of images of the splits that the run trains and evaluates on, by their
        names in its config.
      config: of every round's run, but for `data.directory` and `initialize.path`; see `config_of_rounds`.
      rounds: how many there are.
      threshold: quality from which a mask is taken, 0 to 1.
      skip_bad_images: leave out images that cannot be read, instead of stopping.
      parts: see `training.loop.train`.

    Raises:
      InterruptedRun: SIGTERM or SIGINT came in training; given again, it goes on.
      FileNotFoundError: an input is missing.
      ValueError: an input or a field of the config is unsound, the model makes no masks, the evaluation's masks are
        predicted, or the rounds in the output were begun with other arguments.
    """
    config = config or config_of_rounds(workdir)
    # Before hours of labelling.
    check_config(config, jax.device_count())
    _check(splits, config, rounds)
    output = pathlib.Path(output)
    training = _Training(
        splits=splits,
        config=config,
        threshold=threshold,
        # The masks that people have drawn of other classes stay unused in all rounds.
        mask_classes=workdirs.read_config(workdir).data.mask_classes,
        skip_bad_images=skip_bad_images,
        parts=parts,
    )
    begun = {
        "workdir": os.fspath(workdir),
        "splits": {name: [os.fspath(path) for path in pair] for name, pair in splits.items()},
        "threshold": threshold,
        "skip_bad_images": skip_bad_images,
    }
    with contextlib.closing(workdirs.lock(output)):
        done = _read_rounds(output / ROUNDS_FILE, begun) or [Round(0, 0, None, _last_metrics(workdir))]
        for number in range(1, rounds + 1):
            folder, before = output / str(number), output / str(number - 1) / "run" if number > 1 else workdir
            if number < len(done):
                workdirs.check_resumable(workdirs.read_config(folder / "run"), config)
                continue
            info(f"round {number} of {rounds}: {folder}")
            done.append(training.round(folder, before))
            content = {"begun": begun, "rounds": [dataclasses.asdict(one) for one in done]}
            files.write_json(output / ROUNDS_FILE, content)
    return done[: rounds + 1]


def table(rounds: Sequence[Round]) -> str:
    """Return the rounds as text: masks, their mean quality, and the scores in percent."""
    shown = {title: name for title, name in _SHOWN.items() if any(one.metrics.get(name) is not None for one in rounds)}
    titles = ["round", "masks", "quality", *shown]
    rows = [titles]
    for number, one in enumerate(rounds):
        scores = [one.metrics.get(name) for name in shown.values()]
        quality = "-" if one.mean_quality is None else f"{one.mean_quality:.2f}"
        masks = f"{one.num_masks} of {one.num_boxes_only}" if number else "-"
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
    parts: Parts

    def round(self, folder: pathlib.Path, before: str | pathlib.Path) -> Round:
        """Label by the run `before`, and train from it on what it has labelled; go on with what is in the folder."""
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
            )
            info(report.table())
        if not data.exists():
            splits = {**self.splits, train_split: (annotations, images)}
            skip = self.skip_bad_images
            prepare(data, splits, skip_bad_images=skip, predicted_masks="use", num_workers=None)
        config = self.config.copy_and_resolve_references()
        with config.ignore_type():
            config.data.directory, config.initialize.path = str(data), os.fspath(before)
        metrics = train(config, str(run), parts=self.parts)
        counts = json.loads(annotations.with_suffix(".report.json").read_bytes())
        taken = [row for row in counts["classes"].values() if row["masks"]]
        num_masks = counts["num_masks"]
        mean = sum(row["masks"] * row["mean_quality"] for row in taken) / num_masks if num_masks else None
        return Round(counts["num_boxes_only"], num_masks, mean, flatten(metrics) if metrics else _last_metrics(run))


def _check(splits: Splits, config: ConfigDict, rounds: int) -> None:
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}; expected at least 1")
    needed = {config.data.train_split, config.data.eval_split}
    if splits.keys() != needed:
        raise ValueError(
            f"got the splits {', '.join(sorted(splits))}; expected those that the run trains and evaluates on: "
            f"{', '.join(sorted(needed))}"
        )
    scored = pathlib.Path(splits[config.data.eval_split][0])
    predicted = [a["id"] for a in files.read_json(scored)["annotations"] if is_predicted(a)]
    if predicted:
        raise ValueError(
            f"{scored}: the masks of annotations {errors.some(predicted)} are predicted; expected masks that people "
            "have drawn, to score against"
        )


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
