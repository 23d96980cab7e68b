"""The flags of a verb: what several of them have in common."""

import argparse
import inspect
import re
import sys
from collections.abc import Collection, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_dict, config_flags


def command_line(arguments: Sequence[str] | None) -> list[str]:
    """Return the name of the program and its arguments; by default those of this process."""
    return list(sys.argv) if arguments is None else [sys.argv[0], *arguments]


def define_config(values: flags.FlagValues, argv: Sequence[str], required: bool = True) -> Any:
    """Define --config and the flags for its fields; the value of what is returned is the config."""
    config = config_flags.DEFINE_config_file(
        "config",
        help_string="A config file; variants stand after a colon. --config.FIELD=VALUE sets one of its fields.",
        lock_config=True,
        sys_argv=list(argv),
        flag_values=values,
    )
    if required:
        flags.mark_flag_as_required("config", flag_values=values)
    return config


def add_reading_options(parser: argparse.ArgumentParser, unknown: str = "leave out annotations of unknown ids") -> None:
    """Add the options that let annotations be read which are refused otherwise; see `read_instances`.

    Args:
      parser: of a verb or a tool.
      unknown: what --drop_unknown does there.
    """
    parser.add_argument("--drop_unknown", action="store_true", help=unknown)
    parser.add_argument(
        "--allow_outside", action="store_true", help="take image files outside their folder (absolute names, or ..)"
    )


def split_changes(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the command line without the flags --config.FIELD=VALUE, and these.

    Raises:
      ValueError: one of them has no value.
    """
    changes = [argument for argument in argv if re.match(r"--?config\.", argument)]
    for change in changes:
        if "=" not in change:
            raise ValueError(f"got {change}; expected --config.FIELD=VALUE")
    return [argument for argument in argv if argument not in changes], changes


def changed_config(config: ConfigDict, changes: Sequence[str], allowed: Collection[str]) -> ConfigDict:
    """Return a config with other values of some fields.

    Args:
      config: of a run.
      changes: flags --config.FIELD=VALUE.
      allowed: the fields, and the sections whose fields, may be set.

    Raises:
      ValueError: a field does not exist, may not be set, or is of another type.
    """
    for change in changes:
        field = change.partition("config.")[2].partition("=")[0]
        if not any(field == name or field.startswith(f"{name}.") for name in allowed):
            raise ValueError(
                f"got --config.{field} for a trained run; expected a field of {', '.join(allowed)}: the others are "
                "what it was trained with"
            )
    values = flags.FlagValues()
    argv = ["", *changes]
    config = config.copy_and_resolve_references()
    _let_be_set(config)
    try:
        changed = config_flags.DEFINE_config_dict("config", config, lock_config=True, flag_values=values, sys_argv=argv)
    except (AttributeError, KeyError) as error:
        raise _unknown_field(error) from error
    parse(values, argv, None)
    return changed.value


def _let_be_set(config: ConfigDict) -> None:
    """Let the fields without a value take one of any type: of what is read from JSON, they have none of their own."""
    with config.ignore_type():
        for name, value in config.items():
            if isinstance(value, ConfigDict):
                _let_be_set(value)
            elif value is None:
                config[name] = config_dict.placeholder(object)


def paths_of_splits(texts: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return annotations and folder of images by the name of the split, of flags --split=NAME=JSON,IMAGES.

    Raises:
      ValueError: one is of another form, or a name is given twice.
    """
    splits: dict[str, tuple[str, str]] = {}
    for text in texts:
        name, _, paths = text.partition("=")
        annotations, comma, folder = paths.rpartition(",")
        if not (name and comma and annotations and folder):
            raise ValueError(f"--split: got {text!r}; expected NAME=JSON,IMAGES")
        if name in splits:
            raise ValueError(f"--split: {name!r} is given twice")
        splits[name] = (annotations, folder)
    return splits


def parse(values: flags.FlagValues, argv: Sequence[str], documentation: str | None) -> None:
    """Give the flags their values; --help prints the documentation and the flags, and exits with 0.

    Args:
      values: flags of one verb. They are not absl's global ones, so that several verbs can define flags of one name.
      argv: see `command_line`.
      documentation: docstring of the verb.

    Raises:
      ValueError: a flag is unknown, missing or has a wrong value, or there are arguments that are no flags.
    """
    if {"--help", "-h"} & set(argv):
        print(inspect.cleandoc(documentation or "") + "\n\nFlags:")
        for name in sorted(values):
            default = "" if values[name].default is None else f" (default: {values[name].default_as_str})"
            print(f"  --{name}: {values[name].help}{default}")
        sys.exit(0)
    try:
        rest = values(list(argv))[1:]
    except flags.Error as error:
        # ml_collections gives all of the traceback where a config file raises; its last lines are the error's.
        said = re.sub(r"Error whilst parsing config file:.*\n(?=\S)", "", str(error), flags=re.DOTALL)
        raise ValueError(" ".join(said.split())) from error
    except (AttributeError, KeyError) as error:  # Of a field, or of a section, that the config does not have.
        raise _unknown_field(error) from error
    if rest:
        raise ValueError(f"got arguments {rest}; expected only flags (--name=value)")


def _unknown_field(error: BaseException) -> ValueError:
    said = error.args[0]
    while isinstance(said, BaseException):
        said = said.args[0]
    return ValueError(f"a flag --config.FIELD names no field: {' '.join(str(said).split())}")
