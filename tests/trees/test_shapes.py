"""Trees: the worked example of mhc/trees/shapes.py, growth against plain Python, and shapes that cannot be."""

import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc.drafters import Cascade
from mhc.drafters.base import inherit
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import GREEDY, RoundNoise, Sampler, Sampling, gumbel
from mhc.trees.shapes import DynamicTree, FixedTree, Tree, cost_of, parse_tree
from tests.helpers.drafters import randomised


def dice(rows: list[Sampling], vocabulary: int, depth: int, start: int = 0) -> RoundNoise:
    return Sampler.of(rows, vocabulary, torch.device("cpu")).for_round(start, depth)


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

    def draft_level(self, state, tokens, parents):
        scores = torch.zeros(*tokens.shape, 10_000)
        for rank in range(3):
            scores.scatter_(2, (10 * tokens + rank)[..., None], 3.0 - rank)
        self.seen.append((tokens.tolist(), parents.tolist()))
        return scores, state

    def __init__(self):
        self.seen = []


def test_growth_hangs_children_below_their_parents():
    drafter = Counting()
    shape = FixedTree([[0], [1], [2], [0, 0], [0, 1], [2, 0], [2, 0, 1]])
    tree = shape.grow(drafter, None, torch.tensor([1, 2]), dice([GREEDY] * 2, 10_000, 3))
    #            root  (0) (1) (2)  (0,0) (0,1) (2,0)  (2,0,1)
    assert tree.tokens.tolist() == [
        [1, 10, 11, 12, 100, 101, 120, 1201],
        [2, 20, 21, 22, 200, 201, 220, 2201],
    ]
    # only nodes with children are asked, and `parents` are rows of the previous question
    assert drafter.seen == [
        ([[1], [2]], [[0]]),
        ([[10, 12], [20, 22]], [[0, 0]]),
        ([[120], [220]], [[1]]),
    ]


def test_chain_of_none_is_the_root_alone():
    assert FixedTree.chain(0).nodes == 1
    assert FixedTree.chain(3).choices == [(0,), (0, 0), (0, 0, 0)]


@pytest.mark.parametrize("choices, complaint", [([[0, 0]], "parent"), ([[-1]], "not a path"), ([[]], "not a path")])
def test_impossible_trees_are_refused(choices, complaint):
    with pytest.raises(UserError, match=complaint):
        FixedTree(choices)


# ---- dynamic trees


class Tabled:
    """A drafter whose logits after a path hang on its depth, its last token and the sum of all its tokens: a node
    that inherited the state of the wrong parent would be found out."""

    def __init__(self, table: torch.Tensor):
        self.table = table  # (depths, V, V, V)
        self.steps = 0

    def draft_level(self, state, tokens, parents):
        self.steps += 1
        deep, total = state
        total = (inherit(total, parents)[..., 0] + tokens) % len(self.table[0])
        return self.table[deep, total, tokens], (deep + 1, total[..., None])

    def start_tree(self, rows: int):
        return 0, torch.zeros(rows, 1, 1, dtype=torch.long)

    def logits(self, path: tuple[int, ...]) -> list[float]:
        return self.table[len(path) - 1, sum(path) % len(self.table[0]), path[-1]].tolist()


def tabled(vocabulary: int, depth: int, scale: float = 2.0, seed: int = 0) -> Tabled:
    generator = torch.Generator().manual_seed(seed)
    return Tabled(torch.randn(depth, vocabulary, vocabulary, vocabulary, generator=generator) * scale)


def grow(shape: DynamicTree, drafter, roots: list[int], rows: list[Sampling] | None = None, start: int = 0) -> Tree:
    draw = dice(rows or [GREEDY] * len(roots), drafter.table.shape[-1], shape.max_depth, start)
    return shape.grow(drafter, drafter.start_tree(len(roots)), torch.tensor(roots), draw)


def grown_slowly(
    scores: Callable[[tuple[int, ...]], list[float]], root: int, width: int, depth: int, budget: int
) -> list[tuple[tuple[int, ...], float]]:
    """The definition, for one row: (path, log-probability) of the nodes, in the order in which they were found."""
    found = beam = [((root,), 0.0)]
    for _ in range(depth):
        level = []
        for path, likely in beam:
            given = scores(path)
            whole = math.log(sum(math.exp(score) for score in given))
            for token in sorted(range(len(given)), key=lambda token: -given[token])[:width]:
                level.append(((*path, token), likely + given[token] - whole))
        found = found + level
        beam = sorted(level, key=lambda node: -node[1])[:width]
    likeliest = sorted(found, key=lambda node: -node[1])[:budget]
    return [node for node in found if node in likeliest]


