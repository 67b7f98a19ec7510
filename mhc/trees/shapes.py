"""Trees of draft tokens: their shape, how a drafter grows them, and which nodes are ancestors of which.

    B rows   N nodes, the root included   R nodes expanded   W children of each   D deepest level

Node 0 is the root, the token that the target model has already decided; a node of depth k was
proposed by head k-1. Nodes are stored level by level, so a parent always precedes its children.
Growth and verification do not depend on the kind of drafter.

A worked example, the tree (0) (1) (0,0): the best and the second-best child of the root, and the
best child of the former.

    node       0     1     2     3
    choice     root  (0)   (1)   (0,0)
    parent     0     0     0     1
    depth      0     1     1     2
    ancestors  0     0,1   0,2   0,1,3

A path's *probability* is the drafter's: the product over its nodes, each from the softmax of
the scores that ranked it.
"""

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhc.errors import UserError
from mhc.sampling import RoundNoise

NAMED = Path(__file__).parent


@dataclass
class Tree:
    """Draft tokens to verify. tokens (B,N); the rest has a leading 1 where all rows share the shape.

    parents (1|B,N), depth (1|B,N), ancestors (1|B,N,N) bool with the node itself, and
    paths (1|B,N,D+1): the nodes from the root to each node, padded by repeating the last.
    likely (B,N): log-probability of each node's path, where growth computed it.
    """

    tokens: Tensor
    parents: Tensor
    depth: Tensor
    ancestors: Tensor
    paths: Tensor
    likely: Tensor | None = None


def lineage(parents: Tensor, depth: Tensor, deepest: int) -> tuple[Tensor, Tensor]:
    """Ancestors (B,N,N) and padded paths (B,N,D+1) of nodes with these parents and depths (B,N)."""
    rows, nodes = parents.shape
    up = [torch.arange(nodes, device=parents.device).expand(rows, -1)]  # the node, its parent, its grandparent ...
    for _ in range(deepest):
        up.append(parents.gather(1, up[-1]))
    chain = torch.stack(up, dim=2)  # (B,N,D+1), the root repeated at the end
    ancestors = torch.zeros(rows, nodes, nodes, dtype=torch.bool, device=parents.device).scatter_(2, chain, True)
    steps = torch.arange(deepest + 1, device=parents.device)
    return ancestors, chain.gather(2, (depth[..., None] - steps).clamp(min=0))


