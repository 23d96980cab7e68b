"""Write a report of evaluations: a folder of static HTML with scores, curves, kinds of error and a gallery.

python -m maskx_jax report RUN [RUN ...]
python -m maskx_jax report --results=title=results.json --annotations=val.json --images=images/val --output=REPORT

A run is shown by what `evaluate` left in RUN/evaluation/<step>; by default the report of the first is written there.
Results of other models on the same images can be added to runs.
"""

import argparse
import pathlib

from maskx_jax import errors


def main(arguments: list[str] | None = None) -> int:
    """Write the report that the arguments ask for; return the exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    _check(parser, options)
    others = {}
    for text in options.results:
        title, separator, path = text.partition("=")
        if not (separator and title and path):
            parser.error(f"--results: got {text!r}; expected title=results.json")
        if title in others:
            parser.error(f"--results: the title {title!r} is given twice")
        others[title] = path

    from maskx_jax import report
    from maskx_jax.report.writing import check_folder

    output = options.output
    if options.runs:
        output = output or report.default_folder(options.runs[0], options.step)
        check_folder(pathlib.Path(output))
        dataset, models = report.open_runs(
            options.runs, options.step, directory=options.directory, split=options.split, others=others
        )
    else:
        check_folder(pathlib.Path(output))
        dataset, models = report.open_files(
            others,
            options.annotations,
            images=options.images,
            with_masks=options.mask_classes or "all",
            boundary=options.boundary,
            max_detections=options.max_detections,
        )
    page = report.write(
        dataset, models, output, min_score=options.min_score, picture_side=options.picture_side, num_draws=options.draws
    )
    print(f"wrote {page}")
    return 0


def _parser() -> errors.ArgumentParser:
    parser = errors.ArgumentParser(prog="python -m maskx_jax report", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="*", metavar="RUN", help="work directory of a run that was evaluated")
    parser.add_argument(
        "--results",
        action="append",
        default=[],
        metavar="TITLE=FILE",
        help="COCO results of a model; repeat it for more",
    )
    parser.add_argument("--output", help="folder to write; by default RUN/evaluation/<step>/report")
    parser.add_argument("--min_score", type=float, default=0.05, help="of the detections in the gallery (0.05)")
    parser.add_argument("--picture_side", type=int, default=640, help="long side of a picture in pixels, at most (640)")
    parser.add_argument("--draws", type=int, default=500, help="of the bootstrap for the intervals (500)")
    runs = parser.add_argument_group("with runs")
    runs.add_argument("--step", type=int, help="of the evaluation; the latest by default")
    runs.add_argument("--directory", help="prepared dataset, where it is not that of the runs")
    runs.add_argument("--split", help="split that was evaluated, where it is not that of the runs")
    alone = parser.add_argument_group("without runs")
    alone.add_argument("--annotations", help="COCO or LVIS annotations that the results are of")
    alone.add_argument("--images", help="folder of their images; without it there are no pictures")
    alone.add_argument("--mask_classes", help="the classes of A, such as voc; the others are B")
    alone.add_argument("--max_detections", type=int, help="detections an image that count")
    alone.add_argument("--boundary", action="store_true", help="score the boundaries of masks too (Boundary AP)")
    return parser


_WITH_RUNS = ("step", "directory", "split")
_WITHOUT_RUNS = ("annotations", "images", "mask_classes", "max_detections", "boundary")


def _check(parser: errors.ArgumentParser, options: argparse.Namespace) -> None:
    given = {name for name in (*_WITH_RUNS, *_WITHOUT_RUNS) if getattr(options, name) not in (None, False)}
    if options.runs:
        if wrong := sorted(given & set(_WITHOUT_RUNS)):
            parser.error(f"got {', '.join(f'--{name}' for name in wrong)} with a run, whose config says it")
    elif not (options.results and options.annotations and options.output):
        parser.error("expected RUN, or --results=TITLE=FILE with --annotations=FILE and --output=FOLDER")
    elif wrong := sorted(given & set(_WITH_RUNS)):
        parser.error(f"got {', '.join(f'--{name}' for name in wrong)} without a run")
    for name in ("picture_side", "draws"):
        if getattr(options, name) < 1:
            parser.error(f"--{name}: got {getattr(options, name)}; expected 1 or more")
    if not 0 <= options.min_score <= 1:
        parser.error(f"--min_score: got {options.min_score}; expected 0 to 1")


if __name__ == "__main__":
    errors.run(main)
