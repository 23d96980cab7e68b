"""Plot AP on B against the number of classes with masks, from the table of a sweep over A (figure 3 of the paper).

python -m tools.sweep --table=fig3 --size=tiny --masks="random(1,20)" --masks="random(1,40)" --output=SWEEP
python -m tools.plot_sweep --table=SWEEP/table.csv --output=growth.png
"""

import collections
import csv
import pathlib
import re
import statistics
from collections.abc import Sequence

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from maskx_jax import errors
from maskx_jax.errors import some


def main(arguments: Sequence[str] | None = None) -> None:
    """Plot what the arguments say."""
    parser = errors.ArgumentParser(prog="python -m tools.plot_sweep", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--table", required=True, action="append", type=pathlib.Path, help="repeat it for several")
    parser.add_argument("--output", required=True, type=pathlib.Path)
    options = parser.parse_args(arguments)
    plot(read(options.table), options.output)


def read(tables: Sequence[pathlib.Path]) -> dict[str, dict[int, list[float]]]:
    """Return AP on B in percent of every seed, by row and number of classes with masks.

    Raises:
      ValueError: a table has other columns, or no line of the tables has masks random(trial,number) and a score.
    """
    values: dict[str, dict[int, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for table in tables:
        with table.open() as file:
            lines = csv.DictReader(file)
            if missing := {"row", "masks", "segm/B/AP"}.difference(lines.fieldnames or ()):
                raise ValueError(f"{table}: no column {some(sorted(missing))}; expected a table.csv of tools.sweep")
            for line in lines:
                match = re.fullmatch(r"random\(\d+,(\d+)\)", line["masks"])
                if match and line["segm/B/AP"]:
                    values[line["row"]][int(match[1])].append(100 * float(line["segm/B/AP"]))
    if not values:
        raise ValueError(f"no run with masks random(trial,number) in {some(tables)}")
    return values


def plot(values: dict[str, dict[int, list[float]]], output: pathlib.Path) -> None:
    """Draw the mean and, over several seeds, the standard deviation."""
    figure, axes = pyplot.subplots(figsize=(5, 3.5), layout="constrained")
    for row, by_number in sorted(values.items()):
        numbers = sorted(by_number)
        means = [statistics.mean(by_number[number]) for number in numbers]
        deviations = [statistics.stdev(v) if len(v := by_number[number]) > 1 else 0.0 for number in numbers]
        axes.errorbar(numbers, means, deviations, marker="o", capsize=3, label=row.partition("/")[2])
    axes.set_xlabel("classes with masks (A)")
    axes.set_ylabel("mask AP on the others (B)")
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(output, dpi=120)
    pyplot.close(figure)


if __name__ == "__main__":
    errors.run(main)
