"""Speculation pauses where it does not pay, and comes back where it does; the text is the same."""

import pytest

from mhc.decoding.decoder import SpeculativeDecoder
from mhc.decoding.pace import LONGEST, SHORTEST, Pace
from mhc.engine import Engine
from mhc.trees.shapes import FixedTree
from tests.helpers.drafters import Scripted
from tests.helpers.engines import NEW, PROMPTS, answers

PRICED = FixedTree([(0,) * deep for deep in range(1, 5)], costs=[[1, 1.0], [5, 1.5], [50, 6.0]], draft_cost=0.2)


def test_a_round_costs_its_nodes_and_its_levels():
    assert Pace(PRICED).cost(rows=1, nodes=5, levels=4) == pytest.approx(1.5 + 4 * 0.2)
    # 50 nodes are verified and 5 rows drafted for, against plain steps of 5 rows
    assert Pace(PRICED).cost(rows=5, nodes=10, levels=2) == pytest.approx((6.0 + 2 * 0.2 * 1.5 / 1.0) / 1.5)


def test_pauses_grow_while_nothing_is_accepted_and_end_where_it_pays():
    pace, modes = Pace(PRICED), []
    for _ in range(600):
        modes.append(pace.pays())
        if modes[-1]:
            pace.learn(1.0, 1, 5, 4)  # the bonus token alone
    runs = "".join("S" if mode else "p" for mode in modes).split("S")
    lengths = [len(run) for run in runs if run]
    assert lengths[:4] == [SHORTEST, 2 * SHORTEST, 4 * SHORTEST, 8 * SHORTEST] and max(lengths) == LONGEST
    assert sum(modes) < 30
    pace.pause_left = 0
    for _ in range(100):
        assert pace.pays()
        pace.learn(4.0, 1, 5, 4)
    assert pace.pause == SHORTEST  # a good stretch is forgiven one bad round
    pace.learn(1.0, 1, 5, 4)
    assert pace.pays()


def test_without_prices_nothing_is_decided():
    pace = Pace(FixedTree.chain(3))
    for _ in range(50):
        assert pace.pays()
        pace.learn(1.0, 1, 4, 3)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_an_adversary_is_soon_left_alone_and_an_oracle_is_not(backbones, batch_size, monkeypatch):
    step = SpeculativeDecoder.speculative_step
    plain = answers(Engine(backbones("llama")), 1, new=60)
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, plain)]
    speculated = {}
    for right in (0, 99):
        drafter = Scripted(backbones("llama"), texts, [len(prompt) for prompt in PROMPTS], right=right)
        engine = Engine(backbones("llama"), drafter, PRICED)
        rounds = []
        with monkeypatch.context() as patch:
            patch.setattr(
                SpeculativeDecoder, "speculative_step", lambda decoder, rounds=rounds: rounds.append(1) or step(decoder)
            )
            assert answers(engine, batch_size, new=60) == plain
        speculated[right] = len(rounds)
    assert speculated[0] < 60 * len(PROMPTS) / batch_size / 3
    assert speculated[99] >= 59 / 5
    assert answers(engine, batch_size) == [answer[:NEW] for answer in plain]
