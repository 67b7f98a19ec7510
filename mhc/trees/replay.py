"""Simulate decoding with a given tree on recorded text, without the target model.

    N nodes   D depth of a tree   W width   m tokens of an answer

Where costs are known (what verifying N nodes and growing a tree take, in *plain steps*) and guesses are recorded
(what large trees had right at every position of an answer), decoding with any smaller tree can be replayed: from the
position that a round reaches, the next one starts. `mhc.tuning.measure` measures both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mhc.trees.shapes import DynamicTree, FixedTree, cost_of

RANKS = 10  # how far down a head's list a fixed tree may reach, as in Medusa


@dataclass
class Costs:
    """plain: seconds of a plain step. verify: [[nodes, plain steps], ...] of a round without its drafting.
    draft: plain steps of growing a DynamicTree of (width, depth). fixed: of growing a fixed tree of so many nodes."""

    plain: float
    verify: list[list[float]]
    draft: dict[tuple[int, int], float]
    fixed: dict[int, float]


@dataclass
class Trace:
    """One answer and what was guessed at each of its positions t = 0 ... m-2, token t being the root.

    ranks (m-1,D): where the true token stood in each head's list, following the true path; RANKS where further down.
    trees: by width, the grown tree's log-probabilities (m-1,N), depths (m-1,N) and whether each node and all its
    ancestors were right (m-1,N).
    """

    tokens: list[int]
    ranks: Tensor
    trees: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def replay(traces: Sequence[Trace], accepted: Sequence[Tensor], cost: Sequence[Tensor]) -> tuple[float, float]:
    """Tokens per plain step's time, and tokens per step, when rounds start where the one before ended.

    accepted, cost: for each trace and position (m-1,) the guesses kept and the plain steps spent there.
    """
    tokens = spent = steps = 0.0
    for trace, kept, price in zip(traces, accepted, cost):
        kept_list, price_list, t = kept.tolist(), price.tolist(), 0
        last = len(trace.tokens) - 1
        while t < last:
            spent += price_list[t]
            steps += 1
            tokens += min(kept_list[t] + 1, last - t)
            t += kept_list[t] + 1
    return tokens / spent, tokens / steps


def replay_dynamic(traces: Sequence[Trace], costs: Costs, shape: DynamicTree) -> tuple[float, float]:
    """What `shape` would have made of the traces: (speedup, tokens per step)."""
    accepted, spent = [], []
    each = torch.tensor([cost_of(shape.costs or costs.verify, n + 1) for n in range(shape.nodes)])
    for trace in traces:
        likely, depth, right = trace.trees[shape.width]  # (m-1,N)
        level = torch.stack(  # (m-1,D) log-probability of the likeliest path of each level
            [likely.masked_fill(depth != deep, -math.inf).max(dim=1).values for deep in range(1, shape.max_depth + 1)],
            dim=1,
        )
        grown = torch.full((len(likely),), shape.max_depth)
        if shape.confidence:
            unsure = level < math.log(shape.confidence)
            grown = torch.where(unsure.any(dim=1), unsure.int().argmax(dim=1) + 1, grown)
        sure = likely.masked_fill(depth > grown[:, None], -math.inf)
        best, order = sure.topk(min(shape.nodes, sure.shape[1]), dim=1)
        count = torch.full((len(likely),), best.shape[1])
        if shape.costs is not None:
            count = (best.exp().cumsum(dim=1) - shape.price * each[: best.shape[1]]).argmax(dim=1) + 1
        inside = (torch.arange(best.shape[1]) < count[:, None]) & best.isfinite()
        accepted.append((depth.gather(1, order) * (right.gather(1, order) & inside)).max(dim=1).values)
        drafted = torch.tensor([costs.draft[shape.width, deep] for deep in range(1, shape.max_depth + 1)])
        spent.append(each[inside.sum(dim=1) - 1] + drafted[grown - 1])
    return replay(traces, accepted, spent)


def replay_fixed(traces: Sequence[Trace], shape: FixedTree, cost: float) -> tuple[float, float]:
    """What a fixed tree, whose round costs `cost` plain steps, would have made of the traces."""
    inside = set(shape.choices)
    accepted = []
    for trace in traces:
        kept = []
        for path in trace.ranks.tolist():
            deep = 0
            while deep < len(path) and tuple(path[: deep + 1]) in inside:
                deep += 1
            kept.append(deep)
        accepted.append(torch.tensor(kept))
    return replay(traces, accepted, [torch.full_like(kept, cost, dtype=torch.float) for kept in accepted])
