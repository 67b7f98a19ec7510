"""Tiny random backbones of every architecture."""

from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.backbone.loading import load_tokenizer
from mhc.backbone.model import Backbone

VOCABULARY = 61
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=None,
)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, decoder_sparse_step=1)
ARCHITECTURES = {
    "llama": SIZES,
    "mistral": SIZES | dict(sliding_window=7),
    "qwen2": SIZES | dict(use_sliding_window=True, sliding_window=6, max_window_layers=1),
    "qwen3": SIZES | dict(head_dim=8),
    "qwen3_moe": SIZES | MOE | dict(head_dim=8),
    "mixtral": SIZES | dict(num_local_experts=4, num_experts_per_tok=2),
    "gemma2": SIZES | dict(head_dim=8, sliding_window=6),
    "gemma3_text": SIZES | dict(head_dim=8, sliding_window=6),
    "phi3": SIZES,
    "olmo2": SIZES,
    "gpt_neox": {key: value for key, value in SIZES.items() if key != "num_key_value_heads"},
    "gpt_oss": SIZES | dict(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=6),
}


def tiny_backbone(name: str, **changes) -> Backbone:
    """A random model of this architecture, its weights scaled up so that its choices are not ties."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **(ARCHITECTURES[name] | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return Backbone(model)


def save_tiny_backbone(folder: Path) -> None:
    """A random Llama with the pocket's tokenizer."""
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **(SIZES | {"vocab_size": 3072, "eos_token_id": 2}))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    model.save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
