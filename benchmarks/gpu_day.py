"""Everything to be learned from a GPU that is at hand for minutes, in order of worth, within a budget of time.

    python -m benchmarks gpu-day --output=FOLDER

Needs jax, flax, optax and jaxtyping; torch and torchvision for the peer, in the same Python or in --peer_python; what
benchmarks/wheels.sh gathers for train.py and for pasting masks. No network, no TensorFlow. Every step has a time
limit, and writes FOLDER/STEP.json after each of its cases and FOLDER/gpu_day.md, so that what was measured survives
whatever ends the run. What fails is written in its place, and the next step goes on.
"""

import dataclasses
import json
import math
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping

from benchmarks import cases, measuring
from benchmarks.cases import Case
from benchmarks.measuring import Record
from maskx_jax import errors

_MINUTES = 12.0
# For a rehearsal: what is compiled hardly computes.
_QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
# A run of train.py that is asked to leave saves first.
_SECONDS_TO_LEAVE = 30.0


@dataclasses.dataclass(frozen=True)
class Step:
    """A part of the day.

    Attributes:
      name: of its file.
      title: in the table.
      seconds: it is stopped after as many.
      cases: that it measures, in one pair of processes; a GPU's peaks of memory are since their start, so small ones
        come first. None of them: train.py runs on the synthetic set.
      rounds, repeat_seconds: see `measuring.measure`.
    """

    name: str
    title: str
    seconds: float
    cases: tuple[Case, ...] = ()
    rounds: int = 3
    repeat_seconds: float = 0.3


def plan(rehearse: bool) -> tuple[Step, ...]:
    """Return the steps, the most valuable first; in a rehearsal they are small enough for a CPU."""
    model, canvas, batches = ("tiny", (128, 128), (2, 3)) if rehearse else ("mask_rcnn", cases.LARGE, (8, 16))
    dtype, small = "bfloat16", batches[0]
    boxes, groups, rois = (64, 5, 1) if rehearse else (2000, 40, 512)
    rounds, seconds = (1, 0.0) if rehearse else (3, 0.3)
    passes = (False,) if rehearse else (False, True)

    def pooled(form: str) -> Iterator[Case]:
        for bins in (7, 14):
            for gradient in passes:
                yield cases.RoIAlign(bins, gradient, canvas, small, dtype, rois, form)

    detections = tuple(
        cases.Network(work, model, canvas, batch, dtype) for work in ("network", "detect") for batch in (1, small)
    )
    steps = (
        Step("checks", "Operations and a tiny model beside the CPU's results", 150, _CHECKS, rounds=0),
        Step(
            "train",
            "Train step",
            300,
            tuple(cases.Network("train", model, canvas, b, dtype) for b in batches),
            rounds,
            seconds,
        ),
        Step("detect", "Detection, without and with masks pasted into the image", 180, detections, rounds, seconds),
        Step(
            "roi_align",
            "RoIAlign",
            120,
            tuple(case for form in ("", *cases.ROI_ALIGN_FORMS) for case in pooled(form)),
            rounds,
            seconds,
        ),
        Step(
            "nms",
            "NMS, and what the machine can do",
            60,
            (
                *(
                    cases.NMS(boxes, count, clustered=True, form=form)
                    for count in (1, groups)
                    for form in ("", *cases.NMS_FORMS)
                ),
                cases.Product(256 if rehearse else 8192, "bfloat16"),
                cases.Copy(8 if rehearse else 512),
            ),
            rounds,
            seconds,
        ),
        Step("shapes", "train.py on the synthetic set", 150),
        Step(
            "trace",
            "What takes the time of a train step",
            120,
            (cases.Network("trace", model, canvas, small, dtype),),
            rounds=0,
        ),
        Step(
            "models",
            "Other models",
            300,
            tuple(
                cases.Network(work, other, canvas, small, dtype)
                for other in (("tiny",) if rehearse else ("fcos", "mask_rcnn_c4", "maskx_paper"))
                for work in ("network", "train")
                # torchvision has no losses of C4.
                if (work, other) != ("train", "mask_rcnn_c4")
            ),
            rounds,
            seconds,
        ),
    )
    # A busy CPU takes as long as it takes.
    return tuple(dataclasses.replace(step, seconds=math.inf) for step in steps) if rehearse else steps


_CHECKS = (
    cases.OperationChecks((128, 128), rois=16, boxes=500),
    cases.ModelChecks("tiny", (128, 128), 2),
)


