"""The flags of `evaluate` and of `score`, and eval.py, which is either of them."""

import importlib
import re
from collections.abc import Sequence

from absl import flags

from maskx_jax.cli.flags import command_line
from maskx_jax.evaluation.matching import BACKENDS


def define_evaluate(values: flags.FlagValues) -> None:
    """Define the flags of `evaluate`."""
    flags.DEFINE_string("workdir", None, "Work directory of a run of train.", required=True, flag_values=values)
    flags.DEFINE_integer("step", None, "Step of the checkpoint; the latest by default.", flag_values=values)
    flags.DEFINE_string("directory", None, "Prepared dataset, where it is not that of the run.", flag_values=values)
    flags.DEFINE_string("split", None, "Split to evaluate on, where it is not that of the run.", flag_values=values)
    flags.DEFINE_multi_string(
        "compare",
        [],
        "title=results.json of another model on the same images: one more panel in the pictures.",
        flag_values=values,
    )
    flags.DEFINE_string("output", None, "Folder for the results; RUN/evaluation/<step> by default.", flag_values=values)
    flags.DEFINE_bool("boundary", False, "Score the boundaries of masks too (Boundary AP).", flag_values=values)
    flags.DEFINE_bool("distributed", False, "Join the other processes of a pod (docs/scaling.md).", flag_values=values)


def define_score(values: flags.FlagValues) -> None:
    """Define the flags of `score`."""
    flags.DEFINE_string("results", None, "COCO results: boxes, masks, keypoints.", required=True, flag_values=values)
    flags.DEFINE_string(
        "annotations", None, "COCO or LVIS annotations to score them against.", required=True, flag_values=values
    )
    flags.DEFINE_string("mask_classes", "all", "The classes of A, such as voc; the others are B.", flag_values=values)
    flags.DEFINE_integer(
        "max_detections",
        None,
        "Detections an image that count; by default 100, or 300 of LVIS.",
        lower_bound=1,
        flag_values=values,
    )
    flags.DEFINE_bool("boundary", False, "Score the boundaries of masks too (Boundary AP).", flag_values=values)
    flags.DEFINE_enum("backend", "hotcoco", BACKENDS, "Who matches detections.", flag_values=values)
    flags.DEFINE_string("output", None, "Folder for metrics.json and table.txt.", flag_values=values)


# By the flag that asks for the verb.
_VERBS = {"workdir": ("evaluate", define_evaluate), "results": ("score", define_score)}


def run(arguments: Sequence[str] | None = None) -> int:
    """Run `evaluate` or `score`, as the flags say; return the exit code.

    Raises:
      ValueError: the flags say neither, or a flag belongs to the other verb.
    """
    given = command_line(arguments)[1:]
    code: int = importlib.import_module(f"maskx_jax.cli.{choose(given)}").main(given)
    return code


def choose(arguments: Sequence[str]) -> str:
    """Return the verb that flags of eval.py ask for: "score" with --results, "evaluate" with --workdir.

    Raises:
      ValueError: they ask for neither, or a flag belongs to the other verb; the message names it.
    """
    names = {}
    for key, (_, define) in _VERBS.items():
        define(values := flags.FlagValues())
        names[key] = set(values)
    given = {_name(argument, set.union(*names.values())) for argument in arguments if argument.startswith("-")}
    if not given & set(_VERBS):
        if given & {"help", "h"}:
            return "evaluate"
        raise ValueError("expected --workdir=RUN, or --results=FILE with --annotations=FILE")
    key, other = ("results", "workdir") if "results" in given else ("workdir", "results")
    if wrong := sorted(given & (names[other] - names[key])):
        raise ValueError(
            f"got {', '.join(f'--{name}' for name in wrong)} with --{key}; expected with it only "
            f"{', '.join(f'--{name}' for name in sorted(names[key] - {key}))}"
        )
    return _VERBS[key][0]


def _name(argument: str, known: set[str]) -> str:
    name = re.sub(r"^--?|=.*", "", argument, flags=re.DOTALL)
    # --nodistributed is --distributed=false.
    return name[2:] if name.startswith("no") and name not in known else name
