"""What a drafter is: the one interface that training, growth and decoding know.

    B rows   T time   A anchors (positions that are trained on)   K heads   R nodes that grow
    P newly accepted positions   D width   V vocabulary

Index convention: the backbone at position t predicts token t+1; head k, counted from 0, predicts
token t+2+k. So the heads at t start from the *known next token* t+1, the root of a tree.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mhc.backbone import Backbone, Features


class Drafter(nn.Module, ABC):
    """Heads on a borrowed backbone. Only the drafter's own weights are its parameters.

    heads: K, how many tokens beyond the known next one it guesses. `arguments` are the constructor's
    (without the backbone), as a checkpoint keeps them.
    """

    def __init__(self, backbone: Backbone, heads: int, **arguments: Any):
        super().__init__()
        self.heads = heads
        self.arguments = {"heads": heads, **arguments}
        self._borrowed = (backbone,)  # a tuple, so that the backbone is no submodule of the drafter

    @property
    def backbone(self) -> Backbone:
        return self._borrowed[0]

    # ---- training

    @abstractmethod
    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
        """Head by head, the hidden states (A,D) from which token t+2+k is unembedded.

        ids (B,T); anchors (row (A,), position t (A,)). Tokens beyond a row's end read as its last.
        """

    @abstractmethod
    def unembed(self, head: int, hidden: Tensor) -> Tensor:
        """Logits of one head: (...,D) -> (...,V)."""

    @abstractmethod
    def unembedding(self, head: int) -> Tensor:
        """The matrix (V,D) behind `unembed`, for the chunked losses."""

    # ---- decoding: memory lasts as long as its rows, state as long as one tree

    @abstractmethod
    def allocate(self, rows: int, capacity: int) -> Any:
        """Memory for `rows` sequences of at most `capacity` positions."""

    @abstractmethod
    def read(self, memory: Any, rows: slice, accepted: Features, counts: Tensor) -> None:
        """Take note of what was accepted since the last round (after a prefill: the prompt):
        hidden (B,P,D) for the rows named, of which the first counts[b] positions hold."""

    @abstractmethod
    def move(self, memory: Any, source: int, target: int) -> None:
        """Row `source` takes the place of row `target`."""

    @abstractmethod
    def begin(self, memory: Any, rows: slice) -> Any:
        """The state from which a tree is grown for these rows."""

    @abstractmethod
    def step(self, state: Any, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Any]:
        """One level deeper: tokens (B,R) grow below rows `parents` (1|B,R) of the previous step's state.
        Returns logits (B,R,V) for their children, and the state with R rows."""


class HiddenStateDrafter(Drafter):
    """A drafter whose only memory is the hidden state at the last accepted position."""

    def __init__(self, backbone: Backbone, heads: int, own_lm_head: bool, **arguments: Any):
        super().__init__(backbone, heads, own_lm_head=own_lm_head, **arguments)
        self.unembeddings = Unembeddings(backbone, heads, own_lm_head)

    def unembed(self, head: int, hidden: Tensor) -> Tensor:
        return self.unembeddings(head, hidden)

    def unembedding(self, head: int) -> Tensor:
        return self.unembeddings.weight(head)

    def allocate(self, rows: int, capacity: int) -> Tensor:
        return torch.zeros(rows, self.backbone.width, dtype=self.backbone.dtype, device=self.backbone.device)

    def read(self, memory: Tensor, rows: slice, accepted: Features, counts: Tensor) -> None:
        every = torch.arange(len(counts), device=counts.device)
        memory[rows] = accepted.hidden[every, counts - 1]

    def move(self, memory: Tensor, source: int, target: int) -> None:
        memory[target] = memory[source]


def inherit(state: Tensor, parents: Tensor) -> Tensor:
    """Rows `parents` (1|B,R) of a state (B,R',D) -> (B,R,D)."""
    if len(parents) == 1:
        return state.index_select(1, parents[0])
    return state.gather(1, parents[..., None].expand(-1, -1, state.shape[2]))


class ResBlock(nn.Module):
    """z = h + SiLU(W h + b), W and b zero at the start, so that it begins as the identity (Medusa)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.nn.functional.silu(self.linear(hidden))


class Unembeddings(nn.Module):
    """The heads' way to the vocabulary: the backbone's frozen lm_head, or a trained copy per head."""

    def __init__(self, backbone: Backbone, heads: int, own: bool):
        super().__init__()
        self._borrowed = (backbone,)
        self.own = nn.ParameterList()
        if own:
            weight = backbone.model.get_output_embeddings().weight
            self.own.extend(nn.Parameter(weight.detach().clone().float()) for _ in range(heads))

    def weight(self, head: int) -> Tensor:
        """(V,D)"""
        return self.own[head] if self.own else self._borrowed[0].model.get_output_embeddings().weight

    def forward(self, head: int, hidden: Tensor) -> Tensor:
        """(...,D) -> (...,V)"""
        if not self.own:
            return self._borrowed[0].unembed(hidden)
        return torch.nn.functional.linear(hidden, self.own[head].to(hidden.dtype))


def shifted(ids: Tensor, anchors: tuple[Tensor, Tensor], offset: int) -> Tensor:
    """Tokens at position t+offset of each anchor (A,), the last token where the row ends before."""
    row, position = anchors
    return ids[row, (position + offset).clamp(max=ids.shape[1] - 1)]
