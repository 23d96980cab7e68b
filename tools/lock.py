"""Write requirements.lock from what pip would install.

python -m pip install --dry-run --ignore-installed --quiet --report=- -r requirements-dev.txt | python -m tools.lock
"""

import json
import pathlib
import re
import sys

from maskx_jax import errors

LOCK = pathlib.Path(__file__).resolve().parents[1] / "requirements.lock"
_HEAD = """\
# Every package of the environment that CI tests, direct or not, on Python 3.11: constraints for pip.
#
#     python -m pip install -r requirements-dev.txt -c requirements.lock      # as `make` does
#
# requirements.txt pins what this project imports itself. Change a version there; tools/lock.py writes this file.
"""


def main() -> None:
    """Write the file from pip's report on stdin."""
    LOCK.write_text(lock(json.load(sys.stdin)))


def lock(report: dict) -> str:
    """Return the text of the file: a line for each distribution, by name."""
    found = {normalized(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in report["install"]}
    return _HEAD + "".join(f"{name}=={found[name]}\n" for name in sorted(found))


def normalized(name: str) -> str:
    """Return the name of a distribution in the one spelling that package indices compare by."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    errors.run(main)
