"""Sampling: the noise is Gumbel's, what is drawn follows the softmax, and no drafter or neighbour changes it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc.drafters import Cascade
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampler, Sampling, gumbel
from mhc.trees.shapes import DynamicTree, FixedTree
from tests.helpers.backbones import tiny_backbone
from tests.helpers.drafters import randomised

INFINITY = float("inf")
WHOLE = 2**64
TREES = {
    "chain": FixedTree.chain(4),
    "tree": FixedTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 0, 0, 0]]),
    "dynamic": DynamicTree(width=3, depth=4, budget=10),
}


def sampler_of(rows: list[Sampling], vocabulary: int) -> Sampler:
    return Sampler.of(rows, vocabulary, torch.device("cpu"))


def noise(seeds: list[int], positions: list[list[int]], vocabulary: int) -> torch.Tensor:
    return gumbel(torch.tensor(seeds), torch.tensor(positions), vocabulary)


# ---- the noise


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=5),
    st.lists(st.integers(0, 200_000), min_size=1, max_size=9),
    st.integers(1, 70),
)
def test_noise_hangs_on_seed_position_and_token_alone(seeds, positions, vocabulary):
    """Bit for bit the same, whatever rows, positions and tokens it is computed together with."""
    together = noise(seeds, [positions] * len(seeds), vocabulary)
    for row, seed in enumerate(seeds):
        for column, position in enumerate(positions):
            alone = noise([seed], [[position]], vocabulary + 3)
            assert torch.equal(together[row, column], alone[0, 0, :vocabulary])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 300_000))
def test_noise_is_splitmix_in_unbounded_integers(seed, position, token):
    """The wrapping int64 arithmetic is SplitMix64's arithmetic modulo 2**64: seeds keep their texts."""

    def mix(state: int) -> int:
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % WHOLE
        state = (state ^ (state >> 27)) * 0x94D049BB133111EB % WHOLE
        return state ^ (state >> 31)

    golden = 0x9E3779B97F4A7C15
    key = mix((mix((seed * golden + golden) % WHOLE) + position * 0xD1B54A32D192ED03) % WHOLE)
    bits = mix((key + (token + 1) * golden) % WHOLE) % 2**32
    uniform = min(torch.tensor(float(bits)).add(0.5).item() / 2**32, 1 - 2**-24)
    found = gumbel(torch.tensor([seed]), torch.tensor([[position]]), token + 1)[0, 0, token].item()
    assert found == pytest.approx(-math.log(-math.log1p(-uniform)), abs=1e-5)


def test_noise_differs_between_seeds_positions_and_tokens():
    """Of 20,000 values hardly two agree, as rounding to fp32 makes them."""
    values = noise(list(range(8)), [list(range(50))] * 8, 50)
    for dimension in range(3):
        assert not (values.diff(dim=dimension) == 0).any()
    assert len(values.unique()) >= values.numel() - 40
    large = noise([2**63 - 1, 2**63 - 2, 2**40, 0], [[0]] * 4, 50)
    assert len(large.unique()) == large.numel()


def kolmogorov_smirnov(values: torch.Tensor) -> float:
    """The p-value of values being a sample of Gumbel's distribution, exp(-exp(-x))."""
    ordered = values.flatten().double().sort().values
    count = len(ordered)
    below = (-(-ordered).exp()).exp()
    steps = torch.arange(count + 1, dtype=torch.double) / count
    distance = torch.maximum((below - steps[:-1]).max(), (steps[1:] - below).max()).item()
    return min(1.0, 2 * math.exp(-2 * count * distance**2))