def check_is_a_tree(tree: Tree) -> None:
    """Every row: parents first, depths counted, siblings distinct, ancestors and paths what walking up finds."""
    rows, nodes = tree.tokens.shape
    longest = tree.paths.shape[2]
    assert tree.parents.shape == tree.depth.shape == (rows, nodes)
    assert tree.ancestors.shape == (rows, nodes, nodes) and tree.paths.shape == (rows, nodes, longest)
    for row in range(rows):
        tokens, parents, depth = (part[row].tolist() for part in (tree.tokens, tree.parents, tree.depth))
        assert (parents[0], depth[0]) == (0, 0)
        chains = [[0]]
        for node in range(1, nodes):
            assert 0 <= parents[node] < node
            assert depth[node] == depth[parents[node]] + 1
            chains.append([*chains[parents[node]], node])
        assert len({(parents[node], tokens[node]) for node in range(1, nodes)}) == nodes - 1
        assert tree.paths[row].tolist() == [chain + chain[-1:] * (longest - len(chain)) for chain in chains]
        assert tree.ancestors[row].int().tolist() == [
            [int(other in chain) for other in range(nodes)] for chain in chains
        ]


@pytest.mark.parametrize(
    "rows", [[GREEDY] * 2, [Sampling(1.0, seed=4), Sampling(0.5, seed=5)]], ids=["greedy", "drawn"]
)
@pytest.mark.parametrize("width, depth, budget", [(3, 4, 12), (2, 5, 7), (4, 2, 21), (1, 4, 4), (3, 3, 1)])
def test_dynamic_growth_is_its_definition(width, depth, budget, rows):
    """A beam of `width`, as many children each, the `budget` likeliest of all; drawn rows rank by proposals, noise in part."""
    shape, drafter, roots = DynamicTree(width, depth, budget), tabled(9, depth), [1, 6]
    tree = grow(shape, drafter, roots, rows, start=20)
    assert drafter.steps == depth and tree.paths.shape[2] == depth + 1
    check_is_a_tree(tree)
    shapes = []
    for row, (root, sampling) in enumerate(zip(roots, rows)):

        def scores(path, sampling=sampling):
            place = torch.tensor([[20 + len(path)]])
            noise = gumbel(torch.tensor([sampling.seed]), place, 9)[0, 0] * sampling.temperature
            return (torch.tensor(drafter.logits(path)) + noise * sampling.temperature / 2).tolist()

        nodes = grown_slowly(scores, root, width, depth, budget)
        paths = [path for path, _ in nodes]
        assert tree.tokens[row].tolist() == [path[-1] for path in paths]
        assert tree.parents[row].tolist() == [0, *(paths.index(path[:-1]) for path in paths[1:])]
        assert tree.depth[row].tolist() == [len(path) - 1 for path in paths]
        assert tree.likely[row].tolist() == pytest.approx([likely for _, likely in nodes], abs=1e-3)
        shapes.append(tree.parents[row].tolist())
    if width > 1 and 1 < budget < 1 + width + (depth - 1) * width**2:
        assert shapes[0] != shapes[1]


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_the_drafter_says_it_is_a_tree(data):
    """Probabilities of exactly 1 and of exactly 0, ties everywhere, and any budget."""
    width, depth = data.draw(st.integers(1, 4), "width"), data.draw(st.integers(1, 5), "depth")
    budget = data.draw(st.integers(1, 1 + width + (depth - 1) * width**2), "budget")
    drafter = tabled(6, depth, data.draw(st.sampled_from([0.0, 1.0, 30.0, 1e4])), data.draw(st.integers(0, 99)))
    masked = data.draw(st.sampled_from([0.0, 0.5, 0.9]), "masked")
    outside = torch.rand(drafter.table.shape, generator=torch.Generator().manual_seed(budget)) < masked
    outside &= drafter.table < drafter.table.amax(dim=-1, keepdim=True)  # the likeliest stays
    drafter.table[outside] = -math.inf
    kind = st.sampled_from([GREEDY, Sampling(1.0, seed=3), Sampling(1.0, top_k=1, seed=4), Sampling(0.2, top_p=0.5)])
    rows = data.draw(st.lists(kind, min_size=1, max_size=3), "rows")
    shape = DynamicTree(width, depth, budget, confidence=data.draw(st.sampled_from([0.0, 0.3]), "confidence"))
    tree = grow(shape, drafter, [row % 6 for row in range(len(rows))], rows)
    found = 1 + width + max(0, drafter.steps - 1) * width**2
    assert tree.tokens.shape[1] == min(budget, found)
    check_is_a_tree(tree)


