"""What training predicts is what decoding does, for every family, with heads that are right often enough to matter."""

import csv

import pytest

from mhc.engine import Engine
from mhc.evaluation.teacher_forced import accuracy_by_head, kind_of, predict, predicted_tokens_per_step, save_guesses
from mhc.sampling import Sampling
from mhc.trees.shapes import DynamicTree, FixedTree
from tests.helpers.drafters import HEADS, VARIANTS, memorise
from tests.helpers.engines import NEW, PROMPTS, TREES, answers

FAMILIES = [
    *("medusa", "cascade", "cascade_tied", "cascade_speculator", "cascade_low_rank", "diffusion", "diffusion_passes"),
    *("eagle3", "eagle3_few_words"),
]


@pytest.fixture(scope="module", params=FAMILIES)
def taught(backbones, request):
    """Heads that know three of four answers by heart, and the plain answers."""
    backbone = backbones("qwen3")
    plain = answers(Engine(backbone), 1)
    return memorise(VARIANTS[request.param](backbone), PROMPTS[:3], plain[:3], steps=60, learning_rate=0.02), plain


def per_step(found: dict) -> float:
    return sum(len(a.token_ids) - 1 for a in found.values()) / sum(a.steps - 1 for a in found.values())


@pytest.mark.parametrize("batch_size", [1, 3])
def test_real_decoding_accepts_what_training_predicts(taught, batch_size):
    """Chains of every length: tokens per step as predicted, to the token, and the text unchanged."""
    drafter, plain = taught
    predicted = [predict(drafter, prompt, answer) for prompt, answer in zip(PROMPTS, plain)]
    for levels in (1, 2, HEADS):
        engine = Engine(drafter.backbone, drafter, FixedTree.chain(levels))
        found = dict(engine.generate_ids(PROMPTS, NEW, batch_size))
        assert [found[number].token_ids for number in range(len(PROMPTS))] == plain
        assert per_step(found) == pytest.approx(predicted_tokens_per_step(predicted, levels), abs=1e-9)
    assert per_step(found) > 1.6


@pytest.mark.parametrize("tree", TREES)
def test_trees_of_good_heads_change_nothing(taught, tree):
    drafter, plain = taught
    engine = Engine(drafter.backbone, drafter, TREES[tree])
    assert answers(engine, 3) == plain
    drawn = Sampling(temperature=0.3, seed=4)
    assert answers(engine, 3, sampling=drawn) == answers(Engine(drafter.backbone), 1, sampling=drawn)


def test_a_tree_accepts_at_least_what_its_chain_does(taught):
    drafter, _ = taught
    chain, tree = (
        per_step(dict(Engine(drafter.backbone, drafter, shape).generate_ids(PROMPTS[:3], NEW)))
        for shape in (FixedTree.chain(HEADS), DynamicTree(3, HEADS, 3 + 1 + 9 * 3))
    )
    assert tree > 0.9 * chain


def test_guesses_are_kept_for_the_notebooks(taught, tmp_path):
    drafter, plain = taught

    class Letters:
        all_special_ids = (0,)

        def decode(self, ids):
            return chr(64 + ids[0])

    predicted = [predict(drafter, prompt, answer) for prompt, answer in zip(PROMPTS, plain)]
    save_guesses(tmp_path / "guesses.csv", predicted, Letters())
    rows = list(csv.DictReader((tmp_path / "guesses.csv").read_text().splitlines()))
    assert len(rows) == sum(len(answer) - 1 - head for answer in plain for head in range(HEADS))
    accuracy = accuracy_by_head(predicted)
    for head in range(HEADS):
        here = [int(row["rank"]) for row in rows if int(row["head"]) == head]
        assert sum(rank == 0 for rank in here) / len(here) == pytest.approx(accuracy[head]["top1"], abs=1e-4)
        assert sum(rank < 5 for rank in here) / len(here) == pytest.approx(accuracy[head]["top5"], abs=1e-4)
    assert all(0 < float(row["confidence"]) <= 1 for row in rows)


def test_kinds_of_tokens():
    kinds = {" the": "word", "ing": "part of a word", "7": "digit", ",": "punctuation", "\n": "space", "The": "word"}
    assert {text: kind_of(text) for text in kinds} == kinds
