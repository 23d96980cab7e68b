"""docs/tutorial.ipynb runs from its first cell to its last, on few pictures and for few steps."""

import os

import nbclient
import nbformat
import pytest

from tests.processes import ROOT


@pytest.mark.long
def test_the_tutorial_runs_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{ROOT}/.venv/bin{os.pathsep}{os.environ['PATH']}")
    for name, value in {"WORK": str(tmp_path), "IMAGES": "60", "STEPS": "4"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    printed = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ())]
    assert any("masks predicted, mean IoU" in text for text in printed)
