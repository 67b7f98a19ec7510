"""The search for the tree that is fastest here, over replayed decoding (mhc.trees.replay)."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from mhc.trees.replay import RANKS, Costs, Trace, replay_dynamic, replay_fixed
from mhc.trees.shapes import DynamicTree, FixedTree, TreeShape, cost_of

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # nodes whose verification is timed
WIDTHS = (1, 2, 3, 4)
CONFIDENCES = (0.0, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6)


@dataclass(frozen=True)
class Candidate:
    """A tree, and the speedup over plain decoding and tokens per step that the replay predicts."""

    shape: TreeShape
    speedup: float
    tokens_per_step: float

    @property
    def kind(self) -> str:
        """'fixed' or 'dynamic'."""
        return "dynamic" if isinstance(self.shape, DynamicTree) else "fixed"


def most_nodes(width: int, depth: int) -> int:
    """The largest budget worth trying."""
    return min(COUNTS[-1], 1 + width + (depth - 1) * width**2)


def fixed_trees(traces: Sequence[Trace], counts: Sequence[int]) -> list[FixedTree]:
    """For each number of nodes the fixed tree that would have accepted most: since a path is never more frequent than
    its prefix, the most frequent paths of ranks form the best tree."""
    frequency: Counter[tuple[int, ...]] = Counter()
    for trace in traces:
        for path in trace.ranks.tolist():
            for depth in range(len(path)):
                if path[depth] >= RANKS:
                    break
                frequency[tuple(path[: depth + 1])] += 1
    ranked = sorted(frequency, key=lambda path: (-frequency[path], len(path), path))
    return [FixedTree(ranked[: count - 1]) for count in counts if 1 < count <= len(ranked) + 1]


def search(traces: Sequence[Trace], costs: Costs, fixed: Sequence[FixedTree]) -> list[Candidate]:
    """All candidate trees, fastest first: the fixed ones, and dynamic ones by width, confidence and price."""
    candidates = []
    for tree in fixed:
        drafting = costs.fixed[tree.nodes]
        with_costs = FixedTree(tree.choices, costs.verify, round(drafting / tree.max_depth, 4))
        cost = cost_of(costs.verify, with_costs.nodes) + drafting
        candidates.append(Candidate(with_costs, *replay_fixed(traces, with_costs, cost)))
    dynamic = []
    deepest = max(depth for _, depth in costs.draft)
    for width in WIDTHS:
        most = most_nodes(width, deepest)
        draft_cost = round(costs.draft[width, deepest] / deepest, 4)
        for confidence in CONFIDENCES:
            price = 1.0
            for _ in range(4):  # the price is the speedup that it leads to: a fixed point
                shape = DynamicTree(width, deepest, most, confidence, costs.verify, round(price, 3), draft_cost)
                speedup, per_step = replay_dynamic(traces, costs, shape)
                dynamic.append(Candidate(shape, speedup, per_step))
                price = speedup
    best = max(dynamic, key=lambda candidate: candidate.speedup).shape
    assert isinstance(best, DynamicTree)
    for budget in COUNTS:  # whether smaller budgets suffice
        if 1 < budget < best.nodes:
            shape = DynamicTree(best.width, deepest, budget, best.confidence, costs.verify, best.price, best.draft_cost)
            dynamic.append(Candidate(shape, *replay_dynamic(traces, costs, shape)))
    return sorted(candidates + dynamic, key=lambda candidate: -candidate.speedup)
