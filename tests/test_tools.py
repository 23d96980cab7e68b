"""The tools that are run by hand."""

from tools import launch


def test_processes_are_joined_and_the_first_failure_is_the_exit_code(tmp_path):
    program = (
        "import os, pathlib, sys; names = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_NUM_CPU_DEVICES');"
        "index = os.environ['JAX_PROCESS_ID'];"
        "(pathlib.Path(sys.argv[1]) / index).write_text(' '.join(os.environ.get(name, '-') for name in names));"
        "sys.exit(3 * int(index))"
    )
    assert launch.main(["--processes=3", "--devices=2", "--", "-c", program, str(tmp_path)]) == 3
    said = [(tmp_path / str(index)).read_text() for index in range(3)]
    assert len(set(said)) == 1 and said[0].startswith("localhost:") and said[0].endswith(" 3 2")
    # One process joins nobody.
    assert launch.main(["--processes=1", "--", "-c", program, str(tmp_path)]) == 0
    assert (tmp_path / "0").read_text() == "- - 1"
