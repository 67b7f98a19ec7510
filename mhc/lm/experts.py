"""Mixtures of experts: the loss that makes a router use its experts evenly, and figures of how evenly it does.

    B rows   T time   N tokens   L layers that have experts   E experts of each   K experts of a token

Stock models give their routers' logits on request: `model.base_model(ids, output_router_logits=True).router_logits`, a
tuple of L tensors (N,E), N = B * T, row after row.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

FIGURES = ("expert_peak", "expert_starved", "expert_entropy")


@dataclass(frozen=True)
class Routing:
    """experts E and top_k K of each layer; coefficient: the weight of the balancing loss beside the model's own
    (`router_aux_loss_coef` of the config)."""

    experts: int
    top_k: int
    coefficient: float


def routed_config(model: PreTrainedModel) -> Routing | None:
    """How a model routes its tokens; None for a dense one, and for models without a balancing loss in transformers
    (DeepSeek-V3 and its descendants are balanced by a bias)."""
    config = model.config.get_text_config(decoder=True)
    experts = getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None)
    coefficient = getattr(config, "router_aux_loss_coef", None)
    if not experts or coefficient is None or not hasattr(config, "output_router_logits"):
        return None
    return Routing(experts, config.num_experts_per_tok, coefficient)


def balance(
    router_logits: tuple[Tensor, ...], experts: int, top_k: int, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The load-balancing loss (), and the load (L,E): the share of the tokens that each expert receives.

    The loss is E * sum_i f_i * P_i (Switch Transformer, arXiv 2101.03961, eq. 4-6), the mean of all layers: f_i is the load
    of expert i, P_i the mean probability that the router gives it; only P has a gradient. The loss is K under even use, its
    minimum for an even router, and up to E where all tokens use the same K experts. transformers' own function equals it
    for one layer, but takes f and P over all layers together, where two layers that each use one expert look even. mask
    (B,T) or (N,): tokens that are not padding; all by default. As there, f follows the logits: a correction bias that is not
    zero (ERNIE's own weights have one) is left out.
    """
    loads, means = [], []
    for logits in router_logits:
        probabilities = logits.float().softmax(dim=-1)  # (N,E)
        chosen = torch.zeros_like(probabilities).scatter(1, probabilities.topk(top_k, dim=-1).indices, 1.0)
        counted = logits.new_ones(len(logits), dtype=torch.float32) if mask is None else mask.reshape(-1).float()
        share = counted / counted.sum().clamp(min=1)
        # autocast would round the sums over all tokens
        loads.append((share[:, None] * chosen).sum(dim=0))
        means.append((share[:, None] * probabilities).sum(dim=0))
    load = torch.stack(loads)
    return experts * (load * torch.stack(means)).sum(dim=1).mean(), load


def usage(load: Tensor) -> dict[str, Tensor]:
    """FIGURES of a load (L,E), each (). expert_peak: the largest load of an expert over the mean of its layer, in the least
    even layer (1 is even, E / K the maximum). expert_starved: the share of experts with less than a tenth of the mean.
    expert_entropy: entropy of the load within a layer over that of even use, averaged over layers (1 is even)."""
    relative = load / load.mean(dim=1, keepdim=True).clamp(min=1e-9)
    share = relative / load.shape[1]
    entropy = torch.special.entr(share).sum(dim=1) / math.log(load.shape[1])
    return {
        "expert_peak": relative.max(),
        "expert_starved": (relative < 0.1).float().mean(),
        "expert_entropy": entropy.mean(),
    }
