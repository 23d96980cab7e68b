"""Run the rows of a table of configs/paper.py over seeds and classes with masks, and write one table of what came out.

    python -m tools.sweep --table=1a --size=tiny --seeds=0,1,2 --output=SWEEP
    python -m tools.sweep --table=2 --masks=voc --masks=nonvoc --output=SWEEP -- --config.data.directory=DATA \\
        --config.initialize.path=R-50.pkl

Every run is a work directory of train.py in the output folder, and a row of several tables is run once. What is
finished is skipped and what is broken is resumed, so that the same command can be given again. What stands after `--`
goes to train.py. Frozen detectors that stage-wise rows need are trained first, one for each seed.
"""

import csv
import dataclasses
import json
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from configs import paper
from maskx_jax import errors
from maskx_jax.runs.logs import read_metrics

TRAIN = pathlib.Path(__file__).resolve().parents[1] / "train.py"
# Columns of the table: title, name of the metric.
METRICS = (
    ("box AP", "bbox/all/AP"),
    ("mask AP", "segm/all/AP"),
    ("mask AP on A", "segm/A/AP"),
    ("mask AP on B", "segm/B/AP"),
    ("harmonic mean", "segm/harmonic_mean"),
    ("keypoint AP", "keypoints/all/AP"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run: a row, with the masks of some classes ("" are the row's own), from a seed."""

    row: str
    masks: str
    seed: int

    def workdir(self, output: pathlib.Path) -> pathlib.Path:
        """Return where the run lies in the output folder."""
        return output / "-".join(filter(None, (_slug(self.row), _slug(self.masks), f"seed{self.seed}")))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments say; return 1 if a run failed."""
    parser = errors.ArgumentParser(prog="python -m tools.sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", action="append", choices=paper.tables(), help="repeat it for several")
    parser.add_argument("--row", action="append", choices=list(paper.ROWS), help="single rows")
    parser.add_argument("--size", choices=("full", "tiny", "lite"), default="full")
    parser.add_argument("--masks", action="append", help="voc, nonvoc, random(trial,number)...; repeat it for several")
    parser.add_argument("--seeds", default="0", help="such as 0,1,2")
    parser.add_argument("--output", required=True, type=pathlib.Path, help="folder for runs and table")
    parser.add_argument("train", nargs="*", help="after --: options of train.py")
    options = parser.parse_args(arguments)
    rows = [row for table in options.table or () for row in paper.tables()[table]] + (options.row or [])
    if not rows:
        parser.error("expected --table or --row")
    if not re.fullmatch(r"\d+(,\d+)*", options.seeds):
        parser.error(f"--seeds: got {options.seeds!r}; expected whole numbers such as 0,1,2")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    if options.output.exists() and not options.output.is_dir():
        parser.error(f"--output: {options.output} is no folder")
    options.output.mkdir(parents=True, exist_ok=True)
    rows = list(dict.fromkeys(paper.same_experiment(row, options.size) for row in rows))
    runs = [Run(row, masks, seed) for masks in options.masks or [""] for row in rows for seed in seeds]
    failed = [run for run in runs if not complete(run, options.size, options.output, options.train)]
    write_tables(runs, options.output, options.size)
    print((options.output / "table.md").read_text())
    for run in failed:
        print(f"failed: {run}: see {run.workdir(options.output) / 'log.txt'}", file=sys.stderr)
    return 1 if failed else 0


def complete(run: Run, size: str, output: pathlib.Path, extra: Sequence[str]) -> bool:
    """Train a run to its end if it has not got there; return whether it has now."""
    detector = Run(paper.DETECTOR, "", run.seed)
    options = list(extra)
    if run.row != paper.DETECTOR and paper.ROWS[run.row].stage_wise:
        if not complete(detector, size, output, extra):
            return False
        options.append(f"--config.initialize.path={detector.workdir(output)}")
    workdir = run.workdir(output)
    if final_metrics(workdir) is not None:
        return True
    workdir.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, str(TRAIN), f"--config={TRAIN.parent / 'configs/paper.py'}:row={run.row},size={size}"]
    command += [f"--config.seed={run.seed}", f"--workdir={workdir}", *mask_options(run), *options]
    print(f"training {workdir}", flush=True)
    with (workdir / "log.txt").open("a") as log:
        return subprocess.run(command, cwd=TRAIN.parent, stdout=log, stderr=log, check=False).returncode == 0


def mask_options(run: Run) -> list[str]:
    """Return the options of train.py that say which classes keep masks, and are scored as A; the oracle keeps all."""
    if not run.masks:
        return []
    scored = [f"--config.evaluation.mask_classes={run.masks}"]
    if run.row != paper.DETECTOR and paper.ROWS[run.row].has_own_masks:
        return scored
    return [*scored, f"--config.data.mask_classes={run.masks}"]


def final_metrics(workdir: pathlib.Path) -> dict[str, Any] | None:
    """Return the metrics of a run's last step, or None if it has not got there.

    Raises:
      ValueError: the run's files are damaged; it names the run.
    """
    config = workdir / "config.json"
    if not config.exists():
        return None
    try:
        num_steps = json.loads(config.read_text())["train"]["num_steps"]
        ended = [line for line in read_metrics(workdir) if line["step"] == num_steps and "bbox/all/AP" in line]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{workdir}: config.json or metrics.jsonl is no run's of train.py: {error!r}") from error
    return ended[-1] if ended else None


def write_tables(runs: Sequence[Run], output: pathlib.Path, size: str) -> None:
    """Write table.md (mean and standard deviation over the seeds, in percent) and table.csv (every run).

    A metric that a run does not have, such as AP on B where all classes have masks, is "-" in table.md and empty in
    table.csv.
    """
    finished = {run: metrics for run in runs if (metrics := final_metrics(run.workdir(output))) is not None}
    with (output / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "masks", "seed", *(name for _, name in METRICS)])
        for run, metrics in finished.items():
            writer.writerow([run.row, run.masks, run.seed, *(metrics.get(name) for _, name in METRICS)])

    titles = [title for title, _ in METRICS]
    lines = [
        "| " + " | ".join(["row", "masks", "seeds", *titles, "B, of the oracle", "paper"]) + " |",
        "|" + "---|" * (len(titles) + 5),
    ]
    for row, masks in dict.fromkeys((run.row, run.masks) for run in runs):
        of_row = [metrics for run, metrics in finished.items() if (run.row, run.masks) == (row, masks)]
        oracles = paper.ROWS[row].oracles({run.row for run in finished if run.masks == masks})
        oracle = _values(
            (metrics for run, metrics in finished.items() if run.masks == masks and run.row in oracles), "segm/B/AP"
        )
        own = _values(of_row, "segm/B/AP")
        fraction = f"{100 * statistics.mean(own) / statistics.mean(oracle):.0f} %" if own and any(oracle) else "-"
        # The paper's numbers are of COCO: the tiny size has none.
        reference = paper.ROWS[row].published(masks) if size == "full" else None
        cells = [_mean(of_row, name) for _, name in METRICS]
        lines.append(
            f"| {' | '.join([row, masks or 'own', str(len(of_row)), *cells, fraction, str(reference or '-')])} |"
        )
    (output / "table.md").write_text("\n".join(lines) + "\n")


def _values(runs: Iterable[Mapping[str, Any]], name: str) -> list[float]:
    return [metrics[name] for metrics in runs if metrics.get(name) is not None]


def _mean(of_row: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [100 * value for value in _values(of_row, name)]
    if not values:
        return "-"
    return f"{statistics.mean(values):.1f}" + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9+_]+", "_", text).strip("_")


if __name__ == "__main__":
    errors.run(main)