def test_noise_is_gumbel():
    """A million values: finite, mean and variance right, and by Kolmogorov and Smirnov Gumbel's; others are told."""
    values = noise(list(range(10)), [list(range(1000))] * 10, 100)
    assert torch.isfinite(values).all()
    assert values.dtype == torch.float and values.min() > -2.9 and values.max() < 22.9
    assert values.double().mean().item() == pytest.approx(0.5772, abs=0.005)
    assert values.double().var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    assert kolmogorov_smirnov(values) > 1e-3
    normal = torch.randn(values.numel(), generator=torch.Generator().manual_seed(0))
    assert kolmogorov_smirnov(normal * math.pi / 6**0.5 + 0.5772) < 1e-9
    assert kolmogorov_smirnov(values + 0.01) < 1e-9


def test_noise_is_finite_at_the_ends_of_its_range(monkeypatch):
    """Also where all 32 bits are 0 and where all are 1."""
    for bits, expected in ((0, 22.87), (-1, -2.81)):
        monkeypatch.setattr("mhc.sampling._mix", lambda state, bits=bits: torch.full_like(state, bits))
        found = noise([1], [[1]], 3)
        torch.testing.assert_close(found, torch.full((1, 1, 3), expected), atol=0.01, rtol=0)


@pytest.mark.parametrize("neighbour", ["position", "seed", "token", "seed and position"])
def test_neighbours_are_not_correlated(neighbour):
    """|r| < 0.004 over 1e6 values; r of independent ones has a standard deviation of 0.001."""
    seed, position, token = "seed" in neighbour, "position" in neighbour, "token" in neighbour
    seeds, positions = torch.arange(100), torch.arange(100).expand(100, -1)
    first = gumbel(seeds, positions, 101)[..., :100]
    second = gumbel(seeds + seed, positions + position, 101)[..., token : token + 100]
    together = torch.stack([first.flatten(), second.flatten()]).double()
    assert together.shape[1] == 1_000_000
    assert abs(torch.corrcoef(together)[0, 1].item()) < 0.004
    assert torch.corrcoef(torch.stack([together[0], together[1] + 0.01 * together[0]]))[0, 1] > 0.006  # would be seen


# ---- top-k and top-p


def kept_tokens(logits: list[float], row: Sampling) -> set[int] | None:
    """The definition: tokens that may be drawn; None where so close to the border that rounding decides."""
    ranked = sorted(range(len(logits)), key=lambda token: -logits[token])
    ranked = ranked[: row.top_k or len(logits)]
    weights = [math.exp((logits[token] - logits[ranked[0]]) / row.temperature) for token in ranked]
    kept, before = [], 0.0
    for token, weight in zip(ranked, weights):
        if kept and row.top_p < 1:
            if abs(before - row.top_p) < 1e-5:
                return None
            if before >= row.top_p:
                break
        kept.append(token)
        before += weight / sum(weights)
    return {token for token, logit in enumerate(logits) if logit >= logits[kept[-1]]}  # ties at the border stay


@st.composite
def restrictions(draw):
    """Logits (rows, nodes, vocabulary), with ties and impossible tokens among them, and settings of each row."""
    rows, nodes, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 12))
    finite = st.floats(-15, 15, width=32) | st.integers(-2, 2).map(float)
    one = st.lists(finite | st.just(-INFINITY), min_size=vocabulary, max_size=vocabulary)
    one = one.filter(lambda logits: max(logits) > -INFINITY)
    logits = draw(st.lists(st.lists(one, min_size=nodes, max_size=nodes), min_size=rows, max_size=rows))
    row = st.builds(
        Sampling,
        temperature=st.sampled_from([0.3, 0.7, 1.0, 1.3, 3.0]),
        top_k=st.integers(0, vocabulary + 2),
        top_p=st.just(1.0) | st.floats(0.01, 1.0),
    )
    return logits, draw(st.lists(row, min_size=rows, max_size=rows))


@settings(max_examples=300, deadline=None)
@given(restrictions())
def test_restriction_is_its_definition(drawn):
    """Temperature, then top-k, then top-p over what is left; what stays keeps its logit, the likeliest always stays."""
    logits, rows = drawn
    found = sampler_of(rows, len(logits[0][0])).restrict(torch.tensor(logits))
    for row, sampling in enumerate(rows):
        for node, before in enumerate(logits[row]):
            after = found[row, node].tolist()
            best = max(range(len(before)), key=lambda token: before[token])
            assert after[best] == before[best]
            kept = kept_tokens(before, sampling)
            if kept is not None:
                assert after == [logit if token in kept else -INFINITY for token, logit in enumerate(before)]


