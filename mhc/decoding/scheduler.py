"""Prompts that come and go while others are decoded: continuous batching.

A session serves up to `size` rows at once. `submit` hands it a prompt, at any time; each `step` either reads waiting
prompts into free rows or decodes one round of the rows being served, and tells what came of it; `cancel` frees a row. What a
prompt is answered hangs on the prompt and its sampling alone, whoever is decoded beside it.
`Engine.stream` runs a session over a list of prompts, mhc.serve one over the requests of a server.
"""

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import torch

from mhc.decoding.batch import Asked, Rows
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from mhc.engine import Engine


class Likelihood(NamedTuple):
    """What the backbone thought of a token that was emitted, before temperature and restrictions: its log-probability, and the
    likeliest tokens with theirs, best first."""

    logprob: float
    top: list[tuple[int, float]]


class Piece(NamedTuple):
    """What one round gave one prompt: its number, the new tokens, why it ended (or None), each token's likelihood where that was
    asked for, and how many guesses in a row were verified for it."""

    prompt: int
    tokens: list[int]
    finish_reason: str | None
    likelihoods: list[Likelihood] | None = None
    drafted: int = 0


class Session:
    """Rows of an engine, served round by round. rows: as `Engine.rows` makes them; what stands in them waits already.
    context: tokens of a prompt and its answer together."""

    def __init__(self, engine: "Engine", rows: Rows, speculate: bool, context: int):
        self.engine, self.rows, self.speculate, self.context = engine, rows, speculate, context
        self.waiting = deque(rows.asked)

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.rows.serving)

    def submit(
        self,
        number: int,
        prompt: list[int],
        max_new_tokens: int,
        sampling: Sampling = GREEDY,
        plain: bool = False,
        likelihoods: bool = False,
    ) -> None:
        """Ask for an answer under a number of the caller's that is not in use. plain: without the heads' guesses.

        Raises UserError where the prompt is empty or leaves no room.
        """
        room = room_of(number, prompt, max_new_tokens, self.context)
        self.rows.asked[number] = Asked(prompt, room, sampling, plain, likelihoods)
        self.waiting.append(number)

    def cancel(self, number: int) -> None:
        """Stop answering; nothing more is told of it. A number that is not (or no longer) known is none of our business."""
        if number in self.rows.serving:
            self.rows.leave(self.rows.serving.index(number))
        elif number in self.rows.asked:
            self.waiting.remove(number)
            del self.rows.asked[number]

    @torch.inference_mode()
    def step(self) -> list[Piece]:
        """Read waiting prompts into free rows, or decode one round of those being served."""
        rows = self.rows
        if self.waiting and rows.has_room(self.waiting):
            numbers = rows.next_of(self.waiting)
            tokens = self.engine.prefill(rows, numbers)
            for number, token in zip(numbers, tokens):
                rows.join(number, token)
            return self._pieces([[token] for token in tokens], len(rows.serving) - len(numbers))
        if not rows.serving:
            return []
        rows.cache.select(rows.active.start, rows.active.stop)
        return self._pieces(self.engine.round(rows, self.speculate and rows.guesses))

    def _pieces(self, emitted: list[list[int]], first: int = 0) -> list[Piece]:
        """The pieces of rows first, first+1, ...; the last comes first, since finished rows leave."""
        rows, pieces = self.rows, []
        noted = rows.likelihoods() if rows.notes else []
        for row in reversed(range(first, first + len(emitted))):
            number = rows.serving[row]
            asked = rows.asked[number]
            tokens, reason = self._cut(emitted[row - first], rows.left[row])
            rows.left[row] -= len(tokens)
            told = None
            if asked.likelihoods:
                told = [Likelihood(*each) for each in noted[row - first][: len(tokens)]]
            pieces.append(Piece(number, tokens, reason, told, 0 if asked.plain else rows.levels))
            if reason is not None:
                rows.leave(row)
        return pieces

    def _cut(self, tokens: list[int], left: int) -> tuple[list[int], str | None]:
        """End a round's tokens at the end-of-text token or at the length limit."""
        for index, token in enumerate(tokens[:left]):
            if token in self.engine.end_ids:
                return tokens[: index + 1], "stop"
        return tokens[:left], "length" if len(tokens) >= left else None


def room_of(number: int, prompt: list[int], max_new_tokens: int, context: int) -> int:
    """How many tokens may follow this prompt; UserError where it is none."""
    if not prompt:
        raise UserError(f"prompt {number} is empty: give it at least one token")
    if len(prompt) >= context:
        raise UserError(f"prompt {number} has {len(prompt)} tokens, the backbone's context is {context}: shorten it")
    if max_new_tokens < 1:
        raise UserError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
    return min(max_new_tokens, context - len(prompt))
