"""docs/quickstart.ipynb runs from top to bottom in a folder like docs/, and has no outputs."""

import json
import re

import pytest
from pages import ROOT

NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


def test_it_is_stored_without_outputs_and_paths():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [c for c in cells if c.get("outputs") or c.get("execution_count")] == []
    assert not re.search(r"/(?:home|root|work|tmp|Users)/", NOTEBOOK.read_text())


def test_it_runs_from_top_to_bottom(tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra docs is not installed")
    nbclient = pytest.importorskip("nbclient", reason="the extra docs is not installed")
    pytest.importorskip("ipykernel", reason="the extra docs is not installed")
    pytest.importorskip("transformers", reason="the extra hf is not installed")
    (tmp_path / "docs").mkdir()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    notebook = nbformat.reads(
        NOTEBOOK.read_text().replace('\\"steps\\": 120', '\\"steps\\": 30'), 4
    )
    place = {"metadata": {"path": str(tmp_path / "docs")}}
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    said = "".join(
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "step 30/30" in said and "of 30 colours are right" in said
    differences = re.findall(r"(?:logits:|differ by) ([\d.e-]+)", said)
    assert len(differences) == 2 and all(float(one) < 1e-3 for one in differences), differences
    assert (tmp_path / "runs" / "notebook" / "run" / "report.html").exists()