def test_top_p_of_one_keeps_every_token_however_unlikely():
    """What is left out must not hang on whether a neighbour asked for top-k."""
    logits = torch.tensor([[[20.0, 0.0, 1.0, -3.0]]]).expand(2, -1, -1)
    rows = [Sampling(temperature=1.0), Sampling(temperature=1.0, top_k=2)]
    alone = sampler_of(rows[:1], 4).restrict(logits[:1])
    together = sampler_of(rows, 4).restrict(logits)
    assert alone.tolist() == [[[20.0, 0.0, 1.0, -3.0]]]
    assert together.tolist() == [*alone.tolist(), [[20.0, -INFINITY, 1.0, -INFINITY]]]


@pytest.mark.parametrize("row", [GREEDY, Sampling(temperature=0.3, seed=5), Sampling(temperature=1.0, seed=5)])
def test_candidates_of_a_row_are_the_same_alone_and_beside_others(row):
    """The order of a drafter's guesses, not just the first: a tree's branches are the runners-up."""
    torch.manual_seed(0)
    logits = (torch.randn(1, 3, 20) * 5).expand(2, -1, -1)
    depth = torch.tensor([[0, 1, 1]])
    other = Sampling(temperature=1.0, top_k=5, top_p=0.9, seed=6)
    alone = sampler_of([row], 20).for_round(7, 2).target_scores(logits[:1], depth)
    together = sampler_of([row, other], 20).for_round(7, 2).target_scores(logits, depth)
    assert together[:1].topk(4, dim=-1).indices.tolist() == alone.topk(4, dim=-1).indices.tolist()


# ---- what is drawn


def chi_square(counts: torch.Tensor, shares: torch.Tensor) -> tuple[float, int]:
    """Pearson's statistic of counts (V,) against probabilities (V,), and its degrees of freedom.

    Tokens expected less than five times are counted as one.
    """
    counts, expected = counts.double(), shares.double() * counts.sum()
    if (counts[expected == 0] > 0).any():
        return INFINITY, 1
    often = expected >= 5
    found = torch.cat([counts[often], counts[~often].sum()[None]])
    wanted = torch.cat([expected[often], expected[~often].sum()[None]])
    if wanted[-1] < 1e-9:
        found, wanted = found[:-1], wanted[:-1]
    return ((found - wanted) ** 2 / wanted).sum().item(), len(found) - 1


def tail(*statistics: tuple[float, int]) -> float:
    """The p-value of independent chi-square statistics, added up."""
    total, freedom = (torch.tensor(float(sum(part)), dtype=torch.double) for part in zip(*statistics))
    return torch.special.gammaincc(freedom / 2, total / 2).item()


def test_chi_square_tail_is_the_tabulated_one():
    assert tail((3.841, 1)) == pytest.approx(0.05, abs=1e-4)
    assert tail((10.0, 5), (8.307, 5)) == pytest.approx(0.05, abs=1e-4)


LOGITS = torch.tensor([2.0, 1.6, 1.3, 1.0, 0.8, 0.5, 0.3, 0.0, -0.4, -0.7, -1.1, -2.0])


def shares_of(logits: torch.Tensor, row: Sampling) -> torch.Tensor:
    """softmax(logits / T), renormalised over the tokens that may be drawn."""
    kept = kept_tokens(logits.tolist(), row)
    outside = torch.tensor([token not in kept for token in range(len(logits))])
    return (logits.double() / row.temperature).masked_fill(outside, -INFINITY).softmax(dim=0)


