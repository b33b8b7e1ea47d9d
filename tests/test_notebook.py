"""The notebook of the documentation runs, and says what its text promises."""

import os
import sys

import pytest
from helpers.places import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"

nbformat = pytest.importorskip("nbformat", reason="no nbformat here, no notebook was run")
pytest.importorskip("ipykernel", reason="no ipykernel here, no notebook was run")


def sources(kind):
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == kind]


def test_the_notebook_is_well_formed_and_says_nothing_of_a_machine():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    text = NOTEBOOK.read_text()
    assert not any(
        word in text for word in ("/tmp/", "/home/", "/root/", "/work/", "Traceback")
    )
    assert all(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    assert len(text) < 400_000


def test_its_entry_points_are_those_of_the_api_page():
    api = (NOTEBOOK.parent / "api.md").read_text()
    lines = [line for source in sources("code") for line in source.splitlines()]
    doors = ("features.store", "train.run", "apps.predict", "apps.keyframes")
    imports = [
        line for line in lines if line.startswith(tuple(f"from bieff.{d}" for d in doors))
    ]
    assert len(imports) == 4
    assert all(line in api for line in imports)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    from nbclient import NotebookClient

    # the kernel is this very Python, wherever kernels are registered
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    ).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    said = "".join(o.text for o in outputs if o.output_type == "stream" and o.name == "stdout")
    assert "shapes               closed   bieff" in said
    assert "videos, views, frames, width: (2, 2, 8, " in said
    assert "heart growing" in said
    assert any("image/png" in output.get("data", {}) for output in outputs)
