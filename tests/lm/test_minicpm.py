"""MiniCPM4 as a Llama: equal to Granite, which has the same three constants as settings of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.errors import UserError
from tests.helpers.backbones import SIZES


@pytest.fixture
def convert(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "configs/backbone")
    from minicpm4_to_llama import convert

    return convert


@pytest.mark.parametrize("tied", [False, True])
def test_the_converted_model_computes_the_same(convert, tmp_path, tied):
    constants = {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 8}
    multipliers = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 1.4 / SIZES["num_hidden_layers"] ** 0.5,
        "attention_multiplier": (SIZES["hidden_size"] / SIZES["num_attention_heads"]) ** -0.5,
        "logits_scaling": SIZES["hidden_size"] / 8,
    }
    torch.manual_seed(0)
    config = AutoConfig.for_model("granite", **SIZES, **multipliers, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items() if not (tied and "lm_head" in name)}
    names = sorted(state)
    for number, part in enumerate((names[:9], names[9:])):
        save_file({name: state[name] for name in part}, source / f"model-0000{number}-of-00002.safetensors")
    told = SIZES | constants | {"model_type": "minicpm", "auto_map": {"AutoConfig": "x.C"}, "tie_word_embeddings": tied}
    (source / "config.json").write_text(json.dumps(told | {"rms_norm_eps": config.rms_norm_eps}))
    convert(source, target)
    found = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32)
    assert type(found).__name__ == "LlamaForCausalLM"
    ids = torch.randint(0, SIZES["vocab_size"], (3, 20))
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits, atol=1e-5, rtol=1e-4)


def test_another_model_is_refused(convert, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match="not MiniCPM4"):
        convert(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
