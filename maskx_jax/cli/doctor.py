"""Look at COCO annotations and their pictures: say what is wrong with them, without writing a dataset.

    python -m maskx_jax doctor --annotations=train.json --images=images/train

With --output, doctor.json and doctor.html are written into a folder. Several splits are given as to prepare:
--split=train=train.json,images/train --split=val=val.json,images/val. Exit codes: 0 no error was found (warnings and
notes may have been), 2 errors were found, 1 something else went wrong.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from maskx_jax import errors, files
from maskx_jax.cli.flags import command_line, define_config, parse, paths_of_splits
from maskx_jax.doctor import page, repair
from maskx_jax.doctor.examination import examine

EXIT_FOUND = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Look at what the flags say and print what was found; return the exit code."""
    argv, values = command_line(arguments), flags.FlagValues()
    _define(values)
    config = define_config(values, argv, required=False)
    parse(values, argv, __doc__)
    splits = _splits(values)
    copies = _copies(values.fix, splits)
    found = examine(splits, config=config.value, keep_changes=bool(copies))
    print(found.table())
    for name, output in copies.items():
        print(repair.write(found.splits[name], output))
    if values.output:
        folder = files.folder_in(values.output)
        files.write_json(folder / "doctor.json", found.to_json())
        files.write_text(folder / "doctor.html", page.render(found))
        print(f"wrote {folder}")
    return EXIT_FOUND if found.count("error") else 0


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string("annotations", None, "COCO annotations to train on.", flag_values=values)
    flags.DEFINE_string("images", None, "Folder of their pictures.", flag_values=values)
    flags.DEFINE_string("val_annotations", None, "COCO annotations to evaluate on.", flag_values=values)
    flags.DEFINE_string("val_images", None, "Folder of their pictures; by default --images.", flag_values=values)
    flags.DEFINE_multi_string(
        "split", [], "NAME=JSON,IMAGES in place of these; repeat it for several splits.", flag_values=values
    )
    flags.DEFINE_bool("no_pictures", False, "Look at the JSON only.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for doctor.json and doctor.html.", flag_values=values)
    flags.DEFINE_multi_string(
        "fix", [], "Write a mended copy: OUT.json of a single split, NAME=OUT.json of several.", flag_values=values
    )


def _splits(values: flags.FlagValues) -> dict[str, tuple[str, str | None]]:
    """Return the annotations and the folder of pictures of each split.

    Raises:
      ValueError: there is none, or one is given in two ways.
    """
    splits: dict[str, tuple[str, str | None]] = {**paths_of_splits(values.split)}
    if bool(splits) == bool(values.annotations):
        raise ValueError("got both --annotations and --split, or neither; expected one of them")
    if values.annotations:
        splits["train"] = (values.annotations, values.images)
    if values.val_annotations:
        splits["val"] = (values.val_annotations, values.val_images or values.images)
    if values.no_pictures:
        return {name: (annotations, None) for name, (annotations, _) in splits.items()}
    return splits


def _copies(texts: Iterable[str], splits: Iterable[str]) -> dict[str, Path]:
    """Return where the mended copies of splits are to be written.

    Raises:
      ValueError: a split is unknown, or given twice.
      OSError: see `repair.check_output`.
    """
    names, copies = list(splits), {}
    for text in texts:
        name, equals, output = text.partition("=")
        if not equals and len(names) == 1:
            name, output = names[0], text
        if name not in names or name in copies or not output:
            raise ValueError(f"--fix: got {text!r}; expected NAME=OUT.json, once each, NAME one of {names}")
        copies[name] = Path(output).expanduser()
        repair.check_output(copies[name])
    return copies


if __name__ == "__main__":
    errors.run(main)
