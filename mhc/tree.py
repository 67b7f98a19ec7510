"""Trees of guesses: their shape, how a drafter grows one, and who is whose ancestor.

    B rows   N nodes, the root included   M nodes of one level   W children a node   D deepest level

Node 0 is the root, the token that the backbone has already decided on; a node of depth k was
proposed by head k-1. Nodes are stored level by level, so a parent always precedes its children.
Growth and verification never know which drafter they serve.

A worked example, the tree (0) (1) (0,0): the best and the second-best child of the root, and the
best child of the former.

    node       0     1     2     3
    choice     root  (0)   (1)   (0,0)
    parent     0     0     0     1
    depth      0     1     1     2
    ancestors  0     0,1   0,2   0,1,3
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from mhc.errors import UserError


@dataclass
class Tree:
    """Guesses to verify. tokens (B,N); the rest has a leading 1 where all rows share the shape.

    parents (1|B,N), depth (1|B,N), ancestors (1|B,N,N) bool with the node itself, and
    paths (1|B,N,D+1): the nodes from the root to each node, padded by repeating the last.
    """

    tokens: torch.Tensor
    parents: torch.Tensor
    depth: torch.Tensor
    ancestors: torch.Tensor
    paths: torch.Tensor


def lineage(parents: list[int]) -> tuple[list[int], torch.Tensor, torch.Tensor]:
    """Depths, ancestor matrix (N,N) and padded paths (N,D+1) of nodes with these parents."""
    paths: list[list[int]] = []
    for node, parent in enumerate(parents):
        paths.append([0] if node == 0 else [*paths[parent], node])
    deepest = max(map(len, paths))
    ancestors = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node, path in enumerate(paths):
        ancestors[node, path] = True
    padded = torch.tensor([path + [path[-1]] * (deepest - len(path)) for path in paths])
    return [len(path) - 1 for path in paths], ancestors, padded


@dataclass
class Level:
    """How one level hangs on the one before it: which nodes grow, and their children's ranks."""

    source: torch.Tensor  # (R,) nodes (numbered in the whole tree) that have children
    parents: torch.Tensor  # (R,) rows of the previous step's state they come from
    row: torch.Tensor  # (M,) for each child: which of the R
    rank: torch.Tensor  # (M,) for each child: 0 for its parent's likeliest token, ...
    width: int  # highest rank + 1


class FixedTree:
    """A tree whose shape is decided beforehand, given as Medusa's choices.

    `choices` lists a path of ranks for every node but the root: `[[0], [1], [0, 0]]` is the worked
    example above. A prefix that is missing is an error. `FixedTree.chain(5)` is one path of five.

    `confidence` c > 0 stops growing after a level unless one of its paths that would go on is, to the
    drafter, at least c likely: where nothing will be accepted, deeper levels only cost. The cut tree is
    a prefix of the whole one. It takes one host synchronisation a level, so it pays on a CPU.
    """

    def __init__(self, choices: Iterable[Iterable[int]], confidence: float = 0.0):
        if not 0 <= confidence < 1:
            raise UserError(f"tree: confidence is {confidence}, it must be at least 0 and below 1")
        nodes = sorted({tuple(choice) for choice in choices}, key=lambda path: (len(path), path))
        index = {(): 0} | {path: number for number, path in enumerate(nodes, 1)}
        for path in nodes:
            if not path or min(path) < 0:
                raise UserError(f"tree: {list(path)} is no path of ranks 0, 1, 2, ...")
            if path[:-1] not in index:
                raise UserError(f"tree: {list(path)} stands in the tree but its parent {list(path[:-1])} does not")
        self.choices, self.confidence = nodes, confidence
        parents = [0, *(index[path[:-1]] for path in nodes)]
        depths, ancestors, paths = lineage(parents)
        self.nodes, self.levels_deep = len(parents), max(depths)
        self.parents, self.depth = torch.tensor([parents]), torch.tensor([depths])
        self.ancestors, self.paths = ancestors[None], paths[None]
        self.levels: list[Level] = []
        growing = [0]  # the previous step's rows, as node numbers
        for deep in range(1, self.levels_deep + 1):
            children = [path for path in nodes if len(path) == deep]
            sources = sorted({index[path[:-1]] for path in children})
            self.levels.append(
                Level(
                    source=torch.tensor(sources),
                    parents=torch.tensor([growing.index(parents[node]) if node else 0 for node in sources]),
                    row=torch.tensor([sources.index(index[path[:-1]]) for path in children]),
                    rank=torch.tensor([path[-1] for path in children]),
                    width=1 + max(path[-1] for path in children),
                )
            )
            growing = sources

    @classmethod
    def chain(cls, length: int) -> "FixedTree":
        """One path of `length` guesses; `chain(0)` is plain decoding."""
        return cls([(0,) * deep for deep in range(1, length + 1)])

    def to(self, device: torch.device) -> "FixedTree":
        """The same shape with its index tensors on `device`."""
        for name in ("parents", "depth", "ancestors", "paths"):
            setattr(self, name, getattr(self, name).to(device))
        for level in self.levels:
            for name in ("source", "parents", "row", "rank"):
                setattr(level, name, getattr(level, name).to(device))
        return self

    def grow(self, drafter, state, root: torch.Tensor) -> Tree:
        """Let `drafter` propose a tree of this shape, or its first levels, below `root` (B,)."""
        tokens = root[:, None]  # (B,N so far)
        likely = torch.zeros(root.shape[0], 1, device=root.device)  # log-probability of each node's path
        for level in self.levels:
            if self.confidence and likely[:, level.source].max() < math.log(self.confidence):
                break
            logits, state = drafter.step(state, tokens[:, level.source], level.parents)  # (B,R,V)
            best = logits.topk(level.width, dim=-1)  # (B,R,W)
            tokens = torch.cat([tokens, best.indices[:, level.row, level.rank]], dim=1)
            if self.confidence:
                share = best.values - logits.logsumexp(dim=-1, keepdim=True)
                further = likely[:, level.source][:, level.row] + share[:, level.row, level.rank]
                likely = torch.cat([likely, further], dim=1)
        return self._first(tokens)

    def _first(self, tokens: torch.Tensor) -> Tree:
        """The tree of these tokens: the whole shape, or as many of its levels as were grown."""
        nodes = tokens.shape[1]
        if nodes == self.nodes:
            return Tree(tokens, self.parents, self.depth, self.ancestors, self.paths)
        deep = len(self.choices[nodes - 2]) if nodes > 1 else 0  # of the last node
        return Tree(
            tokens,
            self.parents[:, :nodes],
            self.depth[:, :nodes],
            self.ancestors[:, :nodes, :nodes],
            self.paths[:, :nodes, : deep + 1],
        )
