"""The notebooks run from top to bottom on what real (tiny) runs leave behind."""

import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import run
from tests.helpers.runs import COMMON, ROOT, sums

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(900)]


def comparing(folder: Path, *more: str) -> list[str]:
    """A small comparison."""
    command = ["compare", "--data", str(folder / "sums.jsonl"), "--out", str(folder / "out"), "--heads", "2", *more]
    command += ["--families", "medusa", "eagle3", "--prompts", "2", "--max_new_tokens", "8", "--trainer", "cpu"]
    return [*command, "--", "--data.batch_size", "4"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """A folder that a small comparison left."""
    folder = tmp_path_factory.mktemp("compare")
    sums(folder)
    assert run.main(comparing(folder, "--steps", "3")) == 0
    assert run.main(comparing(folder, "--steps", "3")) == 0  # nothing is trained or tuned twice
    return folder / "out"


def test_a_comparison_with_other_settings_is_refused(compared, capsys):
    before = {path: path.read_bytes() for path in compared.rglob("*") if path.is_file()}
    assert run.main(comparing(compared.parent, "--steps", "4")) == 2
    told = capsys.readouterr().err
    assert "other settings" in told and "steps: 3" in told and told.count("\n") == 1
    assert before == {path: path.read_bytes() for path in compared.rglob("*") if path.is_file()}


def test_a_comparison_leaves_all_its_figures(compared):
    found = json.loads((compared / "comparison.json").read_text())
    assert {"machine", "versions", "backbone", "data", "steps", "heads"} <= set(found)
    assert list(found["families"]) == ["medusa", "eagle3"]
    for figures in found["families"].values():
        assert figures["steps"] == 3 and len(figures["head_accuracy"]) == 2
        chain = figures["chain/T=0"]
        assert figures["predicted"] == pytest.approx(chain["tokens_per_step"], abs=1e-3)
        assert all(figures[f"{k}/T={t}"]["identical"] == 2 for k in ("chain", "tuned") for t in (0, 1))
        assert figures["chain_ms"]["draft_ms"] > 0
    assert (compared / "comparison.png").stat().st_size > 10_000
    assert "eagle3" in (compared / "comparison.md").read_text()


def pictures_of(name: str, folder: Path, monkeypatch) -> int:
    """Run notebooks/<name>.ipynb on a folder of runs; how many pictures it drew."""
    monkeypatch.setenv("MHC_RUN", str(folder))
    notebook = nbformat.read(ROOT / f"notebooks/{name}.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return sum("image/png" in output.get("data", {}) for output in outputs)


def test_head_accuracy(tmp_path, monkeypatch):
    for drafter in ("medusa", "diffusion"):
        chosen = [
            *COMMON,
            "--config",
            str(ROOT / f"configs/drafter/{drafter}.yaml"),
            "--data.path",
            str(sums(tmp_path)),
        ]
        chosen += ["--trainer.default_root_dir", str(tmp_path / drafter), "--trainer.max_epochs", "1"]
        chosen += [
            "--data.batch_size",
            "16",
            "--trainer.callbacks.prompts",
            "2",
            "--trainer.callbacks.max_new_tokens",
            "8",
        ]
        chosen += ["--trainer.log_every_n_steps", "1"]
        assert run.main(["fit", *chosen]) == 0
        assert run.main(["test", *chosen]) == 0
    assert pictures_of("head_accuracy", tmp_path, monkeypatch) == 6


def test_trees(compared, monkeypatch):
    assert pictures_of("trees", compared, monkeypatch) == 3


def test_drafters(compared, monkeypatch):
    assert pictures_of("drafters", compared, monkeypatch) == 4
