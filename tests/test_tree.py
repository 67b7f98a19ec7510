"""Trees: the worked example of mhc/tree.py, and shapes that cannot be."""

import pytest
import torch

from mhc.errors import UserError
from mhc.tree import FixedTree


def test_worked_example():
    tree = FixedTree([[1], [0, 0], [0]])  # in any order
    assert tree.choices == [(0,), (1,), (0, 0)]
    assert tree.parents.tolist() == [[0, 0, 0, 1]]
    assert tree.depth.tolist() == [[0, 1, 1, 2]]
    seen = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    assert tree.ancestors.int().tolist() == [seen]
    assert tree.paths.tolist() == [[[0, 0, 0], [0, 1, 1], [0, 2, 2], [0, 1, 3]]]


class Counting:
    """A drafter whose k-th likeliest child of token t at depth d is 10 * t + k, so paths can be read off."""

    def step(self, state, tokens, parents):
        scores = torch.zeros(*tokens.shape, 10_000)
        for rank in range(3):
            scores.scatter_(2, (10 * tokens + rank)[..., None], 3.0 - rank)
        self.seen.append((tokens.tolist(), parents.tolist()))
        return scores, state

    def __init__(self):
        self.seen = []


def test_growth_hangs_children_below_their_parents():
    drafter = Counting()
    tree = FixedTree([[0], [1], [2], [0, 0], [0, 1], [2, 0], [2, 0, 1]]).grow(drafter, None, torch.tensor([1, 2]))
    #            root  (0) (1) (2)  (0,0) (0,1) (2,0)  (2,0,1)
    assert tree.tokens.tolist() == [
        [1, 10, 11, 12, 100, 101, 120, 1201],
        [2, 20, 21, 22, 200, 201, 220, 2201],
    ]
    # only nodes with children are asked, and `parents` are rows of the previous question
    assert drafter.seen == [
        ([[1], [2]], [0]),
        ([[10, 12], [20, 22]], [0, 0]),
        ([[120], [220]], [1]),
    ]


def test_chain_of_none_is_the_root_alone():
    assert FixedTree.chain(0).nodes == 1
    assert FixedTree.chain(3).choices == [(0,), (0, 0), (0, 0, 0)]


@pytest.mark.parametrize("choices, complaint", [([[0, 0]], "parent"), ([[-1]], "no path"), ([[]], "no path")])
def test_impossible_trees_are_refused(choices, complaint):
    with pytest.raises(UserError, match=complaint):
        FixedTree(choices)
