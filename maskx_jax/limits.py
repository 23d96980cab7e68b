"""What the value of a field may be: checks that return "" where it is right, and otherwise what was expected."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Check = Callable[[Any], str]


def within(sections: Mapping[str, Mapping[str, Check]]) -> dict[str, Check]:
    """Return the checks of the fields of some sections, each under its dotted name."""
    return {f"{section}.{field}": check for section, checks in sections.items() for field, check in checks.items()}


def one_of(*choices: Any) -> Check:
    """Return the check that a value is among the choices."""
    return lambda value: "" if value in choices else f"one of {', '.join(map(str, choices))}"


def optional(check: Check) -> Check:
    """Return the check that a value is None, or passes another check."""
    return lambda value: "" if value is None else check(value)


def number(least: float, most: float = math.inf) -> Check:
    """Return the check that a number, or each number of a tuple, lies within two bounds."""

    def check(value: Any) -> str:
        values = value if isinstance(value, Sequence) else (value,)
        if all(isinstance(item, int | float) and least <= item <= most for item in values):
            return ""
        return f"{least:g} or more" if most == math.inf else f"{least:g} to {most:g}"

    return check


def numbers(length: int, least: float = -math.inf, most: float = math.inf) -> Check:
    """Return the check that a tuple has a length, and that each of its numbers lies within two bounds."""
    within = number(least, most)
    return lambda value: within(value) or ("" if len(value) == length else f"{length} values")


def some_numbers(least: float, most: float = math.inf) -> Check:
    """Return the check that a tuple is not empty, and that each of its numbers lies within two bounds."""
    within = number(least, most)
    return lambda value: within(value) or ("" if len(value) else "one or more")
