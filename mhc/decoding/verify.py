"""Verification: which of the guesses the backbone would have made itself.

    B rows   N nodes   V vocabulary   P = D+1 nodes on a path

The backbone's choice at node i is the token that follows the path ending in i. A node is accepted
when it, and every ancestor of it, equals the choice at its parent. Children of one parent carry
different tokens, so the accepted nodes form one path; the choice at its end is the bonus token.
Whether the backbone chooses greedily or draws is decided in mhc.sampling.
"""

from dataclasses import dataclass

import torch

from mhc.trees.shapes import Tree


@dataclass
class Accepted:
    """path (B,P) nodes from the root, padded; counts (B,) nodes on it, the root included;
    emitted (B,P): the new tokens of the round, the first counts[b] of which hold (bonus last)."""

    path: torch.Tensor
    counts: torch.Tensor
    emitted: torch.Tensor


def accept(
    tree: Tree, choices: torch.Tensor, also: torch.Tensor | None = None, most: torch.Tensor | None = None
) -> Accepted:
    """Find the longest path on which every guess equals the backbone's choice (B,N) at its parent.

    also: nodes (B,N) to accept besides (typical acceptance); what is emitted then is the guesses on the path. most: tokens
    (B,) that a row may emit, at least 1.
    """
    rows = len(choices)
    right = tree.tokens == choices.gather(1, tree.parents.expand(rows, -1))
    if also is not None:
        right |= also
    right[:, 0] = True  # the root was decided last round
    right = ~(tree.ancestors & ~right[:, None, :]).any(dim=2)  # (B,N) and all ancestors right
    best = (tree.depth * right).argmax(dim=1)  # (B,)
    index = best[:, None, None].expand(-1, 1, tree.paths.shape[2])
    path = tree.paths.expand(rows, -1, -1).gather(1, index)[:, 0]  # (B,P)
    counts = tree.depth.expand(rows, -1).gather(1, best[:, None])[:, 0] + 1
    if most is not None:
        counts = torch.minimum(counts, most)
    emitted = choices.gather(1, path)
    if also is not None:
        inner = torch.arange(path.shape[1] - 1, device=path.device) < counts[:, None] - 1
        emitted[:, :-1] = torch.where(inner, tree.tokens.gather(1, path[:, 1:]), emitted[:, :-1])
    return Accepted(path, counts, emitted)
