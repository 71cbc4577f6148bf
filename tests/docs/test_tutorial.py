"""All cells of the tutorial run, in a folder with nothing but examples/."""

import os
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

STEPS = "max_steps=120"


@pytest.mark.slow
def test_every_cell_of_the_tutorial_runs(tmp_path, monkeypatch):
    notebook = nbformat.read(ROOT / "docs/tutorial.ipynb", as_version=4)
    training = [cell for cell in notebook.cells if STEPS in cell.source]
    assert len(training) == 1
    # the test checks that cells run, not which scores they reach
    training[0].source = training[0].source.replace(STEPS, "max_steps=4")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(shown) == 4  # overlay, similarity, predictions, overlay of the new network
    assert (tmp_path / "runs/tutorial/model.safetensors").is_file()
