"""Score a file of COCO results against annotations, without a model.

    python -m maskx_jax score --results=results.json --annotations=instances_val2017.json --mask_classes=voc

LVIS' annotations are scored by LVIS' rules. With --output, metrics.json and table.txt are written into a folder.
"""

from collections.abc import Sequence

from absl import flags

from maskx_jax import errors, files
from maskx_jax.cli.evaluate_or_score import define_score
from maskx_jax.cli.flags import command_line, parse
from maskx_jax.evaluation import scores


def main(arguments: Sequence[str] | None = None) -> int:
    """Score as the flags say; return the exit code."""
    argv, values = command_line(arguments), flags.FlagValues()
    define_score(values)
    parse(values, argv, __doc__)
    measured = scores.score_file(
        values.results,
        values.annotations,
        values.mask_classes,
        boundary=values.boundary,
        backend=values.backend,
        max_detections=values.max_detections,
    )
    print(scores.titled_table(measured))
    if values.output:
        folder = files.folder_in(values.output)
        scores.write(measured, folder)
        print(f"wrote {folder}")
    return 0


if __name__ == "__main__":
    errors.run(main)
