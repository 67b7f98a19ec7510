"""Measures against small cases done by hand."""

import json
import math

import numpy as np
import pytest
import torch

from mhc.lm.measures import Answers, NGrams, answers, preference_accuracy, standard_errors
from tests.helpers.killed_runs import tiny_model


def rows(*texts: list[int]):
    return [(np.array(ids, np.int32), np.ones(len(ids), bool)) for ids in texts]


def test_unigrams_by_hand():
    model = NGrams(rows([0, 0, 1]), 1, vocabulary=4)
    spare = 0.75 * 2 / 3 / 4  # two kinds give up 0.75 each, shared by four tokens
    assert model.probability((), 0) == pytest.approx(1.25 / 3 + spare)
    assert model.probability((), 3) == pytest.approx(spare)
    assert model.loss(rows([2, 0])) == pytest.approx(
        -math.log(1.25 / 3 + spare)
    )  # of a row's first token nobody is asked


def test_bigrams_by_hand():
    model = NGrams(rows([0, 1, 0, 1, 0, 2]), 2, vocabulary=3)
    unigram = model.probability((), 1)
    assert model.probability((0,), 1) == pytest.approx(1.25 / 3 + 0.75 * 2 / 3 * unigram)
    assert model.probability((2,), 1) == pytest.approx(unigram)  # nothing was seen behind 2


@pytest.mark.parametrize("order", [1, 2, 5])
def test_chances_add_up(order):
    dice = np.random.default_rng(0)
    texts = [dice.integers(0, 7, 30).tolist() for _ in range(5)]
    model = NGrams(rows(*texts), order, vocabulary=9)
    for history in ((), (1,), (8, 8, 8, 8), tuple(texts[0][:4])):
        assert sum(model.probability(history, token) for token in range(9)) == pytest.approx(1)


def test_the_longer_history_tells_more():
    text = [0, 1, 2, 3, 0, 2, 1, 3] * 20
    losses = [NGrams(rows(text), order, 4).loss(rows(text)) for order in (1, 2, 5)]
    assert losses[0] > losses[1] > losses[2] and losses[2] < 0.1


def test_masked_tokens_do_not_count():
    model = NGrams(rows([0, 1, 0, 1]), 1, 4)
    ((ids, mask),) = rows([0, 0, 3])
    mask[2] = False
    assert model.loss([(ids, mask)]) == pytest.approx(-math.log(model.probability((), 0)))


def test_well_formed_answers_end_say_something_and_hold_no_control_token():
    assert Answers(["Well."] * 7, [True] * 7, ("<|im_end|>",)).well_formed == 1
    assert Answers(["Well."], [False], ()).well_formed == 0
    assert Answers(["Well.", "a <|im_start|>", "  "], [True] * 3, ("<|im_start|>",)).well_formed == pytest.approx(1 / 3)


def test_standard_errors():
    assert standard_errors(0.6, 100) == pytest.approx(2.0)


def test_a_model_answers_and_prefers(tmp_path):
    backbone, _ = tiny_model(tmp_path)
    found = answers(str(backbone), [[5, 6, 7], [9]], max_new_tokens=6)
    assert len(found.texts) == 2 and all(isinstance(text, str) for text in found.texts)
    pairs = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": f"{n} {n}"} for n in range(60)]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert preference_accuracy(str(backbone), str(backbone), str(data))[0] == 0.5  # a model differs from itself nowhere
    from transformers import AutoModelForCausalLM

    other = AutoModelForCausalLM.from_pretrained(backbone)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    other.save_pretrained(tmp_path / "other")
    for file in backbone.glob("*token*"):
        (tmp_path / "other" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "other" / "chat_template.jinja").write_bytes((backbone / "chat_template.jinja").read_bytes())
    one, count = preference_accuracy(str(tmp_path / "other"), str(backbone), str(data), "train")
    two, _ = preference_accuracy(str(backbone), str(tmp_path / "other"), str(data), "train")
    assert one + two == pytest.approx(1) and one != 0.5 and count > 40
