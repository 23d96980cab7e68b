import subprocess
import sys

import pytest

from maskx_jax import errors


def failing(error):
    def program():
        raise error

    return program


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ValueError("got 3\n  expected 4"), 1, "error: got 3 expected 4\n"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 1, "error: a.json: No such file or directory\n"),
        (MemoryError(), 1, "error: out of memory\n"),
        (RuntimeError(), 1, "error: RuntimeError\n"),
        (KeyboardInterrupt(), 130, "error: interrupted (SIGINT)\n"),
    ],
)
def test_an_expected_error_is_one_line(monkeypatch, capsys, error, code, said):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as left:
        errors.run(failing(error))
    assert (left.value.code, capsys.readouterr().err) == (code, said)


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), RecursionError("c"), AssertionError()])
def test_a_defect_keeps_its_traceback(monkeypatch, error):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(type(error)):
        errors.run(failing(error))


def test_the_traceback_is_shown_where_it_is_asked_for(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--traceback", "--more"])
    with pytest.raises(ValueError, match="got 3"):
        errors.run(failing(ValueError("got 3")))
    assert sys.argv == ["program", "--more"]


def test_the_exit_code_is_what_the_program_returns(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as left:
        errors.run(lambda: 76)
    assert left.value.code == 76


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--nothing"], 1, "error: Unknown command line flag 'nothing'"),
        (["word", "--size=0"], 1, "error: got arguments ['word']; expected flags alone"),
        ([], 1, "error: flag --size=None: Flag --size must have a value other than None."),
        (["--size=3"], 1, "error: size is 3"),
        (["--size=0"], 0, ""),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, code, said):
    program = """
from absl import flags
from maskx_jax import errors
size = flags.DEFINE_integer("size", None, "A size.", required=True)
def main(_):
    if size.value: raise ValueError(f"size is {size.value}")
errors.run_with_flags(main)
"""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count("\n") == (1 if said else 0), done.stderr
