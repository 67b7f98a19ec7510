"""Gemma 2's bound on logits."""

import torch
from torch import Tensor


def capped(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap) of logits (...,V); None leaves them alone."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)
