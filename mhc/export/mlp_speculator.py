"""A cascade of speculator cells as text-generation-inference reads IBM's MLP speculators.

    A positions   K heads   D width of the hidden state   I inner width, D and some   V vocabulary

IBM's (arXiv 2404.19124):  s' = GELU(w * rms(w_s P s + w_e E[token]) + b),  logits = H s'
ours (cascade.py):         s' = GELU(w * layer_norm(P s + w_e / w_s E e(token)) + b),  logits = U (H s' + c) + d

with e(token) the backbone's embedding at unit scale, U its lm_head and d that one's bias, if it has one. Ours is theirs,
exactly, once folded:

- E e(token) is a table of V rows, U H one matrix;
- the mean that a layer norm takes off is taken off P and E, whose rows' mean is subtracted;
- its epsilon, 1e-5 where theirs is 1e-6, is a matter of scale: P and E shrink by the root of their ratio;
- the constant U c + d depends on a further inner unit that P and E leave at 0 and w and b at GELU(1). Eight of those, seven
  of them empty, so that sizes stay multiples of eight; the root mean square, now over I units, shrinks by root (D / I).

Read in TGI 2.2.0 and 3.3.7 (layers/mlp.py, models/__init__.py). From 2.3.0 on TGI loads heads with tied weights alone: its
other class asks a list of embeddings for their weight and fails. Before, it knew no tied ones. vLLM switched both off with
its V1 engine.
"""

import math
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import gelu

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Drafter
from mhc.drafters.base import unit_scale
from mhc.drafters.cascade import SpeculatorCell
from mhc.errors import UserError
from mhc.export.folders import (
    NEAREST,
    WEIGHTS,
    Engine,
    read_config,
    read_counts,
    read_tensors,
    require,
    require_plain_unembedding,
    require_shapes,
    stored,
    target,
    tgi_command,
    write_folder,
)

EPSILON = 1e-6
FURTHER = 8  # inner units beyond D; the first is constant, the others are empty


