"""Exactness: with any drafter, tree, batch and architecture the text is plain decoding's."""

import pytest
import torch
from transformers import AutoModelForCausalLM

import mhc.decoding.batch
from mhc.backbone.cache import TreeCache
from mhc.backbone.model import Backbone
from mhc.decoding.request import DecodeRequest
from mhc.drafters import Cascade, Diffusion, Eagle3, Medusa
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling
from mhc.trees.shapes import FixedTree
from tests.helpers.backbones import ARCHITECTURES, VOCABULARY, tiny_backbone
from tests.helpers.drafters import FAMILIES, Scripted, randomised
from tests.helpers.engines import NEW, PROMPTS, TREES, answers, reference


@pytest.fixture(scope="module")
def references(backbones):
    known = {}

    def get(name: str) -> list[list[int]]:
        if name not in known:
            known[name] = [reference(backbones(name), prompt) for prompt in PROMPTS]
        return known[name]

    return get


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_plain_is_what_transformers_generates(backbones, references, name, batch_size):
    assert answers(Engine(backbones(name)), batch_size) == references(name)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_heads_change_nothing(backbones, references, name, family, tree, batch_size):
    untrained = [family(backbones(name), 4)] if family in (Medusa, Cascade) else []  # these do nothing at all
    for drafter in (*untrained, randomised(family(backbones(name), 4))):
        engine = Engine(backbones(name), drafter, TREES[tree])
        assert answers(engine, batch_size) == references(name)


