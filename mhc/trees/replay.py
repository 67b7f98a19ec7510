"""Simulate decoding with a given tree on recorded text, without the target model.

    N nodes   D depth of a tree   W width   m tokens of an answer

Given costs (of verifying N nodes and of growing a tree, in *plain steps*) and traces (which draft tokens of large trees
were right at every position of an answer), decoding with any smaller tree can be replayed: each round starts at the
position that the previous one reached. `mhc.tuning.measure` measures both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mhc.trees.shapes import DynamicTree, FixedTree, cost_of

RANKS = 10  # how many of a head's tokens a fixed tree may use, as in Medusa


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
    """One answer and the draft tokens at each of its positions t = 0 ... m-2, token t being the root.

    ranks (m-1,D): rank of the true token in each head's list, following the true path; RANKS where it is lower.
    trees: by width, the grown tree's log-probabilities (m-1,N), depths (m-1,N) and whether each node and all its
    ancestors were right (m-1,N).
    """

    tokens: list[int]
    ranks: Tensor
    trees: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)


def replay(traces: Sequence[Trace], accepted: Sequence[Tensor], cost: Sequence[Tensor]) -> tuple[float, float]:
    """Tokens per plain step's time, and tokens per step, when each round starts where the previous one ended.

    accepted, cost: for each trace, what a round at each position (m-1,) accepts and what it costs in plain steps.
    """
    tokens = spent = steps = 0.0
    for trace, trace_accepted, trace_cost in zip(traces, accepted, cost):
        accepted_at, cost_at, t = trace_accepted.tolist(), trace_cost.tolist(), 0
        last = len(trace.tokens) - 1
        while t < last:
            spent += cost_at[t]
            steps += 1
            tokens += min(accepted_at[t] + 1, last - t)
            t += accepted_at[t] + 1
    return tokens / spent, tokens / steps


def replay_dynamic(traces: Sequence[Trace], costs: Costs, shape: DynamicTree) -> tuple[float, float]:
    """What `shape` would have reached on the traces: (speedup, tokens per step)."""
    accepted, spent = [], []
    verify_cost = torch.tensor([cost_of(shape.costs or costs.verify, n + 1) for n in range(shape.nodes)])
    for trace in traces:
        likely, depth, right = trace.trees[shape.width]  # (m-1,N)
        level = torch.stack(  # (m-1,D) log-probability of the likeliest path of each level
            [likely.masked_fill(depth != d, -math.inf).max(dim=1).values for d in range(1, shape.max_depth + 1)],
            dim=1,
        )
        grown = torch.full((len(likely),), shape.max_depth)
        if shape.confidence:
            unsure = level < math.log(shape.confidence)
            grown = torch.where(unsure.any(dim=1), unsure.int().argmax(dim=1) + 1, grown)
        candidates = likely.masked_fill(depth > grown[:, None], -math.inf)
        best, order = candidates.topk(min(shape.nodes, candidates.shape[1]), dim=1)
        count = torch.full((len(likely),), best.shape[1])
        if shape.costs is not None:
            count = (best.exp().cumsum(dim=1) - shape.price * verify_cost[: best.shape[1]]).argmax(dim=1) + 1
        inside = (torch.arange(best.shape[1]) < count[:, None]) & best.isfinite()
        accepted.append((depth.gather(1, order) * (right.gather(1, order) & inside)).max(dim=1).values)
        draft_cost = torch.tensor([costs.draft[shape.width, d] for d in range(1, shape.max_depth + 1)])
        spent.append(verify_cost[inside.sum(dim=1) - 1] + draft_cost[grown - 1])
    return replay(traces, accepted, spent)


def replay_fixed(traces: Sequence[Trace], shape: FixedTree, cost: float) -> tuple[float, float]:
    """The same for a fixed tree whose rounds cost `cost` plain steps each."""
    inside = set(shape.choices)
    accepted = []
    for trace in traces:
        lengths = []
        for path in trace.ranks.tolist():
            depth = 0
            while depth < len(path) and tuple(path[: depth + 1]) in inside:
                depth += 1
            lengths.append(depth)
        accepted.append(torch.tensor(lengths))
    return replay(traces, accepted, [torch.full_like(lengths, cost, dtype=torch.float) for lengths in accepted])
