"""What the tests of evaluation share."""

import json
import os
import pathlib

import pytest


@pytest.fixture
def fixtures():
    default = pathlib.Path(__file__).resolve().parents[3] / "shared/data/eval_fixtures"
    folder = pathlib.Path(os.environ.get("MASKX_EVAL_FIXTURES", default))
    if not folder.is_dir():
        pytest.skip(f"no published result files at {folder}: set MASKX_EVAL_FIXTURES")
    return lambda name: json.loads((folder / name).read_text())
