"""Medusa: every head drafts from the hidden state alone, independent of the others (arXiv 2401.10774)."""

from collections.abc import Iterator

from torch import Tensor, nn

from mhc.backbone.model import Backbone, Features
from mhc.drafters.base import Guess, HiddenStateDrafter, ResBlock


class Medusa(HiddenStateDrafter):
    """K independent stacks of ResBlocks on the backbone's hidden state.

    heads: K. blocks: ResBlocks a head. own_lm_head: train a copy of the backbone's lm_head for
    every head (Medusa-1 as published) in place of sharing the frozen one.
    """

    def __init__(self, backbone: Backbone, heads: int = 5, blocks: int = 1, own_lm_head: bool = False):
        super().__init__(backbone, heads, own_lm_head, heads=heads, blocks=blocks)
        self.stacks = nn.ModuleList(
            nn.Sequential(*(ResBlock(backbone.width) for _ in range(blocks))) for _ in range(heads)
        )

    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Guess]:
        hidden = features.hidden[anchors]  # (A,D)
        for stack in self.stacks:
            yield Guess(stack(hidden))

    def start_tree(self, memory: Tensor, rows: slice):
        return 0, memory[rows]  # the next head, h (B,D)

    def draft_level(self, state, tokens: Tensor, parents: Tensor):
        """Every node of a level gets the same logits: a Medusa head does not see the parent."""
        head, hidden = state
        logits = self.unembed(head, self.stacks[head](hidden))  # (B,V)
        return logits[:, None].expand(-1, tokens.shape[1], -1), (head + 1, hidden)
