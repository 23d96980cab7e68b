import subprocess
import sys

import pytest

from maskx_jax import errors
from tools import plot_sweep, sweep


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


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_program_whose_output_nobody_reads_ends_without_a_word(lines):
    program = f"from maskx_jax import errors; errors.run(lambda: [print(i) for i in range({lines})] and 0)"
    # `head` leaves while the program is importing.
    command = f"{sys.executable} -c 'import time; time.sleep(1); {program}' | head -n 0; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("141\n", "")


def test_a_pipe_that_is_not_stdout_is_an_error_like_any_other(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as left:
        errors.run(failing(BrokenPipeError(32, "Broken pipe")))
    assert (left.value.code, capsys.readouterr().err) == (1, "error: [Errno 32] Broken pipe\n")


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
        (["word", "--size=0"], 1, "error: got arguments ['word']; expected only flags"),
        ([], 1, "error: flag --size=None: Flag --size must have a value other than None."),
        (["--size=3"], 1, "error: size is 3"),
        (["--size=0"], 0, ""),
    ],
)
def test_a_wrong_flag_is_one_line(arguments, code, said):
    program = """
import sys
from absl import flags
from maskx_jax import errors
from maskx_jax.cli.flags import parse
def main():
    size = flags.DEFINE_integer("size", None, "A size.", required=True, flag_values=(values := flags.FlagValues()))
    parse(values, sys.argv, None)
    if size.value: raise ValueError(f"size is {size.value}")
errors.run(main)
"""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert done.stderr.startswith(said) and done.stderr.count("\n") == (1 if said else 0), done.stderr


SWEEP = ("--table=1a", "--output={folder}/new")


@pytest.mark.parametrize(
    ("tool", "arguments", "said"),
    [
        (sweep, (), "the following arguments are required: --output"),
        (sweep, ("--output={folder}/new",), "expected --table or --row"),
        (sweep, (*SWEEP, "--table=9"), "argument --table: invalid choice: '9'"),
        (sweep, (*SWEEP, "--seeds=a"), "--seeds: got 'a'; expected whole numbers"),
        (sweep, (*SWEEP, "--seeds="), "--seeds: got ''; expected whole numbers"),
        (sweep, ("--table=1a", "--output={folder}/file"), "is no folder"),
        (sweep, ("--row=1a/oracle", "--output={folder}/broken"), "config.json or metrics.jsonl is no run's"),
        (plot_sweep, (), "the following arguments are required: --table, --output"),
        (plot_sweep, ("--table={folder}/none.csv", "--output=a.png"), "none.csv: No such file or directory"),
        (plot_sweep, ("--table={folder}/file", "--output=a.png"), "file: no column masks, row, segm/B/AP; expected"),
        (plot_sweep, ("--table={folder}/other.csv", "--output=a.png"), "no run with masks random(trial,number) in"),
        (plot_sweep, ("--table={folder}/fig3.csv", "--output={folder}/no/a.png"), "a.png: No such file or directory"),
    ],
)
def test_a_tool_names_what_is_wrong_in_one_line(monkeypatch, capsys, tmp_path, tool, arguments, said):
    (tmp_path / "file").write_text("text")
    (tmp_path / "other.csv").write_text("row,masks,segm/B/AP\n1a/cls,voc,0.1\n")
    (tmp_path / "fig3.csv").write_text('row,masks,segm/B/AP\n1a/cls,"random(1,20)",0.1\n')
    broken = tmp_path / "broken/1a_oracle-seed0"
    broken.mkdir(parents=True)
    (broken / "config.json").write_text("{}")
    (broken / "metrics.jsonl").write_text("{}")
    detector = tmp_path / "broken/detector-seed0"
    detector.mkdir()
    (detector / "config.json").write_text('{"train": []}')
    (detector / "metrics.jsonl").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["tool", *(argument.format(folder=tmp_path) for argument in arguments)])
    with pytest.raises(SystemExit) as left:
        errors.run(tool.main)
    error = capsys.readouterr().err
    assert left.value.code == 1
    assert error.startswith("error: ") and said in error and error.count("\n") == 1, error
