"""The cascade: multi-head-causal (MHC) heads, each of which sees the previous one.

g_(-1) = h_t and head k computes g_k = ResBlocks(project[g_(k-1); embed(token t+1+k)]), from which
token t+2+k is unembedded. Its nearest relatives are Hydra (arXiv 2402.05109), ReDrafter
(2403.09919) and IBM's MLP speculator (2404.19124).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from mhc.backbone.model import Backbone, Features
from mhc.drafters.base import Guess, HiddenStateDrafter, ResBlock, inherit, shifted, unit_scale
from mhc.errors import UserError


class ResidualCell(nn.Module):
    """project[g; e] followed by ResBlocks; at first the identity on g."""

    def __init__(self, width: int, blocks: int, sees_token: bool):
        super().__init__()
        self.project = nn.Linear(2 * width, width) if sees_token else None
        if self.project is not None:
            with torch.no_grad():
                self.project.weight.mul_(0.1)
                self.project.weight[:, :width] += torch.eye(width)
            nn.init.zeros_(self.project.bias)
        self.blocks = nn.Sequential(*(ResBlock(width) for _ in range(blocks)))

    def forward(self, before: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """(...,D) the previous head's g, (...,D) the embedding of the token drafted from it -> (...,D) to be
        unembedded, (...,D) for the next head: both are this head's g."""
        if self.project is not None:
            before = self.project(torch.cat([before, token], dim=-1))
        g = self.blocks(before)
        return g, g


class SpeculatorCell(nn.Module):
    """IBM's MLP speculator (arXiv 2404.19124): s' = GELU(LN(P s + (w_e / w_s) E token)), where w_s = 0.5^(1/2n) and
    w_e = sqrt((1 - w_s^2) inner / 2) keep the hidden state's share of the state after n steps at a half. What is unembedded
    is s' projected back to the scale of the backbone's states."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.ratio = speculator_scale(heads, width)
        self.proj, self.emb = nn.Linear(width, width, bias=False), nn.Linear(width, width, bias=False)
        nn.init.normal_(self.emb.weight, std=1 / width)  # embeddings of unit scale become rows of scale 1/sqrt(inner)
        self.ln = nn.LayerNorm(width)
        self.head = nn.Linear(width, width)

    def forward(self, before: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        state = gelu(self.ln(torch.add(self.proj(before), self.emb(token), alpha=self.ratio)))
        return self.head(state), state


def speculator_scale(heads: int, inner: int) -> float:
    """w_e / w_s of an MLP speculator that predicts `heads` tokens."""
    state = 0.5 ** (1 / (2 * heads))
    return ((1 - state**2) * inner / 2) ** 0.5 / state


class LowRankCell(nn.Module):
    """ResBlocks on h alone, plus a low-rank correction of the logits by the previous token:
    logits += W2 W1 embed(token) (as DSpark corrects a parallel drafter). The next head sees h itself."""

    def __init__(self, width: int, blocks: int, rank: int):
        super().__init__()
        self.blocks = nn.Sequential(*(ResBlock(width) for _ in range(blocks)))
        self.squeeze = nn.Linear(width, rank, bias=False)

    def forward(self, before: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """(...,D), (...,D) -> (...,D+rank), (...,D)"""
        return torch.cat([self.blocks(before), self.squeeze(token)], dim=-1), before


class Cascade(HiddenStateDrafter):
    """K heads in sequence, trained on the true tokens or on their own drafts between them.

    heads: K. blocks: ResBlocks a head. own_lm_head: a trained lm_head copy per head in place of the frozen shared one.
    condition_first: the first head sees the known next token (Hydra); without, it sees h alone.
    cell: how a head works: 'residual', 'speculator' (IBM's) or 'low_rank' (the token corrects logits through `rank`
    numbers). tied: all heads share one cell. rollout: share of anchors whose heads are fed their own top-1 drafts in
    place of the true tokens; it grows from 0 to this value during training (0 is teacher forcing).
    """

    free_arguments = frozenset({"rollout"})

    def __init__(
        self,
        backbone: Backbone,
        heads: int = 5,
        blocks: int = 1,
        own_lm_head: bool = False,
        condition_first: bool = True,
        cell: str = "residual",
        rank: int = 64,
        tied: bool = False,
        rollout: float = 0.0,
    ):
        named = {
            "heads": heads,
            "blocks": blocks,
            "condition_first": condition_first,
            "cell": cell,
            "rank": rank,
            "tied": tied,
        }
        super().__init__(backbone, heads, own_lm_head, **named, rollout=rollout)
        width = backbone.width
        cells = {
            "residual": lambda head: ResidualCell(width, blocks, sees_token=condition_first or head > 0),
            "speculator": lambda head: SpeculatorCell(width, heads),
            "low_rank": lambda head: LowRankCell(width, blocks, rank),
        }
        if cell not in cells:
            raise UserError(f"cascade cell '{cell}': choose {', '.join(cells)}")
        if not condition_first and (tied or cell != "residual"):
            raise UserError("condition_first: false needs untied residual cells: leave it true")
        if not 0 <= rollout <= 1:
            raise UserError(f"rollout is {rollout}: it must be between 0 and 1")
        self.rollout, self.tied = rollout, tied
        self.cells = nn.ModuleList(cells[cell](head) for head in range(1 if tied else heads))
        self.correction = nn.Parameter(torch.zeros(backbone.vocabulary_size, rank)) if cell == "low_rank" else None

    def advance(self, head: int, before: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Apply head k to its input (...,D) and the tokens (...): what is unembedded, and the next head's input."""
        cell = self.cells[0 if self.tied else head]
        return cell(before, unit_scale(self.backbone.embed(tokens)))

    def unembed(self, head: int, hidden: Tensor) -> Tensor:
        if self.correction is None:
            return self.unembeddings(head, hidden)
        hidden, squeezed = hidden.split([self.backbone.width, self.correction.shape[1]], dim=-1)
        return self.unembeddings(head, hidden, linear(squeezed, self.correction))

    def unembedding(self, head: int) -> tuple[Tensor, ...]:
        own = super().unembedding(head)
        return own if self.correction is None else (*own, self.correction)

    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Guess]:
        state = features.hidden[anchors]  # (A,D)
        tokens = shifted(ids, anchors, 1)  # the known next token
        share = self.rollout * self.progress if self.training else 0.0
        rolled = torch.rand(len(state), device=state.device) < share if share else None
        for head in range(self.draft_length):
            hidden, state = self.advance(head, state, tokens)
            yield Guess(hidden)
            if head + 1 < self.draft_length:
                tokens = shifted(ids, anchors, head + 2)
                if rolled is not None:
                    with torch.no_grad():
                        tokens = torch.where(rolled, self.unembed(head, hidden).argmax(dim=-1), tokens)

    def start_tree(self, memory: Tensor, rows: slice):
        return 0, memory[rows, None]  # the next head, its input (B,1,D)

    def draft_level(self, state, tokens: Tensor, parents: Tensor):
        head, seen = state
        hidden, seen = self.advance(head, inherit(seen, parents), tokens)  # (B,R,D)
        return self.unembed(head, hidden), (head + 1, seen)