SAMPLINGS = {
    "T=0.7": Sampling(temperature=0.7, seed=1),
    "T=1.0 top-k": Sampling(temperature=1.0, top_k=9, seed=2),
    "T=1.3 top-p": Sampling(temperature=1.3, top_p=0.9, seed=3),
    "T=1.0 both": Sampling(temperature=1.0, top_k=20, top_p=0.8, seed=2**62),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_drawn_text_hangs_on_the_seed_alone(backbones, name):
    """Temperature, top-k, top-p: whatever the drafter, tree and batch, the tokens are plain seeded decoding's."""
    backbone = backbones(name)
    drawn = {}
    for label, sampling in SAMPLINGS.items():
        plain = drawn[label] = answers(Engine(backbone), 1, sampling=sampling)
        assert answers(Engine(backbone), 3, sampling=sampling) == plain
        for family, tree, batch_size in (
            (Cascade, "chain", 3),
            (Cascade, "tree", 1),
            (Cascade, "dynamic_cut", 3),
            (Medusa, "dynamic", 3),
            (Medusa, "cut", 1),
            (Diffusion, "tree", 3),
            (Eagle3, "chain", 1),
            (Eagle3, "dynamic_cut", 3),
        ):
            engine = Engine(backbone, randomised(family(backbone, 4)), TREES[tree])
            assert answers(engine, batch_size, sampling=sampling) == plain, (label, tree)
    assert len({str(text) for text in drawn.values()}) == len(drawn)


@pytest.mark.parametrize("right", [0, 2, 99])
@pytest.mark.parametrize("label", SAMPLINGS)
def test_drawn_text_with_known_guesses(backbones, label, right):
    """An oracle of what the seed will draw is accepted whole, an adversary not at all; the text is the same."""
    for name in ("llama", "gemma3_text"):
        plain = answers(Engine(backbones(name)), 1, sampling=SAMPLINGS[label])
        texts = [prompt + answer for prompt, answer in zip(PROMPTS, plain)]
        drafter = Scripted(backbones(name), texts, [len(prompt) for prompt in PROMPTS], right=right)
        for batch_size in (1, 3):
            found = dict(
                Engine(backbones(name), drafter).generate_ids(PROMPTS, NEW, batch_size, sampling=SAMPLINGS[label])
            )
            assert [found[number].token_ids for number in range(len(PROMPTS))] == plain
            if right != 2 and not SAMPLINGS[label].top_p < 1 and not SAMPLINGS[label].top_k:
                assert all(count == min(right, 4) for answer in found.values() for count in answer.accepted[1:-1])


@pytest.mark.parametrize(
    "sampling", [Sampling(1.0, top_p=5e-324), Sampling(5e-324, top_p=0.5), Sampling(1e-40, top_k=3)]
)
def test_next_to_nothing_leaves_the_likeliest_token(backbones, sampling):
    """These are 0 in single precision."""
    assert answers(Engine(backbones("llama")), 3, sampling=sampling) == answers(Engine(backbones("llama")), 1)


def test_every_row_has_a_seed_of_its_own(backbones):
    engine = Engine(backbones("llama"), randomised(Cascade(backbones("llama"), heads=4)), TREES["tree"])
    seeds = [Sampling(temperature=1.0, seed=seed) for seed in range(4)]
    together = dict(engine.generate_ids([PROMPTS[0]] * 4, NEW, 3, sampling=seeds))
    assert len({tuple(answer.token_ids) for answer in together.values()}) == 4
    for number, sampling in enumerate(seeds):
        assert together[number].token_ids == engine.generate(PROMPTS[0], NEW, plain=True, sampling=sampling).token_ids


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt_neox", "gpt_oss"])
def test_rounds_over_fixed_buffers_give_the_same_text(name, monkeypatch):
    """What compilation and CUDA graphs run: fixed shapes, idle rows computed too, lengths read from the device."""
    backbone = tiny_backbone(name)
    monkeypatch.setattr(backbone, "compiled", lambda: backbone.model.base_model)  # the shapes without the compiler
    monkeypatch.setitem(mhc.decoding.batch.BUCKET, "cpu", 16)
    expected = {sampling: answers(Engine(backbone), 1, sampling=sampling) for sampling in (GREEDY, *SAMPLINGS.values())}
    for tree in ("tree", "dynamic", "dynamic_cut"):
        engine = Engine(backbone, randomised(Cascade(backbone, heads=4)), TREES[tree], compile=True)
        for sampling, text in expected.items():
            for batch_size, plain in ((1, False), (3, False), (3, True)):
                assert answers(engine, batch_size, sampling=sampling, plain=plain) == text
    for family in (Diffusion, Eagle3):
        engine = Engine(backbone, randomised(family(backbone, 4)), TREES["tree"], compile=True)
        for sampling, text in expected.items():
            assert answers(engine, 3, sampling=sampling) == text


def test_a_row_that_ended_beyond_its_limit_is_forgotten(backbones, references, monkeypatch):
    """Compiled rounds compute it along with the last one that is served, and may not write behind the buffers."""
    backbone = tiny_backbone("llama")
    monkeypatch.setattr(backbone, "compiled", lambda: backbone.model.base_model)
    monkeypatch.setitem(mhc.decoding.batch.BUCKET, "cpu", 1)
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, references("llama"))]
    order = sorted(range(len(PROMPTS)), key=lambda number: len(PROMPTS[number]))
    short, long = PROMPTS[order[0]], PROMPTS[order[-1]]
    drafter = Scripted(backbone, texts, [len(prompt) for prompt in PROMPTS])
    within = DecodeRequest.within
    monkeypatch.setattr(
        DecodeRequest,
        "within",
        lambda request, *limits: within(request, *limits)._replace(
            max_new_tokens=2 if request.prompt == long else request.max_new_tokens
        ),
    )
    found = {}
    for compile in (False, True):
        engine = Engine(backbone, drafter, FixedTree.chain(4), compile=compile)
        answers = dict(engine.generate_ids([short, long], len(long) - len(short) + 2, 2))
        found[compile] = [answers[number].token_ids for number in (0, 1)]
    assert found[True] == found[False]


