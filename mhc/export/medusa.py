"""Medusa heads as text-generation-inference and vLLM read them.

    A positions   K heads   D width   V vocabulary

z = h + SiLU(W h + b) block by block, then W2 z. TGI takes FasterDecoding's names, `{head}.{block}.linear.*` and
`{head}.{blocks}.weight`; where heads share the backbone's lm_head it needs no copy of it (its second class, for one block).
vLLM knows a shared lm_head by `original_lm_head`. Read in TGI 3 (layers/medusa.py, layers/speculative.py) and vLLM 0.32.0
(model_executor/models/medusa.py, config/speculative.py).
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mhc.backbone.model import Backbone
from mhc.drafters import Drafter, Medusa
from mhc.drafters.base import ResBlock
from mhc.errors import UserError
from mhc.export.folders import (
    NEAREST,
    WEIGHTS,
    Engine,
    read_config,
    read_counts,
    read_tensors,
    require,
    require_path,
    require_plain_unembedding,
    require_shapes,
    stored,
    target,
    tgi_command,
    vllm_command,
    write_folder,
)

TGI_WEIGHTS = "medusa_lm_head.safetensors"


def tgi_medusa(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as TGI reads it, FasterDecoding's names; returns the command that serves it.

    Raises UserError for what TGI cannot run as it was trained."""
    medusa = require_medusa(drafter, "TGI")
    backbone, blocks = medusa.backbone, medusa.arguments["blocks"]
    tensors = {}
    for head, stack in enumerate(medusa.stacks):
        for block, linear in enumerate(linears_of(stack)):
            tensors[f"{head}.{block}.linear.weight"] = stored(linear.weight, backbone)
            tensors[f"{head}.{block}.linear.bias"] = stored(linear.bias, backbone)
        if medusa.unembeddings.own or blocks != 1:
            tensors[f"{head}.{blocks}.weight"] = stored(medusa.unembeddings.weight(head), backbone)
    config = {
        "medusa_num_heads": medusa.draft_length,
        "medusa_num_layers": blocks,
        "base_model_name_or_path": target(backbone),
    }
    write_folder(folder, config, tensors, TGI_WEIGHTS)
    return tgi_command(folder)


