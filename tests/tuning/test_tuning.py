"""Tuning: a replayed decoding is what decoding does, the search finds the optimum, and nothing slower is kept."""

import itertools

import pytest
import torch

from mhc.drafters import Cascade, Medusa
from mhc.engine import Engine
from mhc.sampling import GREEDY, Sampling
from mhc.trees.replay import Costs, Trace, replay_dynamic, replay_fixed
from mhc.trees.shapes import DynamicTree, FixedTree
from mhc.tuning.measure import example_round, measure_costs, record
from mhc.tuning.search import fixed_trees, search
from tests.helpers.drafters import randomised
from tests.helpers.engines import PROMPTS

COSTS = Costs(
    plain=0.002,
    verify=[[1, 1.0], [2, 1.1], [8, 1.3], [64, 3.0]],
    draft={(width, deep): 0.1 * deep for width in (1, 2, 3, 4) for deep in (1, 2, 3, 4)},
    fixed={},
)


@pytest.fixture(scope="module", params=[GREEDY, Sampling(temperature=0.8, seed=5)], ids=["T=0", "T=0.8"])
def recorded(backbones, request):
    """An engine with half-good heads, and the traces of its answers."""
    backbone = backbones("llama")
    torch.manual_seed(0)
    drafter = randomised(Cascade(backbone, heads=4))
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.mul_(0.3)
    engine = Engine(backbone, drafter)
    return engine, request.param, record(engine, PROMPTS, 24, request.param)


def decoded(engine, tree, sampling) -> float:
    """Tokens per step of real decoding, the prefill's token apart."""
    found = [a for _, a in Engine(engine.backbone, engine.drafter, tree).generate_ids(PROMPTS, 24, 1, False, sampling)]
    return sum(len(a.token_ids) - 1 for a in found) / sum(a.steps - 1 for a in found)


def test_replay_is_what_decoding_does(recorded):
    """Every fixed and dynamic tree: the replayed tokens per step are those of decoding, to the token."""
    engine, sampling, traces = recorded
    assert [trace.tokens for trace in traces] == [
        engine.generate(prompt, 24, plain=True, sampling=sampling).token_ids for prompt in PROMPTS
    ]
    for tree in (FixedTree.chain(3), FixedTree([[0], [1], [2], [0, 0], [1, 0], [0, 0, 1], [0, 0, 1, 0]])):
        assert replay_fixed(traces, tree, 1.0)[1] == pytest.approx(decoded(engine, tree, sampling))
    for tree in (
        DynamicTree(2, 4, 9),
        DynamicTree(3, 4, 20, confidence=0.1),
        DynamicTree(4, 4, 40, confidence=0.05, costs=COSTS.verify, price=1.5),
        DynamicTree(1, 4, 5, costs=COSTS.verify, price=0.3),
    ):
        assert replay_dynamic(traces, COSTS, tree)[1] == pytest.approx(decoded(engine, tree, sampling))


def test_fixed_trees_are_optimal():
    """No tree of as many nodes would have had more guesses right: against every tree there is."""
    torch.manual_seed(1)
    ranks = torch.randint(0, 3, (60, 2))
    ranks[:30] = 0
    trace = Trace(tokens=list(range(61)), ranks=ranks)
    paths = [(a,) for a in range(3)] + [(a, b) for a in range(3) for b in range(3)]

    def right(tree: FixedTree) -> int:
        return sum((row[0],) in tree.choices for row in ranks.tolist()) + sum(
            tuple(row) in tree.choices for row in ranks.tolist()
        )

    for tree in fixed_trees([trace], (2, 4, 6)):
        for choice in itertools.combinations(paths, tree.nodes - 1):
            if all(path[:-1] in choice or len(path) == 1 for path in choice):
                assert right(tree) >= right(FixedTree(choice))


def test_costs_and_search(backbones):
    """Costs never fall with more nodes; the search returns the fastest first, all of them decodable."""
    backbone = backbones("llama")
    engine = Engine(backbone, randomised(Medusa(backbone, heads=3)))
    traces = record(engine, PROMPTS, 16, GREEDY)
    fixed = fixed_trees(traces, (2, 4, 8))
    costs = measure_costs(engine, PROMPTS[0], fixed, repeats=2)
    counts, prices = zip(*costs.verify)
    assert list(counts) == sorted(counts) and list(prices) == sorted(prices) and costs.plain > 0
    assert set(costs.fixed) == {tree.nodes for tree in fixed}
    found = search(traces, costs, fixed)
    assert [c.speedup for c in found] == sorted((c.speedup for c in found), reverse=True)
    assert {"fixed", "dynamic"} == {candidate.kind for candidate in found}
    plain = engine.generate(PROMPTS[0], 16, plain=True).token_ids
    for candidate in found[:3]:
        assert Engine(backbone, engine.drafter, candidate.shape).generate(PROMPTS[0], 16).token_ids == plain


def test_an_answer_of_one_token_has_nothing_to_guess(backbones):
    backbone = backbones("llama")
    engine = Engine(backbone, Medusa(backbone, heads=2))
    assert record(engine, PROMPTS, 1, GREEDY) == []


def test_the_picture_shows_a_real_round(recorded):
    engine, sampling, _ = recorded

    class Words:
        def decode(self, ids):
            return f"w{ids[0]}"

    engine.backbone.tokenizer = Words()
    try:
        shown = example_round(engine, PROMPTS[0], sampling, rounds=4)
    finally:
        engine.backbone.tokenizer = None
    assert shown["labels"][0].startswith("w") and len(shown["labels"]) == len(shown["parents"]) == len(shown["strong"])
    assert f" {sum(shown['strong']) - 1} draft tokens accepted" in shown["title"]
