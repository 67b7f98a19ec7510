"""Seeded sampling that no drafter can change: the token drawn is the argmax of noisy logits.

    B rows   N nodes or positions   V vocabulary

Gumbel's trick: argmax(logits + T * g) is a draw from softmax(logits / T) when g is Gumbel noise. Here g
is a pure function of (seed, absolute position, token). So plain decoding and the nodes of a tree see the
same noise: the token drawn at a position depends only on the text before it and on the seed. T = 0 is greedy
decoding by the same code. Adding T * g to the logits, rather than g to logits / T, keeps scores in units of
the logits: their softmax says at every temperature how sure a drafter is that its token is the backbone's.

A drafter sees the same noise but should not use all of it: it knows g, but not the logits that g is added to.
Where g is large for an unlikely token, the backbone's logit is mostly lower than the drafter's and the token is
not drawn. Draft scores therefore weigh the noise by min(1, T / 2), which was near the best of six weights for every
drafter, tree and temperature tried (docs/log.md); the weight changes how much is accepted, never the text.

*Absolute position* is where the drawn token will stand: the first new token after a prompt of n is at n.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mhc.errors import UserError

# The finaliser and increment of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014)
_FIRST, _SECOND, _GOLDEN = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64, 0x9E3779B97F4A7C15 - 2**64
_POSITION = 0xD1B54A32D192ED03 - 2**64  # another odd constant, so that positions and tokens get different noise


@dataclass(frozen=True)
class Sampling:
    """How a row's tokens are drawn.

    temperature: 0 is greedy. top_k: draw among the k likeliest (0: all). top_p: among the likeliest that
    together have this probability (1: all). seed: the same seed gives the same text, with or without a drafter.
    posterior_threshold and posterior_alpha above 0: *typical acceptance* (Medusa, arXiv 2401.10774), which is
    LOSSY: a draft token x is accepted where p(x) > min(threshold, alpha * exp(-entropy)), so the text is no
    longer the one that the seed gives by plain decoding.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0
    posterior_threshold: float = 0.0
    posterior_alpha: float = 0.3

    def __post_init__(self):
        limits = {
            "temperature": (self.temperature >= 0 and self.temperature < float("inf"), "0 (greedy) or above"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (isinstance(self.top_k, int) and self.top_k >= 0, "a whole number, 0 (all tokens) or above"),
            "seed": (isinstance(self.seed, int) and 0 <= self.seed < 2**63, "a whole number, 0 or above"),
            "posterior_threshold": (0 <= self.posterior_threshold < 1, "at least 0 (exact) and below 1"),
            "posterior_alpha": (self.posterior_alpha > 0, "above 0"),
        }
        for name, (valid, range_) in limits.items():
            if not valid:
                raise UserError(f"{name} is {getattr(self, name)}: it must be {range_}")
        if self.posterior_threshold and not self.temperature:
            raise UserError("posterior_threshold needs a temperature above 0: at 0 only one token is right")


GREEDY = Sampling()


def gumbel(seeds: Tensor, positions: Tensor, vocabulary: int) -> Tensor:
    """Noise (B,N,V) fp32 for the tokens that will stand at `positions` (B,N) of rows with `seeds` (B,).

    32 random bits per token, at full resolution near zero, where large noise comes from: the largest value is 22.9.
    """
    key = _mix(_mix(seeds[:, None] * _GOLDEN + _GOLDEN) + positions * _POSITION)  # (B,N)
    counter = torch.arange(1, vocabulary + 1, device=seeds.device) * _GOLDEN
    uniform = ((_mix(key[..., None] + counter) & 0xFFFFFFFF) + 0.5) * 2.0**-32  # fp32, (0, 1]
    return uniform.clamp_(max=1 - 2.0**-24).neg_().log1p_().neg_().log_().neg_()


def _mix(state: Tensor) -> Tensor:
    """64 well-mixed bits of each 64-bit number; int64 arithmetic wraps, shifts are made logical by masks."""
    state = (state ^ ((state >> 30) & 0x3FFFFFFFF)) * _FIRST
    state = (state ^ ((state >> 27) & 0x1FFFFFFFFF)) * _SECOND
    return state ^ ((state >> 31) & 0x1FFFFFFFF)


class Sampler:
    """Turns logits into scores whose argmax is the token drawn, for at most `size` rows, each with its own settings.

    `declare` tells which kinds of settings to expect, and so what has to be computed at all; `assign` writes each
    row's settings into fixed buffers, so that a captured round reads the new ones.
    """

    def __init__(self, size: int, vocabulary: int, device: torch.device):
        self.vocabulary = vocabulary
        self._numbers = torch.ones(6, size, dtype=torch.float, device=device)
        self._integers = torch.zeros(2, size, dtype=torch.long, device=device)
        self.declare([GREEDY])

    @classmethod
    def of(cls, rows: Sequence[Sampling], vocabulary: int, device: torch.device) -> "Sampler":
        """A sampler for just these rows."""
        sampler = cls(len(rows), vocabulary, device)
        sampler.declare(rows)
        sampler.assign(rows)
        return sampler

    def declare(self, settings: Sequence[Sampling]) -> None:
        """All rows assigned later have settings of these kinds."""
        self.greedy = all(row.temperature == 0 for row in settings)
        self.lossy = any(row.posterior_threshold for row in settings)
        self.restricted = any(row.temperature and (row.top_p < 1 or row.top_k) for row in settings)
        self.keep = max(self._top_k(row) for row in settings)

    def _top_k(self, row: Sampling) -> int:
        """How many tokens a row is drawn from; greedy rows draw from all, so that the other tokens keep their order."""
        return min(self.vocabulary, row.top_k) if row.top_k and row.temperature else self.vocabulary

    def assign(self, rows: Sequence[Sampling]) -> None:
        """Give the first len(rows) rows these settings."""
        if self.greedy:
            return
        numbers = [
            [row.temperature for row in rows],
            [row.temperature or 1.0 for row in rows],
            [row.top_p if row.temperature else 1.0 for row in rows],
            [row.posterior_threshold for row in rows],
            [row.posterior_alpha for row in rows],
            [min(1.0, row.temperature / 2) for row in rows],
        ]
        integers = [[row.seed for row in rows], [min(self._top_k(row), self.keep) for row in rows]]
        self._numbers[:, : len(rows)].copy_(torch.tensor(numbers))
        self._integers[:, : len(rows)].copy_(torch.tensor(integers))
        columns = self._numbers[:, : len(rows), None, None]  # each (B,1,1)
        self.temperature, self.divisor, self.top_p, self.threshold, self.alpha, self.noise_weight = columns
        self.seeds, self.top_k = self._integers[0, : len(rows)], self._integers[1, : len(rows), None, None]

    @property
    def signature(self) -> tuple[bool, bool, bool, int]:
        """What changes the computation itself: a round captured under another signature must not be replayed."""
        return self.greedy, self.lossy, self.restricted, self.keep

    def for_round(self, start: int | Tensor, depth: int) -> "RoundNoise":
        """The noise of one round with roots at positions `start` (or (B,1)) and trees `depth` deep."""
        return RoundNoise(self, start, depth)

    def restrict(self, logits: Tensor) -> Tensor:
        """(B,N,V) with tokens outside top-k and top-p at -inf; ties with the last one stay."""
        ranked = logits.topk(self.keep, dim=-1).values  # (B,N,keep), likeliest first
        allowed = torch.arange(self.keep, device=logits.device) < self.top_k
        share = (ranked / self.divisor).masked_fill(~allowed, float("-inf")).softmax(dim=-1)
        inside = allowed & ((share.cumsum(dim=-1) - share < self.top_p) | (self.top_p >= 1))
        count = inside.sum(dim=-1, keepdim=True).clamp(
            min=1
        )  # the likeliest always stays, even where top_p rounds to 0
        lowest = ranked.gather(-1, count - 1)
        return logits.masked_fill(logits < lowest, float("-inf"))


class RoundNoise:
    """The noise of one round, for the drafter's tokens and for the backbone's choices."""

    def __init__(self, sampler: Sampler, start: int | Tensor, depth: int):
        self.sampler = sampler
        if not sampler.greedy:
            ahead = torch.arange(
                1, depth + 2, device=sampler.seeds.device
            )  # a child of the root is one position further
            positions = (start + ahead).expand(len(sampler.seeds), -1)
            self.noise = gumbel(sampler.seeds, positions, sampler.vocabulary) * sampler.temperature  # (B,depth+1,V)

    def target_scores(self, logits: Tensor, depth: int | Tensor) -> Tensor:
        """The backbone's logits (B,N,V) at nodes of one depth, or of depths (1|B,N) -> scores (B,N,V); the argmax is drawn."""
        return logits if self.sampler.greedy else self._restricted(logits) + self._noise(depth)

    def draft_scores(self, logits: Tensor, depth: int | Tensor) -> Tensor:
        """The same of a drafter's logits: the higher a token's score, the likelier it is the one that will be drawn."""
        if self.sampler.greedy:
            return logits
        return self._restricted(logits).addcmul(self._noise(depth), self.sampler.noise_weight)

    def _restricted(self, logits: Tensor) -> Tensor:
        logits = logits.float()
        return self.sampler.restrict(logits) if self.sampler.restricted else logits

    def _noise(self, depth: int | Tensor) -> Tensor:
        """T * g of the children of nodes at these depths."""
        if isinstance(depth, int):
            return self.noise[:, depth : depth + 1]
        if len(depth) == 1:
            return self.noise[:, depth[0]]
        return self.noise.gather(1, depth[..., None].expand(-1, -1, self.sampler.vocabulary))

    def typical(self, logits: Tensor, tokens: Tensor, parents: Tensor) -> Tensor | None:
        """Which nodes (B,N) typical acceptance accepts, by the backbone's logits (B,N,V) at their parents; None where
        no row uses it."""
        sampler = self.sampler
        if not sampler.lossy:
            return None
        share = (logits.float() / sampler.divisor).log_softmax(dim=-1)
        entropy = -(share.exp() * share).sum(dim=-1, keepdim=True)
        threshold = torch.minimum(sampler.threshold, sampler.alpha * (-entropy).exp())  # (B,N,1)
        parents = parents.expand(len(tokens), -1)[..., None]
        conditional = share.gather(1, parents.expand(-1, -1, share.shape[-1])).gather(2, tokens[..., None])
        return ((conditional.exp() > threshold.gather(1, parents)) & (sampler.threshold > 0))[..., 0]
