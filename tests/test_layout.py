"""Other layouts of the weights: the same function, and nothing lost that others read."""

import pytest
import torch

import mhc.layout
from mhc.drafters import Cascade
from mhc.engine import Engine
from tests.conftest import ARCHITECTURES, tiny_backbone
from tests.test_engine import PROMPTS, TREES, answers, randomised, reference

LAYOUTS = [
    False,
    pytest.param(
        True, marks=pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
    ),
]


@pytest.mark.parametrize("packed", LAYOUTS, ids=["input-major", "packed"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_computes_the_same(monkeypatch, name, packed):
    monkeypatch.setattr(mhc.layout, "packs", lambda: packed)
    backbone = tiny_backbone(name)
    ids = torch.tensor(PROMPTS[3:])
    before, weight = backbone.features(ids).hidden, backbone.model.get_output_embeddings().weight.clone()
    expected, fingerprint = [reference(backbone, prompt) for prompt in PROMPTS], backbone.fingerprint()
    backbone.lay_out()
    torch.testing.assert_close(backbone.features(ids).hidden, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(backbone.model.get_output_embeddings().weight, weight) and backbone.fingerprint() == fingerprint
    drafter = randomised(Cascade(backbone, heads=4))
    mhc.layout.lay_out_for_few_rows(drafter.requires_grad_(False))
    for tree in ("tree", "dynamic_cut"):
        assert answers(Engine(backbone, drafter, TREES[tree]), 3) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_packed_weights_can_still_be_read(monkeypatch, tied):
    monkeypatch.setattr(mhc.layout, "packs", lambda: True)
    backbone = tiny_backbone("llama", tie_word_embeddings=tied)
    layer = backbone.model.model.layers[0].mlp
    weight, embedding = layer.down_proj.weight.clone(), backbone.model.get_input_embeddings().weight
    backbone.lay_out()
    assert isinstance(layer.down_proj, mhc.layout.PackedLinear) and torch.equal(layer.down_proj.weight, weight)
    assert (backbone.model.get_output_embeddings().weight is embedding) == tied
    assert backbone.device.type == "cpu" and backbone.dtype == torch.float32
