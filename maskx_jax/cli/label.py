"""Predict masks on the boxes of objects that have nothing else, and write the annotations with them.

python -m maskx_jax label --workdir=RUN --annotations=train.json --images=DIR --output=OUT.json
python -m maskx_jax label --masks=results.json --annotations=train.json --output=OUT.json
"""

from absl import logging

from maskx_jax import errors
from maskx_jax.cli.flags import add_reading_options
from maskx_jax.labelling.label import THRESHOLD, label
from maskx_jax.labelling.writing import SEGMENTATIONS


def main(arguments: list[str] | None = None) -> int:
    """Label what the arguments say and print the report; return the exit code."""
    parser = errors.ArgumentParser(prog="python -m maskx_jax label", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--annotations", required=True, help="COCO instances file")
    parser.add_argument("--output", required=True, help="file to write")
    parser.add_argument("--workdir", help="of the run that predicts")
    parser.add_argument("--step", type=int, help="of its checkpoint; the latest by default")
    parser.add_argument("--images", help="folder of the images, which a run needs")
    parser.add_argument("--masks", help="COCO results with masks made elsewhere, in place of a run")
    parser.add_argument("--ignore_classes", action="store_true", help="fit these to objects of any class")
    parser.add_argument(
        "--threshold", type=float, default=THRESHOLD, help="quality, 0 to 1, from which a mask is taken: %(default)s"
    )
    parser.add_argument(
        "--segmentation", choices=SEGMENTATIONS, default="rle", help="form of the masks; polygons fill holes"
    )
    parser.add_argument(
        "--mask_classes",
        default="annotated",
        help="classes whose masks are known: voc, random(1,50), a file...; the masks of others are passed over, and "
        "predicted in their place (%(default)s: all masks are known)",
    )
    parser.add_argument("--skip_bad_images", action="store_true", help="leave out images that cannot be read")
    add_reading_options(parser, unknown="leave annotations of unknown ids as they are")
    parser.add_argument("--overwrite", action="store_true", help="replace the file at the output")
    options = vars(parser.parse_args(arguments))
    logging.set_verbosity(logging.WARNING)
    if options["workdir"]:
        from maskx_jax.runs import compilation

        compilation.use_cache()
    print(label(**options).table())
    print(f"wrote {options['output']}")
    return 0


if __name__ == "__main__":
    errors.run(main)