def main(arguments: list[str]) -> None:
    """Measure what the arguments say.

    Raises:
      ValueError: a step is unknown, or the budget is no positive number.
      RuntimeError: there is no accelerator, and it is no rehearsal.
    """
    parser = errors.ArgumentParser(prog="python -m benchmarks gpu-day", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--output", type=pathlib.Path, default=pathlib.Path("runs/gpu_day"), help="folder of the results"
    )
    parser.add_argument("--budget", type=float, default=_MINUTES, metavar="MINUTES", help="for everything")
    parser.add_argument("--peer_python", default="", help="Python with torch and torchvision, if it is not this one")
    parser.add_argument("--step", action="append", metavar="NAME", help="only this one; several are run as given")
    parser.add_argument("--rehearse", action="store_true", help="at small sizes, on a CPU")
    options = parser.parse_args(arguments)
    steps = plan(options.rehearse)
    names = [step.name for step in steps]
    if unknown := set(options.step or ()) - set(names):
        raise ValueError(f"got step {sorted(unknown)[0]!r}; expected one of {', '.join(names)}")
    if not options.budget > 0:
        raise ValueError(f"got a budget of {options.budget} minutes; expected more than 0")
    peer_python = options.peer_python or (sys.executable if measuring.has_torchvision() else "")
    if not peer_python:
        print("torchvision is not here, and no --peer_python is given: there are no times of the peer", flush=True)
    chosen = [steps[names.index(name)] for name in options.step or names]
    print(Day(options.output, peer_python, options.rehearse).run(chosen, options.budget * 60))


class Day:
    """A run of steps that writes its results as it goes.

    Args:
      output: folder of the results; created.
      peer_python: see `measuring.Workers`.
      rehearse: whether a CPU will do.
    """

    def __init__(self, output: pathlib.Path, peer_python: str, rehearse: bool) -> None:
        self._output, self._peer_python, self._rehearse = output, peer_python, rehearse
        self._environment = _QUICKLY if rehearse else {}
        self._results: list[Record] = []

    def run(self, steps: list[Step], seconds: float) -> str:
        """Run the steps within the time; return the table.

        Raises:
          RuntimeError: there is no accelerator, and it is no rehearsal.
        """
        self._output.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + seconds
        with tempfile.TemporaryDirectory() as folder:
            measuring.write_parameters(pathlib.Path(folder))
            for step in steps:
                result: Record = {"step": step.name, "title": step.title, "records": []}
                self._results.append(result)
                begun = time.monotonic()
                if begun >= end:
                    result["skipped"] = f"the budget of {seconds / 60:g} minutes was used up"
                    self._write(result)
                    continue
                deadline = min(end, begun + step.seconds)
                for record in self._records(step, folder, deadline):
                    result["records"].append(record)
                    result["seconds"] = time.monotonic() - begun
                    self._write(result)
                    print(f"{step.name}: {json.dumps(_brief(record))}", flush=True)
                    if record.get("ours", {}).get("platform") == "cpu" and not self._rehearse:
                        raise RuntimeError("JAX finds no accelerator here; --rehearse measures small sizes on a CPU")
        return self._table()

    def _records(self, step: Step, folder: str, deadline: float) -> Iterator[Record]:
        if not step.cases:
            yield train_on_shapes(deadline, self._rehearse, self._environment)
            return
        with measuring.Workers(folder, self._peer_python, f"{folder}/cache", self._environment) as workers:
            for case in step.cases:
                if time.monotonic() >= deadline:
                    yield {"case": case.name, "skipped": "the time of its step was over"}
                else:
                    yield measuring.measure(case, workers, step.rounds, step.repeat_seconds, deadline)

    def _write(self, result: Record) -> None:
        _replace(self._output / f"{result['step']}.json", json.dumps(result, indent=1))
        _replace(self._output / "gpu_day.md", self._table())

    def _table(self) -> str:
        lines: list[str] = []
        for result in self._results:
            records = result["records"]
            about = measuring.about(records)
            lines += [f"**{result['title']}**" + (f" ({about})" if about else ""), ""]
            if "skipped" in result:
                lines += [f"Not run: {result['skipped']}.", ""]
                continue
            lines += [*_TABLES.get(result["step"], _times)(records), ""]
        return "\n".join(lines)


def train_on_shapes(deadline: float, rehearse: bool, environment: Mapping[str, str]) -> Record:
    """Run train.py on the demo's config until it ends, or it is asked to leave in time; return what it reached."""
    record: Record = {"case": "train.py --config=configs/demo.py"}
    flags = ["--config.data.loader=processes", "--config.data.num_workers=12", "--config.train.eval_every=1600"]
    if rehearse:
        flags = ["--config.train.num_steps=20", "--config.train.eval_every=20", "--config.data.shapes.num_eval=8"]
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "train.py", "--config=configs/demo.py", f"--workdir={workdir}/run", *flags]
        output = pathlib.Path(workdir) / "output"
        begun = time.monotonic()
        with output.open("w") as file:
            process = subprocess.Popen(
                command, cwd=measuring.ROOT, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **environment}
            )
            record["ending"] = _leave_in_time(process, deadline)
        record["seconds"] = time.monotonic() - begun
        written = output.read_text(errors="replace").strip().splitlines()
        metrics = pathlib.Path(workdir) / "run" / "metrics.jsonl"
        lines = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    if process.returncode not in (0, 75):
        last = written[-1] if written else f"exit code {process.returncode}"
        if "No module named" in last:
            record["skipped"] = f"{last}; benchmarks/wheels.sh gathers what train.py needs"
        else:
            record["error"] = last
    trained = [line for line in lines if "train/total" in line]
    if trained:
        # The first interval has the compilation in it.
        rates = [line["train/images_per_second"] for line in trained[1:]] or [trained[0]["train/images_per_second"]]
        record |= {
            "steps": trained[-1]["step"],
            "images_per_second": statistics.median(rates),
            "waiting_for_data": statistics.median(line["train/waiting_for_data"] for line in trained),
            "first_loss": trained[0]["train/total"],
            "last_loss": trained[-1]["train/total"],
        }
    record["metrics"] = {name: value for line in lines for name, value in line.items() if name.endswith("/AP")}
    return record


