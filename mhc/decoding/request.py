"""Inputs and outputs of the decode loop: requests, the output of each step, whole answers."""

from dataclasses import dataclass, field
from typing import NamedTuple

from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling


class DecodeRequest(NamedTuple):
    """One prompt of token ids, how many tokens may follow it and how they are drawn. plain: one token per step, without draft
    tokens; logprobs: whether each token comes with its log-probability."""

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling = GREEDY
    plain: bool = False
    logprobs: bool = False

    def within(self, context: int, number: int = 0) -> "DecodeRequest":
        """The same request with its answer cut to a context of so many tokens.

        Raises UserError, naming request `number`, where the prompt is empty or leaves no tokens for an answer.
        """
        if not self.prompt:
            raise UserError(f"prompt {number} is empty: give it at least one token")
        length = len(self.prompt)
        if length >= context:
            raise UserError(f"prompt {number} has {length} tokens, the backbone's context is {context}: shorten it")
        if self.max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {self.max_new_tokens}: it must be at least 1")
        return self._replace(max_new_tokens=min(self.max_new_tokens, context - length))


class TokenLogprob(NamedTuple):
    """The target model's log-probability of an emitted token, before temperature and restrictions, and its likeliest tokens
    with theirs, best first."""

    logprob: float
    top: list[tuple[int, float]]


class StepOutput(NamedTuple):
    """What one step emitted for one request: accepted draft tokens and, last, the bonus token.

    request: its number; finish_reason: 'stop', 'length' or None while the answer continues; logprobs: one per token where the
    request wants them; drafted: how many draft tokens per path were verified.
    """

    request: int
    tokens: list[int]
    finish_reason: str | None
    logprobs: list[TokenLogprob] | None = None
    drafted: int = 0

    @property
    def draft_tokens(self) -> list[int]:
        """The accepted draft tokens."""
        return self.tokens[:-1]

    @property
    def bonus_token(self) -> int:
        """The target model's token after the accepted draft tokens; the last of these where the answer ends within them."""
        return self.tokens[-1]


@dataclass
class Generation:
    """One answer. token_ids: the new tokens, the end-of-text token included; accepted: draft tokens accepted
    in each step; seconds: wall time, prefill included; finish_reason: 'stop' or 'length'."""

    token_ids: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    seconds: float = 0.0
    text: str = ""

    def append(self, output: StepOutput) -> None:
        """Add what a step emitted."""
        self.token_ids += output.tokens
        self.accepted.append(len(output.draft_tokens))
        self.finish_reason = output.finish_reason or self.finish_reason

    @property
    def steps(self) -> int:
        """Forwards of the target model that emitted tokens, the prefill included."""
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        """Mean acceptance length, bonus token included: 1.0 for plain decoding."""
        return len(self.token_ids) / max(1, self.steps)
