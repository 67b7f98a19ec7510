"""Acceptance against a definition that walks the tree node by node."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc.decoding.verify import accept
from mhc.trees.shapes import FixedTree, Tree


def walk(tokens: list[int], parents: list[int], choices: list[int]) -> tuple[list[int], list[int]]:
    """The definition: from the root on, follow the child that is the backbone's choice."""
    node, path = 0, [0]
    while True:
        following = [c for c in range(1, len(tokens)) if parents[c] == node and tokens[c] == choices[node]]
        if not following:
            return path, [choices[n] for n in path]
        node = following[0]
        path.append(node)


@st.composite
def rounds(draw):
    """A random tree with distinct children per parent, and random choices of the backbone."""
    nodes = draw(st.integers(1, 12))
    ranks: dict[tuple, int] = {(): 0}
    choices: list[tuple] = []
    for _ in range(nodes - 1):
        parent = draw(st.sampled_from([(), *choices]))
        path = (*parent, ranks.setdefault(parent, 0))
        ranks[parent] += 1
        ranks[path] = 0
        choices.append(path)
    tree = FixedTree(choices)
    offsets = draw(st.lists(st.integers(0, 2), min_size=nodes, max_size=nodes))
    tokens = [0] + [path[-1] + offsets[tree.parents[0, i + 1]] for i, path in enumerate(tree.choices)]
    picks = draw(st.lists(st.integers(0, 3), min_size=nodes, max_size=nodes))
    return tree, tokens, picks


@settings(max_examples=200, deadline=None)
@given(st.lists(rounds(), min_size=1, max_size=1))
def test_accepts_what_walking_accepts(drawn):
    ((tree, tokens, picks),) = drawn
    grown = Tree(torch.tensor([tokens]), tree.parents, tree.depth, tree.ancestors, tree.paths)
    kept = accept(grown, torch.tensor([picks]))
    path, emitted = walk(tokens, tree.parents[0].tolist(), picks)
    count = int(kept.counts[0])
    assert kept.path[0, :count].tolist() == path
    assert kept.emitted[0, :count].tolist() == emitted
    assert (kept.path[0, count:] == path[-1]).all()  # padding repeats the last node