class TreeShape(ABC):
    """How trees are grown. nodes: at most, root included; max_depth: its depth;
    width: the most children of a node; static: whether every tree has the same size, so that growth needs no
    synchronisation with the host; expanded_per_level: nodes that one level of drafting expands, on average.
    costs, draft_cost: cost of verifying ([[nodes, plain steps], ...]) and of drafting one level, in plain steps, as
    `run.py tune` measures them. With both, decoding pauses speculation where it does not pay (mhc.decoding.pace).
    """

    nodes: int
    max_depth: int
    width: int
    static: bool
    expanded_per_level: float
    costs: Sequence[Sequence[float]] | None = None
    draft_cost: float | None = None

    @abstractmethod
    def grow(self, drafter, state, root: Tensor, noise: RoundNoise) -> Tree:
        """Let `drafter` propose a tree below `root` (B,), ranking tokens by `noise`."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain JSON from which `parse_tree` rebuilds it."""

    def with_costs(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """`arguments`, and the measured costs where there are any."""
        measured = {"costs": self.costs, "draft_cost": self.draft_cost}
        return arguments | {name: value for name, value in measured.items() if value is not None}


def parse_tree(tree: Any) -> TreeShape:
    """The shape that a user gives: choices as a list (Medusa's format), the keyword arguments of FixedTree or
    DynamicTree as a mapping, either of them as JSON text, a JSON file, or the name of a file in mhc/trees."""
    if isinstance(tree, TreeShape):
        return tree
    if isinstance(tree, str):
        path = Path(tree) if tree.endswith(".json") else NAMED / f"{tree}.json"
        if tree.lstrip()[:1] not in ("[", "{") and not path.is_file():
            names = ", ".join(sorted(known.stem for known in NAMED.glob("*.json")))
            raise UserError(f"unknown tree '{tree}': give {names}, a JSON file, or a list such as [[0],[1],[0,0]]")
        try:
            tree = json.loads(tree if tree.lstrip()[:1] in ("[", "{") else path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"tree '{tree}' is not JSON ({error}): give a list such as [[0],[1],[0,0]]") from error
    try:
        if isinstance(tree, dict):
            tree = {key: value for key, value in tree.items() if key != "source"}
            if "level" in tree:  # the name of `draft_cost` in trees tuned before 2026-11
                tree["draft_cost"] = tree.pop("level")
            return FixedTree(**tree) if "choices" in tree else DynamicTree(**tree)
        return FixedTree(tree)
    except TypeError as error:
        raise UserError(
            f"tree {json.dumps(tree)[:80]} is neither choices nor width, depth and budget: {error}"
        ) from error


@dataclass
class Level:
    """How a level attaches to the previous one: which nodes are expanded, and their children's ranks."""

    source: Tensor  # (R,) nodes (numbered in the whole tree) that are expanded
    parents: Tensor  # (1,R) their rows in the previous level's state
    row: Tensor  # (M,) for each child: which of the R is its parent
    rank: Tensor  # (M,) for each child: its rank among its parent's tokens, 0 the likeliest
    width: int  # highest rank + 1


class FixedTree(TreeShape):
    """A tree whose shape does not depend on the text, given as Medusa's choices.

    `choices` lists a path of ranks for every node but the root: `[[0], [1], [0, 0]]` is the worked
    example above. A missing prefix is an error. `FixedTree.chain(5)` is one path of five.
    """

    static = True

    def __init__(
        self,
        choices: Iterable[Iterable[int]],
        costs: Sequence[Sequence[float]] | None = None,
        draft_cost: float | None = None,
    ):
        self.costs, self.draft_cost = _checked(costs), draft_cost
        nodes = sorted({tuple(choice) for choice in choices}, key=lambda path: (len(path), path))
        index = {(): 0} | {path: number for number, path in enumerate(nodes, 1)}
        for path in nodes:
            if not path or not all(isinstance(rank, int) and rank >= 0 for rank in path):
                raise UserError(f"tree: {list(path)} is not a path of ranks 0, 1, 2, ...")
            if path[:-1] not in index:
                raise UserError(f"tree: {list(path)} is in the tree but its parent {list(path[:-1])} is not")
        self.choices = nodes
        parents = [0, *(index[path[:-1]] for path in nodes)]
        depths = [0, *map(len, nodes)]
        self.nodes, self.max_depth = len(parents), max(depths)
        self.parents, self.depth = torch.tensor([parents]), torch.tensor([depths])
        self.ancestors, self.paths = lineage(self.parents, self.depth, self.max_depth)
        self.levels: list[Level] = []
        expanded = [0]  # the previous level's rows, as node numbers
        for depth in range(1, self.max_depth + 1):
            children = [path for path in nodes if len(path) == depth]
            sources = sorted({index[path[:-1]] for path in children})
            self.levels.append(
                Level(
                    source=torch.tensor(sources),
                    parents=torch.tensor([[expanded.index(parents[node]) if node else 0 for node in sources]]),
                    row=torch.tensor([sources.index(index[path[:-1]]) for path in children]),
                    rank=torch.tensor([path[-1] for path in children]),
                    width=1 + max(path[-1] for path in children),
                )
            )
            expanded = sources
        self.width = max((level.width for level in self.levels), default=0)
        self.expanded_per_level = sum(len(level.source) for level in self.levels) / max(1, len(self.levels))

    @classmethod
    def chain(cls, length: int) -> "FixedTree":
        """One path of `length` draft tokens; `chain(0)` is plain decoding."""
        return cls([(0,) * depth for depth in range(1, length + 1)])

    def describe(self) -> dict[str, Any]:
        return self.with_costs({"choices": [list(choice) for choice in self.choices]})

    def to(self, device: torch.device) -> "FixedTree":
        """The same shape with its index tensors on `device`."""
        for name in ("parents", "depth", "ancestors", "paths"):
            setattr(self, name, getattr(self, name).to(device))
        for level in self.levels:
            for name in ("source", "parents", "row", "rank"):
                setattr(level, name, getattr(level, name).to(device))
        return self

    def grow(self, drafter, state, root: Tensor, noise: RoundNoise) -> Tree:
        if self.parents.device != root.device:
            self.to(root.device)
        tokens = root[:, None]  # (B,N so far)
        for depth, level in enumerate(self.levels):
            logits, state = drafter.draft_level(state, tokens[:, level.source], level.parents)  # (B,R,V)
            best = noise.draft_scores(logits, depth).topk(level.width, dim=-1).indices  # (B,R,W)
            tokens = torch.cat([tokens, best[:, level.row, level.rank]], dim=1)
        return Tree(tokens, self.parents, self.depth, self.ancestors, self.paths)


class DynamicTree(TreeShape):
    """A tree that follows the drafter's probabilities: the `width` likeliest paths of a level are expanded, with
    `width` children each, and of all nodes the `budget` likeliest are verified, the root among them.

    By default every tree has `budget` nodes: nothing waits for the host, and a GPU can capture the round.
    Options for a CPU, where every node and every level costs:
    confidence: stop growing where no path to be expanded is at least this likely.
    costs: cost of verifying, [[nodes, plain steps], ...] as `run.py tune` measures it. The tree is then cut to
    the N nodes for which (sum of the paths' probabilities) - price * cost(N) is largest.
    price: tokens that the time of one plain step of one row is worth, which is the speedup that the tree gives.
    (Growth by path probability and a global top-N: EAGLE-2, arXiv 2406.16858.)
    """

    def __init__(
        self,
        width: int,
        depth: int,
        budget: int,
        confidence: float = 0.0,
        costs: Sequence[Sequence[float]] | None = None,
        price: float = 1.0,
        draft_cost: float | None = None,
    ):
        if min(width, depth) < 1 or budget < 1:
            raise UserError(f"tree: width {width}, depth {depth} and budget {budget} must be at least 1")
        most = 1 + width + (depth - 1) * width**2
        if budget > most:
            raise UserError(
                f"tree: a budget of {budget} nodes is over the {most} that width {width} and depth {depth} allow: "
                "lower it, or widen the tree"
            )
        self.width, self.nodes, self.max_depth = width, budget, depth
        if not 0 <= confidence < 1:
            raise UserError(f"tree: confidence is {confidence}, it must be at least 0 and below 1")
        self.confidence, self.costs, self.price, self.draft_cost = confidence, _checked(costs), price, draft_cost
        self.static, self.expanded_per_level = not confidence and costs is None, width

    def describe(self) -> dict[str, Any]:
        shape = {"width": self.width, "depth": self.max_depth, "budget": self.nodes, "confidence": self.confidence}
        return self.with_costs(shape if self.costs is None else shape | {"price": self.price})

    def grow(self, drafter, state, root: Tensor, noise: RoundNoise) -> Tree:
        rows = len(root)
        expanded, beam = root[:, None], root.new_zeros(rows, 1, dtype=torch.float)  # (B,R) tokens; log-probabilities
        number = sources = root.new_zeros(1, 1)  # (1|B,R) expanded nodes: their numbers, and their rows of the state
        tokens, likely, parents = [expanded], [beam], [number.expand(rows, 1)]
        nodes = 1
        for depth in range(self.max_depth):
            logits, state = drafter.draft_level(state, expanded, sources)  # (B,R,V)
            scores = noise.draft_scores(logits, depth).float()
            best = scores.topk(self.width, dim=-1)  # (B,R,W)
            # A child is strictly less likely than its parent, so that the likeliest nodes always form a tree.
            share = (best.values - scores.logsumexp(dim=-1, keepdim=True)).clamp(-50.0, -1e-4)
            tokens.append(best.indices.flatten(1))  # (B,R*W)
            likely.append((beam[:, :, None] + share).flatten(1))
            parents.append(number[:, :, None].expand(rows, -1, self.width).flatten(1))
            if depth + 1 == self.max_depth:
                break
            beam, chosen = likely[-1].topk(min(self.width, likely[-1].shape[1]), dim=-1)  # (B,R)
            if self.confidence and beam.max() < math.log(self.confidence):
                break
            expanded, sources, number = tokens[-1].gather(1, chosen), chosen // self.width, nodes + chosen
            nodes += likely[-1].shape[1]
        return self._likeliest(torch.cat(tokens, 1), torch.cat(likely, 1), torch.cat(parents, 1), depth + 1)

    def _likeliest(self, tokens: Tensor, likely: Tensor, parents: Tensor, deepest: int) -> Tree:
        """The tree of the likeliest of all candidate nodes; all (B,C), level by level."""
        best = likely.topk(min(self.nodes, likely.shape[1]), dim=1)
        chosen = best.indices[:, : self._count(best.values)].sort(dim=1).values  # (B,N), parents first
        parents = torch.searchsorted(chosen, parents.gather(1, chosen))
        depth = self._depths(tokens.device)[chosen]
        ancestors, paths = lineage(parents, depth, deepest)
        return Tree(tokens.gather(1, chosen), parents, depth, ancestors, paths, likely.gather(1, chosen))

    def _count(self, likely: Tensor) -> int:
        """How many of the likeliest nodes (B,N) are worth verifying."""
        rows, most = likely.shape
        if self.costs is None:
            return most
        gain = likely.exp().cumsum(dim=1).sum(dim=0) - rows * self.price * self._cost(rows, most, likely.device)
        return int(gain.argmax()) + 1

    @lru_cache(maxsize=256)  # noqa: B019  (shapes live as long as the program)
    def _cost(self, rows: int, most: int, device: torch.device) -> Tensor:
        """Cost of verifying 1, 2, ..., `most` nodes in each of `rows` rows, in plain steps of as many rows."""
        assert self.costs is not None
        plain = cost_of(self.costs, rows)
        return torch.tensor([cost_of(self.costs, rows * n) / plain for n in range(1, most + 1)], device=device)

    @lru_cache(maxsize=4)  # noqa: B019
    def _depths(self, device: torch.device) -> Tensor:
        """The depth of every candidate node, in order."""
        widths = [1, self.width, *[self.width**2] * (self.max_depth - 1)]
        return torch.tensor([depth for depth, count in enumerate(widths) for _ in range(count)], device=device)


def cost_of(costs: Sequence[Sequence[float]], nodes: float) -> float:
    """Cost in plain steps of verifying `nodes`, interpolated and extrapolated from [[nodes, plain steps], ...]."""
    if len(costs) == 1:
        return costs[0][1]
    upper = next((index for index, (count, _) in enumerate(costs) if count >= nodes), len(costs) - 1) or 1
    (low, low_cost), (high, high_cost) = costs[upper - 1], costs[upper]
    return low_cost + (high_cost - low_cost) * (nodes - low) / (high - low)


def _checked(costs: Sequence[Sequence[float]] | None) -> Sequence[Sequence[float]] | None:
    if costs is not None and (not costs or any(len(pair) != 2 for pair in costs)):
        raise UserError("tree: costs must be [[nodes, plain steps], ...], or be left out")
    return costs
