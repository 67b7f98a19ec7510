"""MHC cascades as vLLM up to 0.32 runs them with this project's plugin (mhc/vllm_plugin.py).

    A positions   K heads   D width   V vocabulary

vllm-cascade: any cascade of residual cells, in Medusa's place; the folder brings the backbone's lm_head and, where that is
another, its embedding. vllm-tied-cascade: one cell for all heads, in EAGLE's place, which shares both with the backbone. vLLM
takes the argmax of what heads say, so that a backbone that squashes its logits is no obstacle. Read in vLLM 0.32.0
(v1/spec_decode/medusa.py and llm_base_proposer.py, transformers_utils/configs).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Drafter
from mhc.drafters.cascade import ResidualCell
from mhc.errors import UserError
from mhc.export.folders import (
    NEAREST,
    SERVE,
    WEIGHTS,
    Engine,
    read_config,
    read_tensors,
    require,
    require_path,
    require_shapes,
    stored,
    vllm_command,
    write_folder,
)
from mhc.vllm_plugin import CASCADE, TIED


def vllm_cascade(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as the plugin's CascadeModel reads it; returns the command that serves it.

    Raises UserError for what it cannot run as it was trained."""
    cascade = require_residual(drafter)
    backbone, own = cascade.backbone, bool(cascade.unembeddings.own)
    require_path(folder)
    table, bias = _embedding(backbone), backbone.model.get_output_embeddings().bias
    own_embedding = not torch.equal(table, backbone.unembedding.detach())
    tensors = _cells(cascade) | {"lm_head": backbone.unembedding}
    if own_embedding:
        tensors["embedding"] = table
    if bias is not None:
        tensors["lm_head_bias"] = bias
    tensors |= {f"lm_heads.{head}": weight for head, weight in enumerate(cascade.unembeddings.own)}
    about = {
        "heads": cascade.draft_length,
        "blocks": cascade.arguments["blocks"],
        "condition_first": cascade.arguments["condition_first"],
        "tied": cascade.tied,
        "own_lm_head": own,
        "own_embedding": own_embedding,
        "bias": bias is not None,
    }
    config = {
        "model_type": "medusa",
        "architectures": [CASCADE],
        "hidden_size": backbone.width,
        "vocab_size": backbone.vocabulary_size,
        "truncated_vocab_size": backbone.vocabulary_size,
        "num_heads": cascade.draft_length,
        "num_hidden_layers": cascade.arguments["blocks"],
        "cascade": about,
        "torch_dtype": str(backbone.dtype).removeprefix("torch."),
    }
    write_folder(folder, config, {name: stored(tensor, backbone) for name, tensor in tensors.items()})
    return _command(cascade, folder, "medusa")


