"""The verbs of `python -m maskx_jax`, and what is wrong with their flags."""

import importlib
import subprocess
import sys

import pytest

from maskx_jax.__main__ import verbs
from maskx_jax.cli import train
from tests.processes import ROOT


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_help_lists_a_line_a_verb_and_imports_none_of_them():
    done = run("-X", "importtime", "-m", "maskx_jax", "--help")
    assert done.returncode == 0
    for verb, line in verbs().items():
        assert f"  {verb} " in done.stdout and line.endswith(".") and line in done.stdout
    assert " numpy" not in done.stderr and " maskx_jax.cli" not in done.stderr


def test_every_verb_is_a_module_with_main():
    assert {"train", "prepare", "import-weights", "export-weights"} <= verbs().keys()
    for verb in verbs():
        assert callable(importlib.import_module(f"maskx_jax.cli.{verb.replace('-', '_')}").main)


def test_an_unknown_verb_is_one_line():
    done = run("-m", "maskx_jax", "trian")
    assert done.returncode == 1
    assert done.stderr.startswith("error: got the verb 'trian'; expected one of ") and done.stderr.count("\n") == 1


def test_a_verb_documents_its_flags(capsys):
    with pytest.raises(SystemExit) as left:
        train.main(["--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert "Exit codes: 0 done" in out and "--workdir: " in out and "--config: " in out


# ml_collections loads a config so.
@pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=RUN"], "flag --config=None: Flag --config must have a value other than None"),
        (["--config=configs/demo.py"], "flag --workdir=None: Flag --workdir must have a value"),
        (["--config=configs/demo.py", "--workdr=RUN"], "Unknown command line flag 'workdr'. Did you mean: workdir"),
        (
            ["--config=configs/demo.py", "--config.train.num_step=3", "--workdir=RUN"],
            'a flag --config.FIELD names no field: .*Did you mean "num_steps"',
        ),
        (["--config=configs/demo.py", "--workdir=RUN", "more"], r"got arguments \['more'\]; expected only flags"),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, message, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=message) as caught:
        train.main(arguments)
    assert "\n" not in str(caught.value)
