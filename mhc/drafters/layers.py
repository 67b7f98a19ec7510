"""Pieces of a transformer layer that drafters are built from, named as Llama's are, so that exports need no renaming."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from mhc.backbone.model import Backbone


class Attention(nn.Module):
    """Projections of inputs (...,T,width_in) to heads (...,H,T,E), and of attention's output back to (...,T,D); width is
    E, D / H unless head_width is given. Keys and values have as many heads as queries: one layer's cache is small."""

    def __init__(self, width_in: int, width: int, heads: int, head_width: int | None = None):
        super().__init__()
        self.heads, self.width = heads, head_width or width // heads
        inner = heads * self.width
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width_in, inner, bias=False) for _ in range(3))
        self.o_proj = nn.Linear(inner, width, bias=False)

    def split(self, projected: Tensor) -> Tensor:
        """(...,T,D) -> (...,H,T,E)"""
        return projected.unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def join(self, mixed: Tensor) -> Tensor:
        """(...,H,T,E) -> (...,T,D), projected."""
        return self.o_proj(mixed.transpose(-2, -3).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int, inner: int):
        super().__init__()
        self.gate_proj, self.up_proj = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.down_proj(silu(self.gate_proj(hidden)) * self.up_proj(hidden))


def turns(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines (B,1,T,E/2) of the angles by which rotary position embedding (RoFormer, arXiv 2104.09864) rotates
    heads of this width at positions (B,T); attention depends only on differences of positions."""
    half = width // 2
    frequencies = theta ** (-torch.arange(half, device=positions.device, dtype=torch.float) / half)
    angles = positions[:, None, :, None] * frequencies
    return angles.cos(), angles.sin()


def turned(states: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
    """States (B,H,T,E) rotated, with the halves in Llama's layout."""
    cos, sin = (part.to(states.dtype) for part in by)
    first, second = states.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def sizes(backbone: Backbone) -> tuple[int, int]:
    """Attention heads and inner width for a layer that matches this backbone's own (4 D where its config names no inner width)."""
    text = backbone.model.config.get_text_config(decoder=True)
    heads, inner = text.num_attention_heads, getattr(text, "intermediate_size", None)
    while backbone.width % (2 * heads):  # a backbone's heads may be wider than width / heads
        heads -= 1
    return heads, (max(inner) if isinstance(inner, list) else inner) or 4 * backbone.width