def test_a_compiled_round_gives_the_same_text():
    """torch.compile for real, on one small model: drafting, plain decoding and a change of the extent."""
    backbone = tiny_backbone("llama").lay_out()
    expected = answers(Engine(backbone), 1)
    engine = Engine(backbone, randomised(Cascade(backbone, heads=4)), TREES["tree"], compile=True)
    warmed = []
    requests = [DecodeRequest(prompt, NEW) for prompt in PROMPTS]
    pieces = list(engine.stream(requests, warming=lambda *done: warmed.append(done)))
    assert warmed and warmed[-1][0] == warmed[-1][1]
    text = [[t for number, tokens, *_ in pieces if number == prompt for t in tokens] for prompt in range(len(PROMPTS))]
    assert text == expected == answers(engine, 1, plain=True)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("right", [0, 1, 2, 99])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_known_guesses_are_accepted_as_they_deserve(backbones, references, name, right, batch_size):
    """An adversary gains nothing, an oracle everything; the text is the same."""
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, references(name))]
    drafter = Scripted(backbones(name), texts, [len(prompt) for prompt in PROMPTS], right=right)
    engine = Engine(backbones(name), drafter, FixedTree.chain(4))
    found = dict(engine.generate_ids(PROMPTS, NEW, batch_size))
    assert [found[number].token_ids for number in range(len(PROMPTS))] == references(name)
    for number, answer in found.items():
        kept = min(right, 4)
        assert answer.accepted[0] == 0  # the prefill
        assert all(count == kept for count in answer.accepted[1:-1])
        assert answer.steps == 1 + -(-(NEW - 1) // (kept + 1)), number


def test_end_of_text_inside_an_accepted_path(backbones, references):
    """The answer stops at the end token, though later guesses of the path were right as well."""
    tried = 0
    for name in ARCHITECTURES:
        for prompt, answer in zip(PROMPTS, references(name)):
            fresh = [at for at, token in enumerate(answer) if token not in answer[:at] and at % 5 in (2, 3)]
            for at in fresh:  # inside a path of five, neither its first token nor its last
                for right in (0, 99):
                    drafter = Scripted(backbones(name), [prompt + answer], [len(prompt)], right=right)
                    engine = Engine(backbones(name), drafter, FixedTree.chain(4))
                    engine.end_ids = {answer[at]}
                    for plain in (False, True):
                        _, found = next(engine.generate_ids([prompt], NEW, plain=plain))
                        assert (found.token_ids, found.finish_reason) == (answer[: at + 1], "stop")
                        tried += 1
    assert tried > 20


@pytest.mark.parametrize("new", [1, 2, 3, 4, 5, 6, 7, 11])
def test_length_limit_inside_an_accepted_path(backbones, references, new):
    backbone = backbones("qwen3")
    texts = [prompt + answer for prompt, answer in zip(PROMPTS, references("qwen3"))]
    engine = Engine(backbone, Scripted(backbone, texts, [len(p) for p in PROMPTS]), FixedTree.chain(4))
    for batch_size in (1, 3):
        assert answers(engine, batch_size, new) == [answer[:new] for answer in references("qwen3")]


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma3_text"])
def test_in_bf16_texts_part_only_at_near_ties(name):
    """Where bf16 texts differ first, the two likeliest tokens lie closer together than forwards of one and of
    several tokens do (a tolerance measured on the same text): never a share of matching tokens."""
    config = tiny_backbone(name).model.config
    torch.manual_seed(0)
    backbone = Backbone(AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval())
    engine = Engine(backbone, randomised(Cascade(backbone, heads=4)).to(torch.bfloat16), TREES["tree"])
    parted = 0
    for seed in range(8):
        prompt = torch.randint(0, VOCABULARY, (9,), generator=torch.Generator().manual_seed(seed)).tolist()
        plain, drafted = (engine.generate(prompt, 90, plain=plain).token_ids for plain in (True, False))
        first = next((at for at, pair in enumerate(zip(plain, drafted)) if pair[0] != pair[1]), None)
        if first is None:
            continue
        parted += 1
        ids = torch.tensor([prompt + plain[:first]])
        with torch.inference_mode():
            whole = backbone.unembed(backbone.features(ids).hidden)[0].float()
            cache, places = backbone.cache(1, ids.shape[1]), torch.arange(ids.shape[1])[None]
            single = []
            for at in range(ids.shape[1]):
                logits, _ = backbone.decode(ids[:, at : at + 1], places[:, at : at + 1], cache, None)
                cache.advance([1])
                single.append(logits[0, 0].float())
        tolerance = (whole - torch.stack(single)).abs().max()
        likeliest = whole[-1].topk(2)
        assert set(likeliest.indices.tolist()) == {plain[first], drafted[first]}
        assert likeliest.values[0] - likeliest.values[1] <= 2 * tolerance
    print(f"{name}: {parted} of 8 texts parted")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("plain", [True, False])
def test_context_limit_ends_the_answer(backbones, plain, family):
    backbone = backbones("llama")
    prompt = [token % VOCABULARY for token in range(backbone.context - 3)]
    engine = Engine(backbone, randomised(family(backbone, 4)))
    answer = engine.generate(prompt, max_new_tokens=50, plain=plain)
    assert answer.token_ids == reference(backbone, prompt, 3)
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_cache_after_commit_is_a_plain_prefill(backbones, monkeypatch, name):
    """Keys and values of committed positions equal those of reading the same text at once (1e-5)."""
    backbone, made = backbones(name), []
    build = backbone.cache
    monkeypatch.setattr(TreeCache, "clear", lambda cache, row: None)  # the finished row is looked at
    monkeypatch.setattr(backbone, "cache", lambda *size: made.append(build(*size)) or made[-1])
    engine = Engine(backbone, randomised(Cascade(backbone, heads=4)), TREES["tree"])
    (_, answer), *_ = engine.generate_ids(PROMPTS[1:2], NEW)
    cache, whole = made[0], build(1, 64)
    length = cache.lengths[0]
    ids = torch.tensor([(PROMPTS[1] + answer.token_ids)[:length]])
    with torch.inference_mode():
        backbone.decode(ids, torch.arange(length)[None], whole, None)
    torch.testing.assert_close(cache.buffer[..., :length, :], whole.buffer[..., :length, :], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "gemma3_text"])
