"""What pyproject.toml, the pins, the lock and CITATION.cff say of each other."""

import pkgutil
import re
import sys
import tomllib

import pytest
import yaml

from tests.processes import ROOT
from tools.lock import lock, normalized

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]


def names(requirements):
    return {normalized(re.match(r"[\w.-]+", requirement)[0]) for requirement in requirements}


def pins(file):
    lines = (ROOT / file).read_text().splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith(("#", "-r")))


def test_every_dependency_is_pinned_and_every_pin_is_a_dependency():
    # jaxlib is jax's own, and pinned with it.
    assert names(pins("requirements.txt")) - {"jaxlib"} == names(PROJECT["dependencies"])
    assert names(pins("requirements-dev.txt")) == names(PROJECT["optional-dependencies"]["dev"])


def test_the_lock_holds_every_pin():
    locked = pins("requirements.lock")
    direct = pins("requirements.txt") | pins("requirements-dev.txt")
    assert {normalized(name): version for name, version in direct.items()}.items() <= locked.items()
    assert list(locked) == sorted(locked)


def test_a_lock_is_written_from_the_report_of_pip():
    report = {"install": [{"metadata": {"name": name, "version": "1.0"}} for name in ("ml_dtypes", "Absl.py")]}
    assert lock(report).splitlines()[-2:] == ["absl-py==1.0", "ml-dtypes==1.0"]


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert all(reference["authors"] and reference["url"] for reference in citation["references"])


def test_the_command_of_the_package_lists_its_verbs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["maskx", "--help"])
    with pytest.raises(SystemExit) as ended:
        pkgutil.resolve_name(PROJECT["scripts"]["maskx"])()
    assert not ended.value.code and "  predict " in capsys.readouterr().out


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "maskx_jax/py.typed").exists()


def test_every_file_that_is_no_python_goes_into_the_package():
    package = ROOT / "maskx_jax"
    patterns = PYPROJECT["tool"]["setuptools"]["package-data"]["maskx_jax"]
    taken = {path for pattern in patterns for path in package.glob(pattern)}
    others = {path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert taken == others
