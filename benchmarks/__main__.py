"""Time this project beside its peers, and write one Markdown table: torchvision, where its environment is given.

    python -m benchmarks --suite=ops --suite=detect --suite=train --peer_python=ENVIRONMENT/bin/python
    python -m benchmarks gpu-day --output=FOLDER

Suites: ceilings (a product of matrices and a copy: what the machine can do), ops, detect, train, stages (parts of
detection and of a train step), host (batches from files; scores, beside pycocotools). Mask^X R-CNN is timed beside our
own Mask R-CNN. Both sides get the same parameters, images, boxes and number of proposals; their calls alternate, each
case in processes of its own. Peak memory is a process's resident memory beyond its imports during the repetitions, or
the allocator's peak on a GPU.

`gpu-day` is for a GPU that is at hand for minutes: see `benchmarks.gpu_day`.
"""

import os
import pathlib
import sys
import tempfile

from benchmarks import cases, gpu_day, measuring
from maskx_jax import errors


def main() -> None:
    """Time what the arguments say."""
    if sys.argv[1:2] == ["gpu-day"]:
        return gpu_day.main(sys.argv[2:])
    parser = errors.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--suite", action="append", choices=sorted(cases.SUITES), help="may be given several times")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--peer_python", default="", help="Python of an environment with torch and torchvision")
    parser.add_argument("--rounds", type=int, default=5, help="times that the two sides alternate")
    parser.add_argument("--seconds", type=float, default=1.0, help="a round repeats short calls for as long")
    parser.add_argument(
        "--cache", metavar="FOLDER", default="", help="compile with the persistent cache in this folder"
    )
    options = parser.parse_args()
    print("\n".join(measuring.table(measuring.COLUMNS, [])))
    chosen = [case for suite in options.suite or ["ops"] for case in cases.SUITES[suite] if options.only in case.name]
    records = []
    with tempfile.TemporaryDirectory() as folder:
        if any(isinstance(case, cases.Network | cases.Stage) for case in chosen):
            measuring.write_parameters(pathlib.Path(folder))
        for case in chosen:
            with measuring.Workers(folder, options.peer_python, options.cache) as workers:
                records.append(measuring.measure(case, workers, options.rounds, options.seconds))
            print(measuring.line(measuring.row(records[-1])), flush=True)
    print(f"\n{measuring.about(records)}; {os.cpu_count()} CPU cores")
    failed = [record["case"] for record in records if any("error" in record.get(side, {}) for side in ("ours", "peer"))]
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(records)} cases failed: {errors.some(failed)}")


if __name__ == "__main__":
    errors.run(main)