@pytest.mark.parametrize("limits", [{}, {"top_k": 5}, {"top_p": 0.8}, {"top_k": 7, "top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_draws_follow_the_softmax(temperature, limits):
    """20,000 positions of four seeds; the distribution of another temperature is told apart."""
    rows = [Sampling(temperature=temperature, seed=seed, **limits) for seed in range(4)]
    depth = torch.arange(5000)[None]
    draw = sampler_of(rows, len(LOGITS)).for_round(torch.tensor([[0], [9], [9], [50]]), 4999)
    drawn = draw.target_scores(LOGITS.expand(4, 5000, -1), depth).argmax(dim=-1)
    counts = drawn.flatten().bincount(minlength=len(LOGITS))
    assert counts.sum() == 20_000
    assert tail(chi_square(counts, shares_of(LOGITS, rows[0]))) > 1e-4
    other = Sampling(temperature=temperature * 1.2, top_k=int((counts > 0).sum()))  # of the same tokens
    assert tail(chi_square(counts, shares_of(LOGITS, other))) < 1e-6


def test_depths_of_a_tree_read_the_noise_of_their_position():
    """scores() of one depth, of depths shared by all rows and of depths of each row: the token's place decides.
    proposals() see min(1, T/2) of the same noise."""
    rows = [Sampling(temperature=0.5, seed=3), GREEDY, Sampling(temperature=2.5, seed=4)]
    starts = torch.tensor([[10], [20], [30]])
    draw, logits = sampler_of(rows, 7).for_round(starts, 3), torch.zeros(3, 4, 7)
    own = torch.tensor([[0, 1, 1, 3], [0, 1, 2, 3], [0, 2, 2, 3]])
    for depth in (2, own[:1], own):
        places = starts + 1 + (torch.full((1, 4), depth) if isinstance(depth, int) else depth)
        expected = gumbel(torch.tensor([3, 0, 4]), places, 7) * torch.tensor([0.5, 0.0, 2.5])[:, None, None]
        assert torch.equal(draw.target_scores(logits, depth), expected)
        assert torch.equal(draw.draft_scores(logits, depth), expected * torch.tensor([0.25, 1.0, 1.0])[:, None, None])


# ---- through the engine


@pytest.fixture(scope="module")
def small():
    """A backbone of 8 tokens, neither flat nor sure of any."""
    backbone = tiny_backbone("llama", vocab_size=8)
    with torch.no_grad():
        backbone.model.get_output_embeddings().weight.mul_(4)
    return backbone


def logits_after(backbone, ids: list[int]) -> torch.Tensor:
    """The backbone's logits at every position of a text, read at once without a cache: (T,V)."""
    with torch.inference_mode():
        return backbone.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].float()


def choices_by_definition(backbone, prompt: list[int], answer: list[int], row: Sampling) -> list[int]:
    """What is drawn at each place of an answer, given the text before it."""
    logits = logits_after(backbone, prompt + answer)[len(prompt) - 1 : -1]
    if not row.temperature:
        return logits.argmax(dim=-1).tolist()
    chosen = []
    for place, one in enumerate(logits, len(prompt)):
        scores = shares_of(one, row).log() + gumbel(torch.tensor([row.seed]), torch.tensor([[place]]), len(one))[0, 0]
        chosen.append(int(scores.argmax()))
    return chosen


def answers(engine: Engine, prompts: list[list[int]], new: int, batch_size: int, **options) -> list:
    found = dict(engine.generate_ids(prompts, new, batch_size, **options))
    return [found[number] for number in range(len(prompts))]


@pytest.mark.parametrize("tree", ["tree", "dynamic"])
def test_decoded_tokens_follow_the_backbone(small, tree):
    """2,000 seeds: the first token, the second given the first, and the third given both, from accepted guesses
    and from bonus tokens alike."""
    prompt, seeds = [5, 1, 3], range(2000)
    engine = Engine(small, randomised(Cascade(small, heads=4)), TREES[tree])
    sampling = [Sampling(temperature=1.0, seed=seed) for seed in seeds]
    found = answers(engine, [prompt] * len(seeds), 3, 64, sampling=sampling)
    assert sum(sum(answer.accepted) for answer in found) > 200  # guesses take part
    texts = torch.tensor([answer.token_ids for answer in found])
    for length in range(3):
        right, wrong = [], []
        for before in texts[:, :length].unique(dim=0).tolist() if length else [[]]:
            given = (texts[:, :length] == torch.tensor(before, dtype=torch.long)).all(dim=1)
            logits = logits_after(small, prompt + before)[-1]
            counts = texts[given, length].bincount(minlength=8)
            if counts.sum() < 50:
                continue
            right.append(chi_square(counts, logits.softmax(dim=0)))
            wrong.append(chi_square(counts, (logits / 2).softmax(dim=0)))
        assert right and tail(*right) > 1e-4
        assert tail(*wrong) < 1e-6


MIXED = [
    GREEDY,
    Sampling(temperature=0.7, top_k=3, seed=11),
    Sampling(temperature=1.3, top_p=0.9, seed=12),
    Sampling(temperature=1.0, seed=12),
]
MIXED_PROMPTS = [[5, 1, 3], [2] * 9, [5, 1, 3], [7, 0, 6, 1, 5, 2]]


@pytest.mark.parametrize("batch_size", [2, 4])
@pytest.mark.parametrize("tree", [None, *TREES])
def test_rows_with_settings_of_their_own_get_what_they_get_alone(small, tree, batch_size):
    """Greedy, top-k and top-p side by side; and each is what its seed and the backbone say it is."""
    engine = Engine(small) if tree is None else Engine(small, randomised(Cascade(small, heads=4)), TREES[tree])
    together = answers(engine, MIXED_PROMPTS, 12, batch_size, sampling=MIXED)
    for prompt, row, answer in zip(MIXED_PROMPTS, MIXED, together):
        assert answer.token_ids == engine.generate(prompt, 12, sampling=row).token_ids
        assert answer.token_ids == choices_by_definition(small, prompt, answer.token_ids, row)


def test_a_seed_is_a_text(small):
    engine = Engine(small, randomised(Cascade(small, heads=4)), TREES["tree"])
    texts = [tuple(engine.generate([5, 1, 3], 16, sampling=Sampling(1.0, seed=seed)).token_ids) for seed in (1, 2, 1)]
    assert texts[0] == texts[2] != texts[1]


# ---- settings that cannot be


@pytest.mark.parametrize(
    "name, value",
    [
        *[("temperature", value) for value in (-0.1, INFINITY, math.nan)],
        *[("top_p", value) for value in (0.0, -0.5, 1.01, math.nan)],
        ("top_k", -1),
        *[("seed", value) for value in (-1, 2**63)],
        *[("posterior_threshold", value) for value in (-0.1, 1.0, math.nan)],
        *[("posterior_alpha", value) for value in (0.0, -0.3, math.nan)],
    ],
)
def test_bad_settings_are_named(name, value):
    with pytest.raises(UserError, match=f"^{name} is {value}: "):
        Sampling(**({"temperature": 1.0} | {name: value}))


def test_typical_acceptance_needs_a_temperature():
    with pytest.raises(UserError, match="posterior_threshold needs a temperature"):
        Sampling(posterior_threshold=0.1)


def test_settings_at_their_limits_are_taken():
    Sampling(temperature=0.0, top_p=1.0, top_k=0, seed=0)
    Sampling(temperature=100.0, top_p=1e-6, top_k=10**6, seed=2**63 - 1, posterior_threshold=0.999)


# ---- typical acceptance

TYPICAL = Sampling(temperature=0.8, seed=3, posterior_threshold=0.1, posterior_alpha=0.3)


def typical_by_definition(logits: list[float], token: int, row: Sampling) -> tuple[bool, float]:
    """p(x) > min(threshold, alpha * exp(-entropy)), and how far p(x) is from the border."""
    weights = [math.exp((logit - max(logits)) / row.temperature) for logit in logits]
    shares = [weight / sum(weights) for weight in weights]
    entropy = -sum(share * math.log(share) for share in shares if share > 0)
    border = min(row.posterior_threshold, row.posterior_alpha * math.exp(-entropy))
    return shares[token] > border, abs(shares[token] - border)


def test_without_a_threshold_nothing_is_lossy():
    rows = [GREEDY, Sampling(temperature=1.0), Sampling(temperature=0.7, posterior_alpha=0.9)]
    sampler = sampler_of(rows, 5)
    assert not sampler.lossy
    logits, tokens = torch.zeros(3, 2, 5), torch.zeros(3, 2, dtype=torch.long)
    assert sampler.for_round(0, 1).typical(logits, tokens, torch.zeros(1, 2, dtype=torch.long)) is None
    assert sampler_of([*rows, TYPICAL], 5).lossy


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.1, 6), st.floats(0.01, 0.9), st.floats(0.05, 2.0), st.booleans())
def test_typical_acceptance_is_its_formula(seed, scale, threshold, alpha, shared):
    """Nodes of all rows by the logits at their parents; rows without a threshold, greedy ones too, keep nothing."""
    generator = torch.Generator().manual_seed(seed)
    rows = [
        Sampling(temperature=0.8, posterior_threshold=threshold, posterior_alpha=alpha),
        Sampling(temperature=1.0),
        GREEDY,
        Sampling(temperature=1.5, posterior_threshold=threshold / 2, posterior_alpha=alpha),
    ]
    logits = torch.randn(4, 5, 9, generator=generator) * scale
    tokens = torch.randint(9, (4, 5), generator=generator)
    parents = torch.tensor([[0, 0, 0, 1, 2], [0, 0, 1, 2, 3], [0, 0, 0, 0, 0], [0, 0, 1, 1, 1]])[: 1 if shared else 4]
    kept = sampler_of(rows, 9).for_round(3, 3).typical(logits, tokens, parents)
    assert kept.shape == (4, 5) and not kept[1:3].any()
    for row in (0, 3):
        for node in range(5):
            parent = parents.expand(4, -1)[row, node]
            right, margin = typical_by_definition(logits[row, parent].tolist(), int(tokens[row, node]), rows[row])
            assert margin < 1e-6 or bool(kept[row, node]) == right