@pytest.mark.parametrize("wrong", [0.0, -math.inf])
def test_a_certain_drafter_grows_a_chain(wrong):
    """Where one child is sure, the path to the deepest level comes before every sibling on the way."""
    drafter = tabled(5, 4, scale=0.0)
    drafter.table += wrong
    drafter.table[..., 2] = 1e4
    tree = grow(DynamicTree(width=3, depth=4, budget=5), drafter, [0, 1])
    assert tree.tokens.tolist() == [[0, 2, 2, 2, 2], [1, 2, 2, 2, 2]]
    assert tree.parents.tolist() == [[0, 0, 1, 2, 3]] * 2
    check_is_a_tree(tree)


def test_cost_of_goes_on_between_and_beyond_what_was_measured():
    costs = [[1, 1.0], [8, 1.7], [16, 4.1]]
    assert [cost_of(costs, nodes) for nodes in (1, 8, 16)] == pytest.approx([1.0, 1.7, 4.1])
    assert [cost_of(costs, nodes) for nodes in (2, 4, 12)] == pytest.approx([1.1, 1.3, 2.9])
    assert cost_of(costs, 26) == pytest.approx(7.1)  # the last slope goes on
    assert cost_of([[4, 1.4], [8, 1.8]], 1) == pytest.approx(1.1)  # and the first
    assert cost_of([[4, 1.4]], 100) == 1.4


def test_a_price_of_nothing_keeps_the_budget_and_a_high_one_the_root_alone():
    costs = [[1, 1.0], [40, 3.0]]
    for price, nodes in ((0.0, 20), (1000.0, 1)):
        tree = grow(DynamicTree(3, 4, 20, costs=costs, price=price), tabled(9, 4), [1, 6])
        assert tree.tokens.shape == (2, nodes)
        check_is_a_tree(tree)


@pytest.mark.parametrize("roots", [[1], [1, 6, 4]])
@pytest.mark.parametrize("price", [0.2, 1.0, 2.0, 5.0])
def test_costs_cut_the_tree_where_the_gain_is_largest(roots, price):
    """Of all sizes the one with the largest (sum of probabilities) - price * cost in plain steps of all rows; the cut
    tree is the one of that budget."""
    costs = [[1, 1.0], [8, 1.2], [64, 6.0]]
    probabilities = []
    for root in roots:
        nodes = grown_slowly(tabled(9, 4).logits, root, 3, 4, 20)
        probabilities.append(sorted((math.exp(likely) for _, likely in nodes), reverse=True))
    gain = {
        count: sum(sum(row[:count]) for row in probabilities)
        - price * len(roots) * cost_of(costs, count * len(roots)) / cost_of(costs, len(roots))
        for count in range(1, 21)
    }
    best = max(gain, key=gain.get)
    tree = grow(DynamicTree(3, 4, 20, costs=costs, price=price), tabled(9, 4), roots)
    same = grow(DynamicTree(3, 4, best), tabled(9, 4), roots)
    assert tree.tokens.shape[1] == best
    assert torch.equal(tree.tokens, same.tokens) and torch.equal(tree.parents, same.parents)


def test_confidence_stops_growth():
    """Eight equal tokens: level 1 is 1/8 likely, level 2 1/64; one row that is sure takes the others along."""
    for confidence, levels in ((0.0, 4), (0.01, 3), (0.1, 2), (0.2, 1), (0.999, 1)):
        drafter = tabled(8, 4, scale=0.0)
        tree = grow(DynamicTree(2, 4, 15, confidence=confidence), drafter, [0, 1])
        assert drafter.steps == levels
        assert tree.depth.max() == levels and tree.paths.shape[2] == levels + 1
        assert tree.tokens.shape[1] == min(15, 1 + 2 + 4 * (levels - 1))
        check_is_a_tree(tree)
    drafter = tabled(8, 4, scale=0.0)
    drafter.table[:, :, 5, 5] = 50.0  # after a 5 always a 5
    check_is_a_tree(grow(DynamicTree(2, 4, 15, confidence=0.5), drafter, [0, 5]))
    assert drafter.steps == 4


def test_greedy_scores_are_the_logits():
    logits = torch.randn(1, 3, 7)
    draw = dice([GREEDY], 7, 2)
    assert draw.target_scores(logits, 1) is logits and draw.target_scores(logits, torch.tensor([[0, 1, 1]])) is logits
    assert draw.draft_scores(logits, 1) is logits