def test_memory_is_what_the_formula_says(backbones, name):
    """2 * layers * rows * key/value heads * capacity * head width * bytes, once and for all: decoding adds nothing."""
    backbone = backbones(name)
    config = backbone.model.config
    heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    engine = Engine(backbone, Cascade(backbone, heads=4), TREES["tree"])
    decoder = engine.speculative_decoder(3, max(map(len, PROMPTS)) + NEW)
    cache, capacity = decoder.batch.cache, max(map(len, PROMPTS)) + NEW + engine.tree.nodes
    assert cache.buffer.nbytes == 2 * config.num_hidden_layers * 3 * heads * capacity * width * 4
    place = cache.buffer.data_ptr()
    decoder.begin([DecodeRequest(PROMPTS[0], NEW)])
    decoder.run(decoder.speculative_step)
    assert cache.buffer.data_ptr() == place
    assert all(layer.keys.untyped_storage().data_ptr() == place for layer in cache.layers)


def test_pieces_stream_in_order(backbones, references):
    """Streaming yields every token once, and rows of a batch report their own prompt."""
    engine = Engine(backbones("llama"), Cascade(backbones("llama"), heads=4), TREES["tree"])
    streamed = [[] for _ in PROMPTS]
    finished = []
    for number, tokens, reason, *_ in engine.stream([DecodeRequest(prompt, NEW) for prompt in PROMPTS], batch_size=2):
        assert number not in finished
        streamed[number] += tokens
        finished += [number] if reason else []
    assert streamed == references("llama")
    assert sorted(finished) == list(range(len(PROMPTS)))


def test_bad_requests_are_named(backbones):
    engine = Engine(backbones("llama"), Medusa(backbones("llama"), heads=2), FixedTree.chain(2))
    with pytest.raises(UserError, match="empty"):
        list(engine.generate_ids([[]], 5))
    with pytest.raises(UserError, match="200 tokens"):
        list(engine.generate_ids([[1] * 200], 5))
    with pytest.raises(UserError, match="at least 1"):
        list(engine.generate_ids([[1]], 0))
    with pytest.raises(UserError, match="3 deep"):
        Engine(backbones("llama"), Medusa(backbones("llama"), heads=2), FixedTree.chain(3))
