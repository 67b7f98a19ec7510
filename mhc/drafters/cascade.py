"""The cascade: multi-head-causal (MHC) heads, each of which sees the one before it.

g_(-1) = h_t and head k computes g_k = ResBlocks(project[g_(k-1); embed(token t+1+k)]), from which
token t+2+k is unembedded. Its nearest relatives are Hydra (arXiv 2402.05109), ReDrafter
(2403.09919) and IBM's MLP speculator (2404.19124).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import rms_norm

from mhc.backbone import Backbone, Features
from mhc.drafters.base import HiddenStateDrafter, ResBlock, inherit, shifted


class CausalHead(nn.Module):
    """project[g; e] followed by ResBlocks; begins as the identity on g."""

    def __init__(self, width: int, blocks: int, sees_token: bool):
        super().__init__()
        self.project = nn.Linear(2 * width, width) if sees_token else None
        if self.project is not None:
            with torch.no_grad():
                self.project.weight.mul_(0.1)
                self.project.weight[:, :width] += torch.eye(width)
            nn.init.zeros_(self.project.bias)
        self.blocks = nn.Sequential(*(ResBlock(width) for _ in range(blocks)))

    def forward(self, before: Tensor, token: Tensor) -> Tensor:
        """(...,D) the previous head's g, (...,D) the embedding of the token it led to -> (...,D)."""
        if self.project is not None:
            before = self.project(torch.cat([before, token], dim=-1))
        return self.blocks(before)


class Cascade(HiddenStateDrafter):
    """K heads in a row, trained with the true tokens or with their own guesses between them.

    heads: K. blocks: ResBlocks a head. own_lm_head: a trained lm_head copy per head in place of the
    frozen shared one. condition_first: the first head sees the known next token (Hydra); without,
    it sees h alone (the seed's drawing). rollout: share of anchors whose heads are fed their own
    top-1 guesses while training in place of the true tokens (0 is teacher forcing).
    """

    def __init__(
        self,
        backbone: Backbone,
        heads: int = 5,
        blocks: int = 1,
        own_lm_head: bool = False,
        condition_first: bool = True,
        rollout: float = 0.0,
    ):
        super().__init__(backbone, heads, own_lm_head, blocks=blocks, condition_first=condition_first, rollout=rollout)
        self.rollout = rollout
        self.cells = nn.ModuleList(
            CausalHead(backbone.width, blocks, sees_token=condition_first or head > 0) for head in range(heads)
        )

    def token_features(self, tokens: Tensor) -> Tensor:
        """Embeddings scaled to unit root mean square, whatever the backbone's own scale: (...,D)."""
        embedded = self.backbone.embed(tokens)
        return rms_norm(embedded.float(), embedded.shape[-1:]).to(embedded.dtype)

    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
        g = features.hidden[anchors]  # (A,D)
        tokens = shifted(ids, anchors, 1)  # the known next token
        rolled = torch.rand(len(g), device=g.device) < self.rollout if self.training and self.rollout else None
        for head, cell in enumerate(self.cells):
            g = cell(g, self.token_features(tokens))
            yield g
            if head + 1 < self.heads:
                tokens = shifted(ids, anchors, head + 2)
                if rolled is not None and rolled.any():
                    with torch.no_grad():
                        tokens = torch.where(rolled, self.unembed(head, g).argmax(dim=-1), tokens)

    def begin(self, memory: Tensor, rows: slice):
        return 0, memory[rows, None]  # the head to come, g (B,1,D)

    def step(self, state, tokens: Tensor, parents: Tensor):
        head, g = state
        g = self.cells[head](inherit(g, parents), self.token_features(tokens))  # (B,R,D)
        return self.unembed(head, g), (head + 1, g)
