"""The notebooks run from top to bottom on what a real (tiny) run leaves behind."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import run
from tests.test_command_line import COMMON, ROOT, conversations, small

__all__ = ["conversations"]


@pytest.mark.filterwarnings("ignore")
def test_head_accuracy(conversations, tmp_path, monkeypatch):
    for drafter in ("medusa", "cascade"):
        chosen = [*COMMON, "--config", str(ROOT / f"configs/drafter/{drafter}.yaml")]
        chosen += [*small(tmp_path / drafter, conversations), "--trainer.log_every_n_steps", "1"]
        assert run.main(["fit", *chosen]) == 0
        assert run.main(["test", *chosen]) == 0
    monkeypatch.setenv("MHC_RUN", str(tmp_path))
    notebook = nbformat.read(Path(ROOT) / "notebooks/head_accuracy.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3