@pytest.mark.parametrize("tree", TREES)
def test_typical_acceptance_keeps_guesses_that_were_not_drawn(small, tree):
    """Every token is the one drawn after the text before it or a typical one; more are accepted than by exact
    decoding, and a row beside it that did not ask for it stays exact."""
    engine = Engine(small, randomised(Cascade(small, heads=4)), TREES[tree])
    prompts = [[5, 1, 3], [2] * 9, [5, 1, 3]] * 2
    exact = [Sampling(temperature=0.8, seed=seed) for seed in range(6)]
    lossy = [Sampling(temperature=0.8, seed=seed, posterior_threshold=0.1) for seed in range(6)]
    per_step, guesses = {}, 0
    for name, rows in (("exact", exact), ("lossy", lossy)):
        found = answers(engine, prompts, 24, 3, sampling=rows)
        per_step[name] = sum(len(answer.token_ids) for answer in found) / sum(answer.steps for answer in found)
        for prompt, row, answer in zip(prompts, rows, found):
            drawn = choices_by_definition(small, prompt, answer.token_ids, row)
            logits = logits_after(small, prompt + answer.token_ids)[len(prompt) - 1 : -1].tolist()
            for token, choice, one in zip(answer.token_ids, drawn, logits):
                if token != choice:
                    guesses += 1
                    assert name == "lossy" and typical_by_definition(one, token, row)[0]
    assert guesses > 10
    assert per_step["lossy"] > per_step["exact"] > 1

    beside = answers(engine, prompts[:2], 24, 2, sampling=[lossy[0], exact[1]])[1]
    assert beside.token_ids == engine.generate(prompts[1], 24, plain=True, sampling=exact[1]).token_ids
