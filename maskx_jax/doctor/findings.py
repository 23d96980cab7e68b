"""What was found in one split: by cause, by class, with examples; and what a repair would change."""

import collections
import dataclasses
import reprlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from maskx_jax import errors
from maskx_jax.doctor.causes import LEVELS, MEANINGS, level_of

NUM_EXAMPLES = 10


@dataclasses.dataclass
class Finding:
    """The cases of one cause.

    Attributes:
      cause: a name of `causes.MEANINGS`.
      count: number of cases.
      classes: cases of each class, of what belongs to one.
      examples: the first ids (of annotations, images or categories, or names of files), each with what was found.
    """

    cause: str
    count: int = 0
    classes: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: list[tuple[Any, str]] = dataclasses.field(default_factory=list)

    @property
    def level(self) -> str:
        """One of `causes.LEVELS`."""
        return level_of(self.cause)

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in doctor.json."""
        examples = [{"id": example, "found": found} for example, found in self.examples]
        head = {"cause": self.cause, "level": self.level, "meaning": MEANINGS[self.cause], "count": self.count}
        return {**head, "classes": dict(self.classes.most_common()), "examples": examples}


class Findings:
    """Collects the findings of a split."""

    def __init__(self) -> None:
        self._of_cause: dict[str, Finding] = {}

    def add(self, cause: str, example: Any, found: str = "", category: str | None = None) -> None:
        """Count one case.

        Args:
          cause: a name of `causes.MEANINGS`.
          example: the id of what it was found in.
          found: what was got and expected, where the cause does not say it.
          category: name of its class.
        """
        finding = self._finding(cause)
        if not (example is None or isinstance(example, str | int)):
            # Out of somebody's file: a NaN, a list.
            example = reprlib.repr(example)
        finding.count += 1
        if category is not None:
            finding.classes[category] += 1
        if len(finding.examples) < NUM_EXAMPLES:
            finding.examples.append((example, found))

    def add_all(self, cause: str, examples: Sequence[Any], categories: Iterable[str] = ()) -> None:
        """Count many cases, whose cause says everything."""
        if not len(examples):
            return
        finding = self._finding(cause)
        finding.count += len(examples)
        finding.classes.update(categories)
        room = NUM_EXAMPLES - len(finding.examples)
        finding.examples += [(example, "") for example in examples[:room]]

    def count(self, level: str) -> int:
        """Return the number of cases of a level."""
        return sum(finding.count for finding in self if finding.level == level)

    def __getitem__(self, cause: str) -> Finding:
        return self._of_cause.get(cause, Finding(cause))

    def __iter__(self) -> Iterator[Finding]:
        order = list(MEANINGS)
        yield from sorted(
            self._of_cause.values(), key=lambda finding: (LEVELS.index(finding.level), order.index(finding.cause))
        )

    def _finding(self, cause: str) -> Finding:
        if cause not in MEANINGS:
            raise KeyError(f"unknown cause {cause!r}")
        return self._of_cause.setdefault(cause, Finding(cause))

    def table(self) -> str:
        """Return a line for each cause, the gravest first."""
        lines = []
        for finding in self:
            ids = errors.some([example for example, _ in finding.examples], most=3).partition(" and ")[0]
            more = ", ..." if finding.count > 3 else ""
            classes = f"; {errors.some((f'{name} {n}' for name, n in finding.classes.most_common()), most=3)}"
            lines.append(
                f"{finding.level:>7} {finding.count:>8}  {MEANINGS[finding.cause]} "
                f"[{finding.cause}: {ids}{more}{classes if finding.classes else ''}]"
            )
        # Names and ids are somebody's: no line break, half of a surrogate pair or command to the terminal.
        return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


@dataclasses.dataclass(frozen=True)
class Change:
    """What a repair does to one entry of a file.

    Attributes:
      section: "images", "annotations", or "categories".
      entry_id: id of the entry, as it was.
      causes: why.
      before: the fields that change, as they were; all of them for what is left out.
      after: the fields that change, as they are then; None for an entry that is left out.
    """

    section: str
    entry_id: Any
    causes: Sequence[str]
    before: dict[str, Any]
    after: dict[str, Any] | None

    def to_json(self) -> dict[str, Any]:
        """Return it as it stands in the list of changes."""
        head = {"section": self.section, "id": self.entry_id, "causes": list(self.causes)}
        return {**head, "before": self.before, "after": self.after}
