"""Other layouts of the weights: the same function, and nothing lost that others read."""

import sys
from math import prod

import pytest
import torch

import mhc.backbone.weight_layout
from mhc.drafters import Cascade
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling
from tests.helpers.backbones import ARCHITECTURES, SIZES, VOCABULARY, tiny_backbone
from tests.helpers.drafters import randomised
from tests.helpers.engines import PROMPTS, TREES, answers, reference

LAYOUTS = [
    False,
    pytest.param(
        True, marks=pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
    ),
]


@pytest.mark.parametrize("packed", LAYOUTS, ids=["input-major", "packed"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_computes_the_same(monkeypatch, name, packed):
    monkeypatch.setattr(mhc.backbone.weight_layout, "packs", lambda: packed)
    backbone = tiny_backbone(name)
    ids = torch.tensor(PROMPTS[3:])
    before, weight = backbone.features(ids).hidden, backbone.model.get_output_embeddings().weight.clone()
    expected, fingerprint = [reference(backbone, prompt) for prompt in PROMPTS], backbone.fingerprint()
    backbone.lay_out()
    torch.testing.assert_close(backbone.features(ids).hidden, before, atol=1e-4, rtol=1e-4)
    assert torch.equal(backbone.model.get_output_embeddings().weight, weight) and backbone.fingerprint() == fingerprint
    drafter = randomised(Cascade(backbone, heads=4))
    mhc.backbone.weight_layout.lay_out_for_few_rows(drafter.requires_grad_(False))
    for tree in ("tree", "dynamic_cut"):
        assert answers(Engine(backbone, drafter, TREES[tree]), 3) == expected


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")
def test_packed_weights_can_still_be_read(monkeypatch, tied):
    monkeypatch.setattr(mhc.backbone.weight_layout, "packs", lambda: True)
    backbone = tiny_backbone("llama", tie_word_embeddings=tied)
    layer = backbone.model.model.layers[0].mlp
    weight, embedding = layer.down_proj.weight.clone(), backbone.model.get_input_embeddings().weight
    backbone.lay_out()
    assert isinstance(layer.down_proj, mhc.backbone.weight_layout.PackedLinear) and torch.equal(
        layer.down_proj.weight, weight
    )
    assert (backbone.model.get_output_embeddings().weight is embedding) == tied
    assert backbone.device.type == "cpu" and backbone.dtype == torch.float32


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_backbones_decode_with_heads_too(kind):
    """Heads on quantised weights give the quantised model's own text, greedy and drawn; heads share the lm_head."""
    pytest.importorskip("torchao", reason="torchao is not installed")
    backbone = tiny_backbone("qwen3")
    whole = answers(Engine(backbone), 1)
    linear = backbone.model.model.layers.parameters()
    linear = [weight.shape for weight in linear if weight.ndim == 2]
    told = mhc.backbone.weight_layout.quantize_weights(backbone.model, kind)
    left = told.before - 3 * sum(
        map(prod, linear)
    )  # torchao stores 4 bits in 8, with a scale for each row, and zero points
    assert told.after - left in [each * sum(rows for rows, _ in linear) for each in (4, 5)]
    backbone.lay_out()
    assert type(backbone.model.model.layers[0].mlp.down_proj.weight) is not torch.nn.Parameter
    engine = Engine(backbone, randomised(Cascade(backbone, heads=4)), TREES["dynamic"])
    for sampling in (GREEDY, Sampling(temperature=0.9, seed=4)):
        plain = answers(Engine(backbone), 1, sampling=sampling)
        assert plain != whole
        for batch_size in (1, 3):
            assert answers(engine, batch_size, sampling=sampling) == plain


def test_weights_are_weighed():
    """Tied weights once; and what quantising saved is told in a line."""
    sizes = {
        tied: mhc.backbone.weight_layout.stored_bytes(tiny_backbone("llama", tie_word_embeddings=tied).model)
        for tied in (True, False)
    }
    assert sizes[False] - sizes[True] == VOCABULARY * SIZES["hidden_size"] * 4
    told = mhc.backbone.weight_layout.Quantised("int8", 4 * 2**30, 3 * 2**20 // 2)
    assert str(told) == "int8 weights take 1.5 MiB instead of 4.00 GiB: 100% saved"


def test_quantising_names_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(UserError, match="torchao"):
        mhc.backbone.weight_layout.quantize_weights(tiny_backbone("llama").model, "int8")