def _leave_in_time(process: subprocess.Popen[bytes], deadline: float) -> str:
    """Wait for the end of a program, ask it to leave before the deadline and end it there; say which it was."""
    for ending, ask, moment in (
        ("ended", None, deadline - _SECONDS_TO_LEAVE),
        ("left when it was asked to", signal.SIGTERM, deadline),
        ("had to be killed", signal.SIGKILL, None),
    ):
        if ask is not None:
            process.send_signal(ask)
        try:
            process.wait(None if moment is None else max(0.0, moment - time.monotonic()))
            return ending
        except subprocess.TimeoutExpired:
            pass
    raise AssertionError("unreachable: a killed process ends")


def _replace(path: pathlib.Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text + "\n")
    os.replace(temporary, path)


def _brief(record: Record) -> Record:
    """Return what a line of the report says of a record."""
    sides = {
        side: record[side].get("error") or [round(1000 * t, 3) for t in sorted(record[side].get("times", ()))[:1]]
        for side in ("ours", "peer")
        if side in record
    }
    return {name: value for name, value in record.items() if name in ("case", "skipped", "error", "steps")} | sides


def _times(records: list[Record]) -> list[str]:
    return measuring.table(measuring.COLUMNS, map(measuring.row, records))


def _checks(records: list[Record]) -> list[str]:
    rows = []
    for record in records:
        if "checks" not in record.get("ours", {}):
            rows.append([record["case"], "", "", measuring.row(record)[1]])
        for check in record.get("ours", {}).get("checks", ()):
            difference = f"{check['difference']:.1e}" if "difference" in check else ""
            tolerance = "none" if check["tolerance"] is None else f"{check['tolerance']:g}"
            verdict = check.get("error") or {True: "yes", False: "**no**", None: ""}[check["passes"]]
            rows.append([check["what"], difference, tolerance, verdict])
    return measuring.table(("compared", "largest difference", "tolerance", "within"), rows)


def _shapes(records: list[Record]) -> list[str]:
    rows = []
    for record in records:
        outcome = record.get("skipped") or record.get("error") or record["ending"]
        rows.append([outcome, f"{record['seconds']:.0f}", *(_number(record, name) for name in _SHAPES.values())])
        rows[-1] += [_number(record["metrics"], f"segm/{group}/AP") for group in ("A", "B")]
    return measuring.table(("run", "seconds", *_SHAPES, "mask AP, A", "mask AP, B"), rows)


_SHAPES = {
    "steps": "steps",
    "images/s": "images_per_second",
    "waiting for data": "waiting_for_data",
    "first loss": "first_loss",
    "last loss": "last_loss",
}


def _number(record: Record, name: str) -> str:
    value = record.get(name)
    return "" if value is None else f"{value:.4g}"


def _trace(records: list[Record]) -> list[str]:
    lines: list[str] = []
    for record in records:
        ours = record.get("ours", {})
        if "shares" not in ours:
            lines.append(f"{record['case']}: {measuring.row(record)[1]}")
            continue
        lines += [f"{record['case']}. Shares of: {ours['source']}.", ""]
        for what in ("shares", "parts"):
            if what in ours:
                rows = [[name, f"{100 * share:.1f}"] for name, share in ours[what].items()]
                lines += [*measuring.table(("kind" if what == "shares" else "part", "%"), rows), ""]
        if "longest" in ours:
            ms = 1000 * ours["device_seconds"]
            unknown = 100 * ours["without_instruction"]
            lines += [
                f"The device works {ms:.1f} ms a step; {unknown:.1f} % of it in kernels that are no instruction's."
            ]
            rows = [[one["kernel"], one["kind"], one["part"], f"{one['ms']:.2f}"] for one in ours["longest"][:10]]
            lines += ["", *measuring.table(("kernel", "kind", "part", "ms a step"), rows)]
    return lines


# How a step's records are shown, where they are no times.
_TABLES: dict[str, Callable[[list[Record]], list[str]]] = {"checks": _checks, "shapes": _shapes, "trace": _trace}