def vllm_tied_cascade(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as the plugin's TiedCascadeModel reads it; returns the command that serves it.

    Raises UserError for what it cannot run as it was trained."""
    cascade = require_residual(drafter)
    backbone = cascade.backbone
    if not cascade.tied or cascade.unembeddings.own:
        ours = "heads of their own" if not cascade.tied else "lm_heads of their own"
        raise UserError(
            f"EAGLE's place in vLLM takes one step for all heads, and this cascade has {ours}: export vllm-cascade, or "
            "train with tied: true and own_lm_head: false"
        )
    if backbone.model.get_output_embeddings().bias is not None:
        raise UserError("the backbone's lm_head has a bias, which would be left out here: export vllm-cascade")
    config = {
        "model_type": "llama",  # vLLM wants a kind that it knows; the sizes are the backbone's
        "architectures": [TIED],
        "hidden_size": backbone.width,
        "vocab_size": backbone.vocabulary_size,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "cascade": {"heads": cascade.draft_length, "blocks": cascade.arguments["blocks"]},
        "torch_dtype": str(backbone.dtype).removeprefix("torch."),
    }
    tensors = {name.replace("cells.0", "cell"): tensor for name, tensor in _cells(cascade).items()}
    write_folder(folder, config, {name: stored(tensor, backbone) for name, tensor in tensors.items()})
    return _command(cascade, folder, "eagle")


def require_residual(drafter: Drafter) -> Cascade:
    """`drafter`, if it is a cascade that the plugin runs; else UserError with the nearest choice."""
    if not isinstance(drafter, Cascade):
        kind = type(drafter)
        raise UserError(f"the plugin runs cascades, and these are {kind.__name__} heads: {NEAREST[kind]}")
    if not isinstance(drafter.cells[0], ResidualCell):
        cell = drafter.arguments["cell"]
        raise UserError(
            f"the plugin runs residual cells, and these are cell: {cell}: {SERVE}, or train with cell: residual"
        )
    return drafter


def _embedding(backbone: Backbone) -> Tensor:
    """(V,D), as the backbone scales it."""
    every = torch.arange(backbone.vocabulary_size, device=backbone.device)
    return backbone.embed(every).detach()


def _cells(cascade: Cascade) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in cascade.state_dict().items() if name.startswith("cells.")}


def _command(cascade: Cascade, folder: Path, method: str) -> str:
    command = vllm_command(cascade, folder, method)
    return f"{command}  # vLLM up to 0.32, with this project beside it: pip install --no-deps mhc"


# ---- reading back, by the plugin's rules


def read_vllm_cascade(folder: Path, backbone: Backbone) -> Engine:
    """What vLLM and the plugin make of `folder` beside `backbone`; UserError for what they would refuse or pass over."""
    where, config = f"'{folder}'", read_config(folder)
    vocabulary, width = backbone.vocabulary_size, backbone.width
    wanted = {"model_type": "medusa", "architectures": [CASCADE], "hidden_size": width, "vocab_size": vocabulary}
    require(config, wanted | {"truncated_vocab_size": vocabulary}, where)
    flags = ("condition_first", "tied", "own_lm_head", "own_embedding", "bias")
    about = _about(config, ("heads", "blocks"), flags, where)
    heads = about["heads"]
    require(config, {"num_heads": heads}, where)
    shapes: dict[str, tuple[int, ...]] = {"lm_head": (vocabulary, width)}
    if about["own_embedding"]:
        shapes["embedding"] = (vocabulary, width)
    if about["bias"]:
        shapes["lm_head_bias"] = (vocabulary,)
    if about["own_lm_head"]:
        shapes |= {f"lm_heads.{head}": (vocabulary, width) for head in range(heads)}
    for head in range(1 if about["tied"] else heads):
        shapes |= _cell_shapes(f"cells.{head}", width, about["blocks"], about["condition_first"] or head > 0)
    tensors = read_tensors(folder / WEIGHTS)
    require_shapes(tensors, shapes, where)
    names = [f"cells.{0 if about['tied'] else head}" for head in range(heads)]
    unembeddings = [tensors[f"lm_heads.{head}" if about["own_lm_head"] else "lm_head"] for head in range(heads)]
    bias = tensors["lm_head_bias"] if about["bias"] and not about["own_lm_head"] else None
    table = tensors["embedding" if about["own_embedding"] else "lm_head"]
    return _engine(tensors, names, about["blocks"], unembeddings, bias, table, backbone)


def read_vllm_tied_cascade(folder: Path, backbone: Backbone) -> Engine:
    """What vLLM and the plugin make of `folder` beside `backbone`; UserError for what they would refuse or pass over."""
    where, config = f"'{folder}'", read_config(folder)
    wanted = {"architectures": [TIED], "hidden_size": backbone.width, "vocab_size": backbone.vocabulary_size}
    require(config, {"model_type": "llama"} | wanted, where)
    about = _about(config, ("heads", "blocks"), (), where)
    tensors = read_tensors(folder / WEIGHTS)
    require_shapes(tensors, _cell_shapes("cell", backbone.width, about["blocks"], True), where)
    names, unembeddings = ["cell"] * about["heads"], [backbone.unembedding.detach()] * about["heads"]
    return _engine(tensors, names, about["blocks"], unembeddings, None, _embedding(backbone), backbone)


def _about(config: dict[str, Any], counts: tuple[str, ...], flags: tuple[str, ...], where: str) -> dict[str, Any]:
    """What config.json says under `cascade`, checked."""
    about = config.get("cascade")
    if not isinstance(about, dict):
        raise UserError(f"{where}: config.json says nothing under 'cascade': export it again")
    for name in (*counts, *flags):
        found = about.get(name)
        if not (type(found) is bool if name in flags else type(found) is int and found >= 1):
            raise UserError(f"{where}: cascade.{name} is {found!r} in config.json: export it again")
    return about


def _cell_shapes(name: str, width: int, blocks: int, sees_token: bool) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    if sees_token:
        shapes |= {f"{name}.project.weight": (width, 2 * width), f"{name}.project.bias": (width,)}
    for block in range(blocks):
        linear = f"{name}.blocks.{block}.linear"
        shapes |= {f"{linear}.weight": (width, width), f"{linear}.bias": (width,)}
    return shapes


def _engine(
    tensors: dict[str, Tensor],
    names: list[str],
    blocks: int,
    unembeddings: list[Tensor],
    bias: Tensor | None,
    table: Tensor,
    backbone: Backbone,
) -> Engine:
    """The cascade's formula, head k by the weights under names[k]."""

    def run(hidden: Tensor, tokens: Tensor) -> Tensor:
        at = {name: tensor.to(hidden) for name, tensor in tensors.items()}
        g, logits = hidden, []
        for head, name in enumerate(names):
            if f"{name}.project.weight" in at:
                token = table[tokens[:, head]].to(hidden)
                token = token / (token.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt()
                left, right = at[f"{name}.project.weight"].split(hidden.shape[1], dim=1)
                g = g @ left.T + token @ right.T + at[f"{name}.project.bias"]
            for block in range(blocks):
                linear = f"{name}.blocks.{block}.linear"
                g = g + silu(g @ at[f"{linear}.weight"].T + at[f"{linear}.bias"])
            said = g @ unembeddings[head].to(hidden).T
            logits.append(backbone.around_lm_head.behind(said if bias is None else said + bias.to(hidden)))
        return torch.stack(logits, dim=1)  # (A,K,V)

    return run
