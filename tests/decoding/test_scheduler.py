"""Prompts that come and go: whatever is decoded beside it, and whenever it came, an answer stays the one it would be alone."""

import math
import random

import pytest
import torch

from mhc.decoding.request import DecodeRequest
from mhc.drafters import Cascade
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling
from mhc.trees.shapes import DynamicTree, FixedTree
from tests.helpers.backbones import tiny_backbone
from tests.helpers.drafters import randomised
from tests.helpers.engines import TREES

SETTINGS = [GREEDY, Sampling(0.8, seed=3), Sampling(1.1, top_p=0.8, seed=4), Sampling(1.0, top_k=7, seed=5)]


@pytest.fixture(scope="module")
def engine(backbones):
    return Engine(backbones("llama"), randomised(Cascade(backbones("llama"), heads=4)), TREES["tree"])


def alone(engine: Engine, prompt: list[int], new: int, sampling: Sampling) -> list[int]:
    return engine.generate(prompt, new, plain=True, sampling=sampling).token_ids


@pytest.mark.parametrize("tree", ["tree", "dynamic_cut", "paced"])
def test_whoever_comes_and_goes_beside_it(backbones, tree):
    engine = Engine(
        backbones("llama"), randomised(Cascade(backbones("llama"), heads=4)), TREES[tree]
    ).with_large_batch_tree()
    dice = random.Random(0)
    scheduler = engine.scheduler(size=20, context=100)
    asked, texts, ended, cancelled = {}, {}, {}, set()
    for number in range(60):
        prompt = [dice.randrange(61) for _ in range(dice.randrange(1, 30))]
        asked[number] = prompt, dice.randrange(1, 40), dice.choice(SETTINGS)
        scheduler.submit(number, DecodeRequest(*asked[number], plain=dice.random() < 0.3))
        for _ in range(dice.randrange(3)):
            for output in scheduler.step():
                assert output.request not in cancelled
                texts.setdefault(output.request, []).extend(output.tokens)
                ended[output.request] = output.finish_reason
        if dice.random() < 0.1:
            victim = dice.choice([one for one in asked if ended.get(one) is None])
            scheduler.cancel(victim)
            cancelled.add(victim)
    while scheduler.busy:
        for output in scheduler.step():
            assert output.request not in cancelled
            texts.setdefault(output.request, []).extend(output.tokens)
            ended[output.request] = output.finish_reason
    assert len(cancelled) > 2 and not scheduler.batch.requests
    for number, (prompt, new, sampling) in asked.items():
        if number not in cancelled:
            assert ended[number] in ("stop", "length")
            assert texts[number] == alone(engine, prompt, new, sampling), number


def test_compiled_rounds_serve_whatever_comes(monkeypatch):
    """Fixed shapes, idle rows computed too, kinds of sampling declared at the start; warmed up before anything is asked."""
    backbone = tiny_backbone("llama")
    monkeypatch.setattr(backbone, "compiled", lambda: backbone.model.base_model)
    engine = Engine(backbone, randomised(Cascade(backbone, heads=4)), TREES["tree"], compile=True)
    eager, scheduler = Engine(backbone), engine.scheduler(size=3, context=60)
    asked = [([number + 1] * (number + 2), 20, SETTINGS[number % 4]) for number in range(7)]
    texts, told = {number: [] for number in range(7)}, []
    for number, (prompt, new, sampling) in enumerate(asked):
        scheduler.submit(number, DecodeRequest(prompt, new, sampling, plain=number == 2, logprobs=number == 4))
    while scheduler.busy:
        for output in scheduler.step():
            texts[output.request] += output.tokens
            told += output.logprobs or []
    assert [texts[number] for number in range(7)] == [alone(eager, *each) for each in asked]
    assert len(told) == len(texts[4])
    with pytest.raises(UserError, match="context is 60"):
        scheduler.submit(9, DecodeRequest([1] * 60, 1))


def test_a_plain_prompt_gets_one_token_a_round(engine):
    scheduler = engine.scheduler(size=4, context=100)
    drawn = Sampling(1.0, seed=1)
    scheduler.submit(0, DecodeRequest([5, 9, 3], 12, GREEDY, plain=True))
    scheduler.submit(1, DecodeRequest([5, 9, 3], 12, drawn))
    counts = {0: [], 1: []}
    while scheduler.busy:
        for output in scheduler.step():
            counts[output.request].append(len(output.tokens))
    assert set(counts[0]) == {1}
    assert max(counts[1]) > 1, "else the guesses of this test are never right"


@pytest.mark.parametrize("plain", [True, False])
def test_logprobs_are_the_backbones_own(engine, plain):
    scheduler = engine.scheduler(size=3, context=100)
    prompt, sampling = [5, 9, 3, 8], Sampling(1.0, top_p=0.9, seed=2)
    scheduler.submit(7, DecodeRequest(prompt, 16, sampling, plain=plain, logprobs=True))
    scheduler.submit(8, DecodeRequest([1, 2], 16))
    tokens, told = [], []
    while scheduler.busy:
        for output in scheduler.step():
            if output.request == 7:
                tokens += output.tokens
                told += output.logprobs
            else:
                assert output.logprobs is None
    assert tokens == alone(engine, prompt, 16, sampling) and len(told) == 16
    with torch.no_grad():
        logits = engine.backbone.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(dim=-1)
    for at, (token, logprob) in enumerate(zip(tokens, told)):
        assert math.isclose(logprob.logprob, expected[at, token], abs_tol=1e-4)
        best = expected[at].topk(20)
        assert [token for token, _ in logprob.top] == best.indices.tolist()
        assert torch.allclose(torch.tensor([value for _, value in logprob.top]), best.values, atol=1e-4)


def test_many_rows_are_given_one_guess_each(backbones):
    tree = DynamicTree(width=3, depth=4, budget=14)
    engine = Engine(backbones("llama"), randomised(Cascade(backbones("llama"), heads=4)), tree).with_large_batch_tree()
    scheduler = engine.scheduler(size=16, context=64)
    for number in range(16):
        scheduler.submit(number, DecodeRequest([number + 1], 20))
    scheduler.step()
    assert scheduler.decoder.tree.nodes == FixedTree.chain(1).nodes
    for number in range(1, 16):
        scheduler.cancel(number)
    assert scheduler.decoder.tree is tree


def test_what_does_not_fit_is_refused(engine):
    scheduler = engine.scheduler(size=2, context=50)
    with pytest.raises(UserError, match="50 tokens, the backbone's context is 50"):
        scheduler.submit(0, DecodeRequest([1] * 50, 4))
    with pytest.raises(UserError, match="empty"):
        scheduler.submit(0, DecodeRequest([], 4))
    scheduler.submit(0, DecodeRequest([1] * 49, 4))
    (output,) = scheduler.step()
    assert (len(output.tokens), output.finish_reason) == (1, "length")
    assert not scheduler.busy
