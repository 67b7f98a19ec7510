"""What a tree would have made of text that is already known: decoding replayed without the backbone, and the search.

    N nodes   D depth of a tree   W width   m tokens of an answer

Where costs are known (what verifying N nodes and growing a tree take, in *plain steps*) and guesses are recorded
(what large trees had right at every position of an answer), decoding with any smaller tree can be replayed: from the
position that a round reaches, the next one starts. `mhc.tuning.measure` measures both.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mhc.trees.shapes import DynamicTree, FixedTree, TreeShape, cost_of

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # nodes whose verification is timed
WIDTHS = (1, 2, 3, 4)
CONFIDENCES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)
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

    trees: by width, the grown tree's log-probabilities (m-1,N), depths (m-1,N) and whether each node and all its
    ancestors were right (m-1,N). ranks (m-1,D): where the true token stood in each head's list, following the
    true path; RANKS where further down.
    """

    tokens: list[int]
    trees: dict[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)
    ranks: Tensor | None = None


@dataclass
class Candidate:
    """A tree, and the speed over plain decoding and tokens per step that the replay promises."""

    kind: str  # 'fixed' or 'dynamic'
    shape: TreeShape
    speedup: float
    tokens_per_step: float


def most_nodes(width: int, depth: int) -> int:
    """The largest budget that is worth a look."""
    return min(COUNTS[-1], 1 + width + (depth - 1) * width**2)


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


# ---- the search


def fixed_trees(traces: Sequence[Trace], counts: Sequence[int]) -> list[FixedTree]:
    """For each number of nodes the fixed tree that was right most often: since a path is never more frequent than
    its prefix, the most frequent paths of ranks form the best tree."""
    seen: Counter[tuple[int, ...]] = Counter()
    for trace in traces:
        for path in trace.ranks.tolist():
            for deep in range(len(path)):
                if path[deep] >= RANKS:
                    break
                seen[tuple(path[: deep + 1])] += 1
    ranked = sorted(seen, key=lambda path: (-seen[path], len(path), path))
    return [FixedTree(ranked[: count - 1]) for count in counts if 1 < count <= len(ranked) + 1]


def search(traces: Sequence[Trace], costs: Costs, fixed: Sequence[FixedTree]) -> list[Candidate]:
    """All trees worth a look, fastest first: the fixed ones, and dynamic ones by width, confidence and price."""
    candidates = []
    for plain_shape in fixed:
        drafting = costs.fixed[plain_shape.nodes]
        shape = FixedTree(plain_shape.choices, costs.verify, round(drafting / plain_shape.max_depth, 4))
        cost = cost_of(costs.verify, shape.nodes) + drafting
        candidates.append(Candidate("fixed", shape, *replay_fixed(traces, shape, cost)))
    deepest = max(deep for _, deep in costs.draft)
    for width in WIDTHS:
        most = most_nodes(width, deepest)
        level = round(costs.draft[width, deepest] / deepest, 4)
        for confidence in CONFIDENCES:
            price = 1.0
            for _ in range(4):  # the price of a plain step is the speed reached: a fixed point
                shape = DynamicTree(width, deepest, most, confidence, costs.verify, round(price, 3), level)
                speedup, per_step = replay_dynamic(traces, costs, shape)
                candidates.append(Candidate("dynamic", shape, speedup, per_step))
                price = speedup
    best = max((c for c in candidates if c.kind == "dynamic"), key=lambda candidate: candidate.speedup).shape
    for budget in COUNTS:  # how much of it a smaller budget would do
        if 1 < budget < best.nodes:
            shape = DynamicTree(best.width, deepest, budget, best.confidence, costs.verify, best.price, best.draft_cost)
            candidates.append(Candidate("dynamic", shape, *replay_dynamic(traces, costs, shape)))
    return sorted(candidates, key=lambda candidate: -candidate.speedup)