def vllm_medusa(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as vLLM up to 0.32 reads it (0.33 has no Medusa any more); returns the command.

    Raises UserError for what vLLM cannot run as it was trained."""
    medusa = require_medusa(drafter, "vLLM")
    backbone, shared = medusa.backbone, not medusa.unembeddings.own
    require_path(folder)
    tensors = {}
    for head, stack in enumerate(medusa.stacks):
        for block, linear in enumerate(linears_of(stack)):
            tensors[f"blocks.{head}.layers.{block}.weight"] = stored(linear.weight, backbone)
            tensors[f"blocks.{head}.layers.{block}.bias"] = stored(linear.bias, backbone)
    for head in range(1 if shared else medusa.draft_length):
        tensors[f"lm_heads.{head}.weight"] = stored(medusa.unembeddings.weight(head), backbone)
    config = {
        "model_type": "medusa",
        "architectures": ["MedusaModel"],
        "hidden_size": backbone.width,
        "vocab_size": backbone.vocabulary_size,
        "truncated_vocab_size": backbone.vocabulary_size,
        "num_heads": medusa.draft_length,
        "num_hidden_layers": medusa.arguments["blocks"],
        "medusa_fc_bias": True,  # without it the biases are dropped in silence
        "original_lm_head": shared,
        "torch_dtype": str(backbone.dtype).removeprefix("torch."),
    }
    write_folder(folder, config, tensors)
    return f"{vllm_command(medusa, folder, 'medusa')}  # vLLM up to 0.32, which guesses a chain; 0.33 has no Medusa any more"


def require_medusa(drafter: Drafter, engine: str) -> Medusa:
    """`drafter`, if it is Medusa heads that `engine` runs as they were trained; else UserError with the nearest choice."""
    if not isinstance(drafter, Medusa):
        kind = type(drafter)
        raise UserError(
            f"Medusa engines run heads that see the hidden state alone, and these are {kind.__name__} heads, which see "
            f"more: {NEAREST[kind]}, or train Medusa heads"
        )
    require_plain_unembedding(drafter, engine)
    if not drafter.unembeddings.own and drafter.backbone.model.get_output_embeddings().bias is not None:
        raise UserError(
            f"the backbone's lm_head has a bias, which {engine}'s Medusa heads do not: train with own_lm_head: true, "
            "or export `hf` and serve it with `run.py serve`"
        )
    return drafter


# ---- reading back, by the engines' rules


def read_tgi_medusa(folder: Path, backbone: Backbone) -> Engine:
    """What TGI makes of `folder` beside `backbone`; UserError for what it would refuse or pass over.

    Its first class wants every head's own lm_head. If that fails, its second takes one block and the backbone's lm_head."""
    where, config = f"'{folder}'", read_config(folder)
    if "architectures" in config:
        raise UserError(f"{where}: config.json names architectures, so that TGI runs no Medusa heads: take them out")
    require(config, {"base_model_name_or_path": target(backbone)}, where)
    heads, blocks = read_counts(config, "medusa_num_heads", "medusa_num_layers", where)
    tensors = read_tensors(folder / TGI_WEIGHTS)
    width, vocabulary = backbone.width, backbone.vocabulary_size
    shared = blocks == 1 and not any(f"{head}.1.weight" in tensors for head in range(heads))
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for block in range(blocks):
            shapes |= {f"{head}.{block}.linear.weight": (width, width), f"{head}.{block}.linear.bias": (width,)}
        if not shared:
            shapes[f"{head}.{blocks}.weight"] = (vocabulary, width)
    require_shapes(tensors, shapes, where)
    stacks = [
        [(tensors[f"{head}.{block}.linear.weight"], tensors[f"{head}.{block}.linear.bias"]) for block in range(blocks)]
        for head in range(heads)
    ]
    lm_heads = [backbone.unembedding if shared else tensors[f"{head}.{blocks}.weight"] for head in range(heads)]
    return _engine(stacks, lm_heads, backbone)


def read_vllm_medusa(folder: Path, backbone: Backbone) -> Engine:
    """What vLLM 0.32 makes of `folder` beside `backbone`; UserError for what it would refuse or pass over."""
    where, config = f"'{folder}'", read_config(folder)
    vocabulary, width = backbone.vocabulary_size, backbone.width
    wanted = {"model_type": "medusa", "architectures": ["MedusaModel"], "hidden_size": width, "vocab_size": vocabulary}
    require(config, wanted | {"truncated_vocab_size": vocabulary, "medusa_fc_bias": True}, where)
    if config.get("logit_scale", 1.0) != 1.0:
        raise UserError(f"{where}: logit_scale is {config['logit_scale']}, our heads have none")
    heads, blocks = read_counts(config, "num_heads", "num_hidden_layers", where)
    counted = 1 if config.get("original_lm_head", False) else heads
    shapes: dict[str, tuple[int, ...]] = {f"lm_heads.{head}.weight": (vocabulary, width) for head in range(counted)}
    for head in range(heads):
        for block in range(blocks):
            shapes[f"blocks.{head}.layers.{block}.weight"] = (width, width)
            shapes[f"blocks.{head}.layers.{block}.bias"] = (width,)
    tensors = read_tensors(folder / WEIGHTS)
    require_shapes(tensors, shapes, where)
    names = [[f"blocks.{head}.layers.{block}" for block in range(blocks)] for head in range(heads)]
    stacks = [[(tensors[f"{name}.weight"], tensors[f"{name}.bias"]) for name in row] for row in names]
    return _engine(stacks, [tensors[f"lm_heads.{head % counted}.weight"] for head in range(heads)], backbone)


def _engine(stacks: list[list[tuple[Tensor, Tensor]]], lm_heads: list[Tensor], backbone: Backbone) -> Engine:
    """Medusa's formula on weights and biases by head and block."""

    def run(hidden: Tensor, tokens: Tensor) -> Tensor:
        logits = []
        for stack, lm_head in zip(stacks, lm_heads):
            state = hidden
            for weight, bias in stack:
                state = state + silu(state @ weight.to(hidden).T + bias.to(hidden))
            logits.append(state @ lm_head.detach().to(hidden).T)
        return torch.stack(logits, dim=1)  # (A,K,V)

    return run


def linears_of(stack: nn.Module) -> list[nn.Linear]:
    """The linear layers of a head's ResBlocks."""
    return [block.linear for block in stack.children() if isinstance(block, ResBlock)]
