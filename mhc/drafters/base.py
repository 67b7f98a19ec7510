"""The drafter interface, the only one that training, tree growth and decoding use.

    B rows   T time   A anchors (positions that are trained on)   K heads   R nodes expanded
    P newly accepted positions   D width   V vocabulary

Index convention: the backbone at position t predicts token t+1; head k, counted from 0, predicts
token t+2+k. So the heads at t start from the *known next token* t+1, the root of a tree.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mhc.backbone.model import Backbone, Features


class Guess(NamedTuple):
    """One head's output while training. hidden (A,D): the input of its unembedding. weight (A,): each anchor's weight
    in the loss, or None where all are 1."""

    hidden: Tensor
    weight: Tensor | None = None


class Drafter(nn.Module, ABC):
    """Heads on a shared backbone. Only the drafter's own weights are its parameters.

    draft_length: K, how many tokens beyond the known next one it drafts. `arguments` are the constructor's
    (without the backbone), as a checkpoint stores them. taps: layers of the backbone whose inputs it reads besides the
    last hidden state. progress: the completed share of training, 0 to 1, for schedules. free_arguments: those that
    decide no tensor's shape, so that they may differ between a checkpoint and the run that resumes from it.
    """

    taps: tuple[int, ...] = ()
    progress: float = 1.0
    free_arguments: frozenset[str] = frozenset()

    def __init__(self, backbone: Backbone, draft_length: int, /, **arguments: Any):
        super().__init__()
        self.draft_length = draft_length
        self.arguments = arguments
        self._borrowed = (backbone,)  # a tuple, so that the backbone does not become a submodule of the drafter

    @property
    def backbone(self) -> Backbone:
        return self._borrowed[0]

    @property
    def vocabulary(self) -> Tensor | None:
        """The ascending ids of the tokens that it can draft, or None for all."""
        return None

    # ---- training

    def choose_vocabulary(self, frequencies: Tensor) -> str | None:
        """Choose the draft vocabulary by each token's frequency (V,) in the training text, once before training; returns a line to
        print, if any."""

    @abstractmethod
    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Guess]:
        """Head by head, the hidden states (A,D) from which token t+2+k is unembedded.

        ids (B,T); anchors (row (A,), position t (A,)). Tokens beyond a row's end are taken to be its last.
        """

    @abstractmethod
    def unembed(self, head: int, hidden: Tensor) -> Tensor:
        """Logits of one head over all tokens: (...,D) -> (...,V), -inf for those it cannot draft."""

    @abstractmethod
    def unembedding(self, head: int) -> tuple[Tensor, ...]:
        """The matrices behind `unembed`, one for each range of hidden's columns, as the chunked losses take them."""

    @property
    def finisher(self) -> Callable[[Tensor], Tensor] | None:
        """What makes logits of products with these matrices, as in Backbone: with lm_heads of its own, without a bias."""
        return self.backbone.around_lm_head.finisher

    # ---- decoding: memory belongs to rows, state to one tree

    @abstractmethod
    def allocate(self, rows: int, capacity: int) -> Any:
        """Memory for `rows` sequences of at most `capacity` positions."""

    @abstractmethod
    def observe(
        self, memory: Any, rows: slice, accepted: Features, next_ids: Tensor, start: int | Tensor, counts: Tensor
    ) -> None:
        """Update the memory of these rows with the positions accepted since the last round (after a prefill: the prompt):
        features (B,P,...) at positions start (of all, or (B,)), start+1, ... and the token after each, next_ids (B,P).
        Only the first counts[b] are valid; the last of their next_ids is the root of the next tree."""

    @abstractmethod
    def move(self, memory: Any, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""

    @abstractmethod
    def start_tree(self, memory: Any, rows: slice) -> Any:
        """The state from which a tree is grown for these rows."""

    @abstractmethod
    def draft_level(self, state: Any, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Any]:
        """Draft one level: tokens (B,R) are children of rows `parents` (1|B,R) of the previous level's state.
        Returns logits (B,R,V) for their own children, and the state with R rows."""


class HiddenStateDrafter(Drafter):
    """A drafter whose only memory is the hidden state at the last accepted position."""

    def __init__(self, backbone: Backbone, draft_length: int, own_lm_head: bool, /, **arguments: Any):
        super().__init__(backbone, draft_length, own_lm_head=own_lm_head, **arguments)
        self.unembeddings = Unembeddings(backbone, draft_length, own_lm_head)

    def unembed(self, head: int, hidden: Tensor) -> Tensor:
        return self.unembeddings(head, hidden)

    def unembedding(self, head: int) -> tuple[Tensor, ...]:
        return (self.unembeddings.weight(head),)

    @property
    def finisher(self) -> Callable[[Tensor], Tensor] | None:
        return super().finisher if self.unembeddings.own else self.backbone.finisher

    def allocate(self, rows: int, capacity: int) -> Tensor:
        return torch.zeros(rows, self.backbone.width, dtype=self.backbone.dtype, device=self.backbone.device)

    def observe(
        self, memory: Tensor, rows: slice, accepted: Features, next_ids: Tensor, start: int | Tensor, counts: Tensor
    ) -> None:
        every_row = torch.arange(len(counts), device=counts.device)
        memory[rows] = accepted.hidden[every_row, counts - 1]

    def move(self, memory: Tensor, source: int, target: int) -> None:
        memory[target] = memory[source]


def inherit(state: Tensor, parents: Tensor) -> Tensor:
    """Rows `parents` (1|B,R) of a state (B,R',D) -> (B,R,D)."""
    if len(parents) == 1:
        return state.index_select(1, parents[0])
    return state.gather(1, parents[..., None].expand(-1, -1, state.shape[2]))


class ResBlock(nn.Module):
    """z = h + SiLU(W h + b), W and b zero at the start, so that it is the identity at first (Medusa)."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + torch.nn.functional.silu(self.linear(hidden))


class Unembeddings(nn.Module):
    """The unembedding of the heads: the backbone's frozen lm_head, or a trained copy per head."""

    def __init__(self, backbone: Backbone, heads: int, own: bool):
        super().__init__()
        self._borrowed = (backbone,)
        self.own = nn.ParameterList()
        if own:
            self.own.extend(nn.Parameter(backbone.unembedding.detach().clone().float()) for _ in range(heads))

    def weight(self, head: int) -> Tensor:
        """(V,D)"""
        return self.own[head] if self.own else self._borrowed[0].unembedding

    def forward(self, head: int, hidden: Tensor, correction: Tensor | None = None) -> Tensor:
        """(...,D) -> (...,V), plus a correction (...,V) where there is one."""
        backbone = self._borrowed[0]
        if not self.own:
            return backbone.unembed(hidden, correction)
        product = torch.nn.functional.linear(hidden, self.own[head].to(hidden.dtype))
        return backbone.around_lm_head.behind(product if correction is None else product + correction)


def shifted(ids: Tensor, anchors: tuple[Tensor, Tensor], offset: int) -> Tensor:
    """Tokens at position t+offset of each anchor (A,), or the last token where the row is shorter."""
    row, position = anchors
    return ids[row, (position + offset).clamp(max=ids.shape[1] - 1)]


def unit_scale(embedded: Tensor) -> Tensor:
    """Embeddings (...,D) scaled to unit root mean square, whatever the backbone's own scale."""
    return torch.nn.functional.rms_norm(embedded.float(), embedded.shape[-1:]).to(embedded.dtype)