def test_a_budget_below_the_depth_fits_into_the_cache(backbones):
    """Accepted paths are padded to the depth of the tree, also behind the last token that there is room for."""
    backbone = backbones("llama")
    shape = DynamicTree(width=1, depth=4, budget=2)
    engine = Engine(backbone, randomised(Cascade(backbone, heads=4)), shape)
    prompts = [[5, 9, 3], [7] * 11]
    for batch_size in (1, 2):
        found = dict(engine.generate_ids(prompts, 8, batch_size))
        for number, prompt in enumerate(prompts):
            assert found[number].token_ids == engine.generate(prompt, 8, plain=True).token_ids


# ---- shapes by name, as text, in files


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        ((0, 3, 1), "width 0"),
        ((2, 0, 1), "depth 0"),
        ((2, 3, 0), "budget 0"),
        ((3, 2, 14), "budget of 14 nodes is over the 13"),
        ((1, 1, 3), "over the 2"),
        ((2, 3, 4, 1.0), "confidence is 1.0"),
        ((2, 3, 4, -0.1), "confidence is -0.1"),
        ((2, 3, 4, math.nan), "confidence is nan"),
    ],
)
def test_impossible_dynamic_trees_are_refused(arguments, complaint):
    with pytest.raises(UserError, match=complaint):
        DynamicTree(*arguments)
    DynamicTree(3, 2, 13)


def test_the_published_tree_is_known_by_name():
    shape = parse_tree("mc_sim_7b_63")
    assert isinstance(shape, FixedTree)
    assert (len(shape.choices), shape.nodes, shape.max_depth) == (63, 64, 4)
    assert {(0,), (9,), (0, 0, 0, 0), (0, 7, 0)} <= set(shape.choices)


FIXED = {"choices": [[0], [1], [0, 0]]}
DYNAMIC = {"width": 2, "depth": 3, "budget": 6, "confidence": 0.1}


@pytest.mark.parametrize("wanted", [FIXED, DYNAMIC, DYNAMIC | {"costs": [[1, 1.0], [9, 1.5]], "price": 1.4}])
def test_a_shape_is_what_it_describes(wanted, tmp_path):
    """From a mapping, as text, from a file, and from what it says of itself, which is plain JSON."""
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"source": "where it comes from is not read"} | wanted))
    shape = parse_tree(wanted)
    assert isinstance(shape, FixedTree if "choices" in wanted else DynamicTree)
    assert parse_tree(shape) is shape
    for same in (shape, parse_tree(json.dumps(wanted)), parse_tree("  " + json.dumps(wanted)), parse_tree(str(path))):
        assert same.describe() == wanted
        assert json.loads(json.dumps(same.describe())) == wanted
        assert parse_tree(same.describe()).describe() == wanted
        assert (same.nodes, same.max_depth) == ((4, 2) if "choices" in wanted else (6, 3))


def test_choices_are_a_shape_as_list_text_and_file(tmp_path):
    path = tmp_path / "choices.json"
    path.write_text("[[0], [0, 0], [0, 1]]")
    for wanted in ([[0], [0, 0], [0, 1]], [(0, 1), (0,), (0, 0)], "[[0],[0,0],[0,1]]", str(path)):
        assert parse_tree(wanted).choices == [(0,), (0, 0), (0, 1)]


@pytest.mark.parametrize(
    "wanted, complaint",
    [
        ("oak", "unknown tree 'oak': give .*mc_sim_7b_63"),
        ("nowhere/oak.json", "unknown tree 'nowhere/oak.json'"),
        ("", "unknown tree ''"),
        ("[[0], [1", "not JSON"),
        ("{width: 2}", "not JSON"),
        ("[0, 1]", "neither choices nor width, depth and budget"),
        (None, "neither choices nor width, depth and budget"),
        ({"width": 2, "depth": 2}, "neither choices nor width, depth and budget.*budget"),
        (DYNAMIC | {"height": 3}, "neither choices nor width, depth and budget.*height"),
        (FIXED | {"width": 3}, "neither choices nor width, depth and budget.*width"),
        (DYNAMIC | {"width": "two"}, "neither choices nor width, depth and budget"),
        (DYNAMIC | {"budget": 100}, "budget of 100"),
        ([[0, 0]], "its parent"),
        ('[["a"]]', "not a path of ranks"),
    ],
)
def test_shapes_that_cannot_be_are_named(wanted, complaint):
    with pytest.raises(UserError, match=complaint):
        parse_tree(wanted)


def test_a_file_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text("width: 2")
    with pytest.raises(UserError, match=r"broken\.json' is not JSON"):
        parse_tree(str(path))
