"""Writes a mended copy of a COCO file, and beside it the list of what was changed; never in place."""

import json
import math
from pathlib import Path
from typing import Any

from maskx_jax import files
from maskx_jax.doctor.causes import MEANINGS
from maskx_jax.doctor.structure import Split


def changes_path(output: Path) -> Path:
    """Return where the list of changes of a mended copy stands: OUT.changes.json."""
    return output.with_name(f"{output.stem}.changes.json")


def check_output(output: Path) -> None:
    """Check that a mended copy can be written.

    Raises:
      FileExistsError: it would take the place of a file.
      FileNotFoundError: there is no such folder.
    """
    for path in (output, changes_path(output)):
        if path.exists() or path.is_symlink():
            raise FileExistsError(f"{path} exists; a mended copy takes the place of nothing, choose another name")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"{output.parent}: there is no such folder to write {output.name} to")


def write(split: Split, output: Path) -> str:
    """Write the mended copy of a split that was examined with `keep_changes`, and the list of changes.

    Returns:
      What was changed, in a line.

    Raises:
      OSError: see `check_output`, or it cannot be written.
    """
    check_output(output)
    content = split.to_coco()
    if split.findings["file_constants"].count:
        content = _without_constants(content)
    files.write_bytes(output, _encode(content))
    mended = {cause for change in split.changes for cause in change.causes}
    # Writing anew does away with these.
    mended |= {"file_mark", "file_constants", "section_missing", "section_invalid"}
    left = [finding for finding in split.findings if finding.level != "note" and finding.cause not in mended]
    whole = {
        "file": str(split.path),
        "written": str(output),
        "changes": [change.to_json() for change in split.changes],
        "left": {finding.cause: {"count": finding.count, "meaning": MEANINGS[finding.cause]} for finding in left},
    }
    files.write_json(changes_path(output), _without_constants(whole))
    removed = sum(change.after is None for change in split.changes)
    return (
        f"wrote {output}: {len(split.changes) - removed} entries changed, {removed} left out "
        f"({changes_path(output).name}); {sum(finding.count for finding in left)} errors and warnings are left to you"
    )


def _encode(content: dict[str, Any]) -> bytes:
    """Return the JSON of a file, an entry a line: half a gigabyte is never there in other pieces besides."""

    def line(value: Any) -> bytes:
        return json.dumps(value, allow_nan=False).encode()

    parts = []
    for key, value in content.items():
        text = b"[\n" + b",\n".join(map(line, value)) + b"\n]" if isinstance(value, list) else line(value)
        parts.append(line(key) + b": " + text)
    return b"{" + b",\n".join(parts) + b"}\n"


def _without_constants(value: Any) -> Any:
    """Return a value out of JSON with null in place of NaN and Infinity."""
    if isinstance(value, dict):
        return {key: _without_constants(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_constants(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
