"""Figures of benchmarks/lm.py against small cases done by hand."""

import math
from pathlib import Path

import pytest

from mhc.lm.measures import Answers


@pytest.fixture
def lm(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import lm

    return lm


def test_forms(lm):
    fine = "<think>\n1 + 1 = 2\n</think>\n<answer>\n2\n</answer>"
    broken = [
        fine.replace("</think>", ""),
        fine + "<answer>\n3\n</answer>",
        "2",
        fine.replace("1 + 1 = 2", ""),
        "Well. " + fine,
        fine.replace("\n2\n", "\n<think>\n"),
    ]
    given = Answers([fine, *broken], [True] * 7, ("<|im_end|>",))
    assert lm.reasoned(given) == [True, *[False] * 6]
    assert lm.reasoned(Answers([fine], [False], ())) == [False]
    assert lm.right_share(given, [fine.replace("1 + 1 = 2", "x"), *[fine] * 6]) == pytest.approx(1 / 7)


def test_paired_gain_has_the_error_of_seeds_and_of_prompts(lm):
    better = [[True, True, False, True], [True, False, False, True]]
    worse = [[True, False, False, False], [True, False, False, False]]
    gain, by_seed, by_prompt = lm.paired_gain(better, worse)
    assert gain == pytest.approx(3 / 8)
    assert by_seed == pytest.approx(1 / 8)  # 1/2 and 1/4
    assert by_prompt == pytest.approx(math.sqrt((9 + 1 + 9 + 25) / 64 / 3) / 2)  # 0, 1/2, 0 and 1
    same = lm.paired_gain(worse, worse)
    assert same == (0, 0, 0)
