"""Verification: which draft tokens the target model would have emitted itself.

    B rows   N nodes   V vocabulary   P = D+1 nodes on a path

The target model's choice at node i is the token that follows the path ending in i. A node is accepted
when it, and every ancestor of it, equals the choice at its parent. Children of one parent carry
different tokens, so the accepted nodes form one path; the choice at its end is the bonus token.
Whether that choice is greedy or drawn is decided in mhc.sampling.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from mhc.trees.shapes import Tree


@dataclass
class Accepted:
    """path (B,P) nodes from the root, padded; counts (B,) nodes on it, the root included;
    emitted (B,P): the new tokens of the round, the first counts[b] of which are valid (bonus last)."""

    path: Tensor
    counts: Tensor
    emitted: Tensor


def right_nodes(tree: Tree, expected: Tensor, also: Tensor | None = None) -> Tensor:
    """Which nodes (B,N) carry the token expected there (B,N), or are set in `also` (B,N), together with all their ancestors.
    The root always is right: it was decided in the last round."""
    right = tree.tokens == expected
    if also is not None:
        right |= also
    right[:, 0] = True
    return ~(tree.ancestors & ~right[:, None, :]).any(dim=2)


def accept(tree: Tree, choices: Tensor, also: Tensor | None = None, max_emitted: Tensor | None = None) -> Accepted:
    """Find the longest path on which every draft token equals the target model's choice (B,N) at its parent.

    also: further nodes (B,N) to accept (typical acceptance); the draft tokens on the path are then emitted.
    max_emitted: tokens (B,) that a row may emit, at least 1.
    """
    rows = len(choices)
    right = right_nodes(tree, choices.gather(1, tree.parents.expand(rows, -1)), also)
    best = (tree.depth * right).argmax(dim=1)  # (B,)
    index = best[:, None, None].expand(-1, 1, tree.paths.shape[2])
    path = tree.paths.expand(rows, -1, -1).gather(1, index)[:, 0]  # (B,P)
    counts = tree.depth.expand(rows, -1).gather(1, best[:, None])[:, 0] + 1
    if max_emitted is not None:
        counts = torch.minimum(counts, max_emitted)
    emitted = choices.gather(1, path)
    if also is not None:
        inner = torch.arange(path.shape[1] - 1, device=path.device) < counts[:, None] - 1
        emitted[:, :-1] = torch.where(inner, tree.tokens.gather(1, path[:, 1:]), emitted[:, :-1])
    return Accepted(path, counts, emitted)