def mlp_speculator(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as TGI reads an MLP speculator; returns the command that serves it.

    Raises UserError for heads that are no cascade of speculator cells."""
    if not isinstance(drafter, Cascade) or not isinstance(drafter.cells[0], SpeculatorCell):
        kind = type(drafter)
        cell = f" with cell: {drafter.arguments['cell']}" if isinstance(drafter, Cascade) else ""
        raise UserError(
            f"an MLP speculator is a cascade with cell: speculator, and these are {kind.__name__} heads{cell}: "
            f"{NEAREST[kind]}"
        )
    require_plain_unembedding(drafter, "TGI")
    backbone, heads = drafter.backbone, drafter.heads
    tied = heads == 1 or (drafter.tied and not drafter.unembeddings.own)  # IBM's ties what unembeds, too
    inner, state_share, token_share = _shares(heads, backbone.width)
    tensors: dict[str, Tensor] = {}
    for head in range(1 if tied else heads):
        speculator = drafter.cells[0 if drafter.tied else head]
        assert isinstance(speculator, SpeculatorCell)
        table, proj, norm, bias, unembedding = _folded(speculator, drafter, head)
        tensors[f"speculator.emb.{head}.weight"] = table * (speculator.ratio / token_share)
        tensors[f"speculator.proj.{head}.weight"] = (proj if head else proj[:, : backbone.width]) / state_share
        tensors[f"speculator.ln.{head}.weight"], tensors[f"speculator.ln.{head}.bias"] = norm, bias
        tensors[f"speculator.head.{head}.weight"] = unembedding
        if tied:
            tensors["speculator.proj.1.weight"] = proj / state_share
    config = {
        "model_type": "mlp_speculator",
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "base_model_name_or_path": target(backbone),
        "vocab_size": backbone.vocabulary_size,
        "emb_dim": backbone.width,
        "inner_dim": inner,
        "n_predict": heads,
        "top_k_tokens_per_head": [1] * heads,
        "n_candidates": 1,
        "tie_weights": tied,
        "scale_input": False,
        "torch_dtype": str(backbone.dtype).removeprefix("torch."),
    }
    write_folder(folder, config, {name: stored(tensor, backbone) for name, tensor in tensors.items()})
    which = (
        "TGI 2.3 to 3.3" if tied else "TGI 2.0.3 to 2.2 only, later ones load tied heads alone (train with tied: true)"
    )
    return f"{tgi_command(folder)}  # {which}; without --speculate, whose number would change the heads' weights"


def _shares(heads: int, width: int) -> tuple[int, float, float]:
    """I, and the weights of state and token as an MLP speculator of this inner width has them."""
    inner = width + FURTHER
    state = 0.5 ** (0.5 / heads)
    return inner, state, math.sqrt((1 - state**2) * inner / 2)


@torch.no_grad()
def _folded(cell: SpeculatorCell, drafter: Cascade, head: int) -> tuple[Tensor, ...]:
    """The cell in IBM's shape, shares left out: token table (V,I), projection (I,I), norm's weight and bias (I,),
    unembedding (V,I)."""
    backbone, width = drafter.backbone, drafter.backbone.width
    inner = width + FURTHER
    scale = math.sqrt(EPSILON / cell.ln.eps * inner / width)
    every = torch.arange(backbone.vocabulary_size, device=backbone.device)
    table = unit_scale(backbone.embed(every)).float() @ _centred(cell.emb.weight).T * scale
    lm_head = drafter.unembeddings.weight(head).detach().float()
    constant = lm_head @ cell.head.bias.float()
    further = backbone.model.get_output_embeddings().bias
    if further is not None and not drafter.unembeddings.own:
        constant = constant + further.detach().float()
    unembedding = torch.zeros(len(lm_head), inner, device=lm_head.device)
    unembedding[:, :width] = lm_head @ cell.head.weight.float()
    unembedding[:, width] = constant / gelu(torch.ones(())).item()
    proj = torch.zeros(inner, inner, device=lm_head.device)
    proj[:width, :width] = _centred(cell.proj.weight) * scale
    norm, bias = torch.zeros(2, inner, device=lm_head.device)
    norm[:width], bias[:width] = cell.ln.weight * math.sqrt(width / inner), cell.ln.bias
    bias[width] = 1
    return torch.nn.functional.pad(table, (0, FURTHER)), proj, norm, bias, unembedding


def _centred(weight: Tensor) -> Tensor:
    """A matrix (D,D') after which there is no mean to take off."""
    return (weight.double() - weight.double().mean(dim=0)).float()


# ---- reading back, by the engine's rules


def read_mlp_speculator(folder: Path, backbone: Backbone) -> Engine:
    """What TGI makes of `folder` beside `backbone`; UserError for what it would refuse or pass over."""
    where, config = f"'{folder}'", read_config(folder)
    wanted = {
        "model_type": "mlp_speculator",
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "base_model_name_or_path": target(backbone),
        "vocab_size": backbone.vocabulary_size,
        "emb_dim": backbone.width,
        "scale_input": False,  # TGI knows no other
    }
    require(config, wanted, where)
    steps, inner = read_counts(config, "n_predict", "inner_dim", where)
    tied = bool(config.get("tie_weights", False))
    if len(config.get("top_k_tokens_per_head") or ()) != steps:
        raise UserError(f"{where}: top_k_tokens_per_head in config.json needs n_predict, {steps}, numbers")
    shapes: dict[str, tuple[int, ...]] = {}
    for step in range(1 if tied else steps):
        shapes[f"speculator.emb.{step}.weight"] = shapes[f"speculator.head.{step}.weight"] = (
            backbone.vocabulary_size,
            inner,
        )
        shapes[f"speculator.ln.{step}.weight"] = shapes[f"speculator.ln.{step}.bias"] = (inner,)
    for step in range(2 if tied else steps):
        shapes[f"speculator.proj.{step}.weight"] = (inner, inner if step else backbone.width)
    tensors = read_tensors(folder / WEIGHTS)
    require_shapes(tensors, shapes, where)
    state_weight = 0.5 ** (0.5 / steps)
    emb_weight = math.sqrt(1 - state_weight**2) * math.sqrt(inner / 2)

    def run(hidden: Tensor, tokens: Tensor) -> Tensor:
        """Step by step, as the engine drafts a chain of `tokens` (A,K)."""
        weights = {name.removeprefix("speculator."): tensor.to(hidden) for name, tensor in tensors.items()}
        state, logits = hidden, []
        for step in range(steps):
            own, proj = (0, min(step, 1)) if tied else (step, step)
            token = weights[f"emb.{own}.weight"][tokens[:, step]] * emb_weight
            state = state @ weights[f"proj.{proj}.weight"].T * state_weight + token
            state = state * torch.rsqrt(state.pow(2).mean(dim=-1, keepdim=True) + 1e-6)
            state = gelu(weights[f"ln.{own}.weight"] * state + weights[f"ln.{own}.bias"])
            logits.append(state @ weights[f"head.{own}.weight"].T)
        return torch.stack(logits, dim=1)  # (A,K,V)

    return run
