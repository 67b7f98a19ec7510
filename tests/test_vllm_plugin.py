"""The plugin's model proposes what our own chain proposes; what vLLM adds is run by benchmarks/engines.py."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import PretrainedConfig

from mhc.drafters import Cascade
from mhc.export.vllm_cascade import vllm_cascade, vllm_tied_cascade
from mhc.sampling import GREEDY, Sampler
from mhc.trees.shapes import FixedTree
from mhc.vllm_plugin import CascadeModel, Cell, load_exactly
from tests.helpers.backbones import tiny_backbone

HEADS = 4
SORTS = {
    "as trained": {},
    "hidden state alone": {"condition_first": False},
    "tied": {"tied": True},
    "lm_heads of their own": {"own_lm_head": True, "blocks": 2},
}


def cascade(backbone, **arguments) -> Cascade:
    """Heads whose guesses hang on the token before."""
    torch.manual_seed(2)
    drafter = Cascade(backbone, heads=HEADS, **arguments)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return drafter.eval()


def served(folder: Path, proposed: int) -> CascadeModel:
    """The model as vLLM builds and fills it."""
    config = PretrainedConfig.from_dict(json.loads((folder / "config.json").read_text()))
    settings = SimpleNamespace(draft_model_config=SimpleNamespace(hf_config=config), num_speculative_tokens=proposed)
    model = CascadeModel(vllm_config=SimpleNamespace(speculative_config=settings))
    tensors = load_file(folder / "model.safetensors")
    assert model.load_weights(tensors.items()) == set(tensors)
    return model.eval()


def chain(drafter: Cascade, ids: torch.Tensor) -> list[int]:
    """What our own decoder proposes after these tokens (1,T), the last of which the backbone has just chosen."""
    backbone, count = drafter.backbone, torch.tensor([ids.shape[1] - 1])
    memory = drafter.allocate(1, 64)
    drafter.observe(memory, slice(0, 1), backbone.features(ids[:, :-1]), ids[:, 1:], 0, count)
    draw = Sampler.of([GREEDY], backbone.vocabulary_size, backbone.device).for_round(count[:, None], HEADS)
    tree = FixedTree.chain(HEADS).grow(drafter, drafter.start_tree(memory, slice(0, 1)), ids[:, -1], draw)
    return tree.tokens[0, 1:].tolist()


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("sort", SORTS)
@torch.no_grad()
def test_it_proposes_our_chain(backbones, tmp_path, sort, architecture):
    backbone = backbones(architecture)
    drafter = cascade(backbone, **SORTS[sort])
    vllm_cascade(drafter, tmp_path)
    dice, found = torch.Generator().manual_seed(0), set()
    for length in (1, 2, 5, 20, 21):
        ids = torch.randint(0, backbone.vocabulary_size, (1, length), generator=dice)
        hidden = backbone.features(ids).hidden[:, -1]
        whole = torch.cat([ids, backbone.unembed(hidden).argmax(dim=-1)[None]], dim=1)
        for proposed in (HEADS, HEADS - 1):
            model = served(tmp_path, proposed)
            said = [logits.argmax(dim=-1).item() for logits in model.compute_logits(model(hidden))]
            assert said == chain(drafter, whole)[:proposed]
            found.add(tuple(said))
    assert len(found) > 2


@torch.no_grad()
def test_a_tied_cell_steps_as_ours(backbones, tmp_path):
    backbone = backbones("llama")
    drafter = cascade(backbone, tied=True)
    vllm_tied_cascade(drafter, tmp_path)
    cell = torch.nn.Module()
    cell.cell = Cell(backbone.width, 1, sees_token=True)
    load_exactly(cell, load_file(tmp_path / "model.safetensors").items())
    tokens, hidden = torch.tensor([3, 8]), torch.randn(2, backbone.width)
    torch.testing.assert_close(cell.cell(hidden, backbone.embed(tokens)), drafter.advance(0, hidden, tokens)[1])


def test_asking_for_more_than_was_trained_and_foreign_weights_are_refused(tmp_path):
    backbone = tiny_backbone("llama")
    vllm_cascade(cascade(backbone), tmp_path)
    with pytest.raises(ValueError, match="the cascade has 4 heads"):
        served(tmp_path, HEADS + 1)
    model, tensors = served(tmp_path, HEADS), load_file(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"cells.0.project.bias, lm_heads.0"):
        model.load_weights(
            (name.replace("cells.0.project.bias", "lm_heads.0"), tensor) for name, tensor in tensors.items()
        )
    with pytest.raises(ValueError, match="lm_head"):
        model.load_weights((tensors | {"lm_head": tensors["lm_head"][1:]}).items())


def test_it_needs_torch_alone():
    """vLLM's environment has neither Lightning nor our version of transformers."""
    code = "import sys, mhc.vllm_plugin; print(*sorted({m.split('.')[0] for m in sys.modules} & {'transformers', 'lightning'}))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not answer.stdout.strip()


@pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed here: benchmarks/engines.py runs it"
)
def test_vllm_takes_the_models():
    from vllm import ModelRegistry

    from mhc.vllm_plugin import CASCADE, TIED, register

    register()
    register()
    assert {CASCADE, TIED} <= set(ModelRegistry.get_supported_archs())
