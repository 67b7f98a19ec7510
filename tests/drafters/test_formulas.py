"""Formulas of the papers, against small references written here from their definitions."""

import math

import pytest
import torch
from torch import nn

from mhc.drafters import Cascade, Diffusion, Eagle3, eagle3, schedules
from mhc.drafters.cascade import SpeculatorCell, speculator_scale
from mhc.drafters.eagle3 import default_taps
from mhc.estimate.fake_step import AllocationTracker
from mhc.training.losses import Teacher, chunked_loss

# ---- masked diffusion: MDLM (arXiv 2406.07524), discrete flow matching (2407.15595)


@pytest.mark.parametrize("schedule", schedules.COEFFICIENTS)
def test_weight_is_minus_alphas_slope_over_what_is_masked(schedule):
    t = torch.linspace(0.01, 1, 100, dtype=torch.float64, requires_grad=True)
    alpha = schedules.alpha(schedule, t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    torch.testing.assert_close(schedules.weight(schedule, t), -slope / (1 - alpha))
    ends = schedules.alpha(schedule, torch.tensor([0.0, 1.0], dtype=torch.float64))
    torch.testing.assert_close(ends, torch.tensor([1.0, 0.0], dtype=torch.float64), atol=1e-12, rtol=0)
    assert (alpha.diff() < 0).all()


def test_the_kappa_schedule_is_the_cubic_of_the_paper_and_linear_is_its_special_case():
    t = torch.linspace(0.05, 1, 20, dtype=torch.float64)
    s = 1 - t
    kappa, slope = 2 * s**3 - 3 * s**2 + 2 * s, 6 * s**2 - 6 * s + 2  # a = b = 1
    torch.testing.assert_close(schedules.alpha("kappa", t), kappa)
    torch.testing.assert_close(schedules.weight("kappa", t), slope / (1 - kappa))
    torch.testing.assert_close(schedules.weight("linear", t), 1 / t)


@pytest.mark.parametrize("schedule", schedules.COEFFICIENTS)
def test_the_mean_of_the_weighted_loss_is_the_integral(backbones, schedule):
    """The bound is int_0^1 w(t) E[sum of the masked slots' losses] dt. For a loss that counts masked slots it is the sum
    of int w(t) (1 - alpha(t)) dt over slots; for one that looks at how many are masked, a numeric integral."""
    torch.manual_seed(0)
    slots, eps = 4, Diffusion.EARLIEST
    drafter = Diffusion(backbones("llama"), slots, schedule=schedule, weighting="scheduler")
    masked, weight = drafter.corrupt(400_000, torch.device("cpu"))
    times = torch.linspace(eps, 1, 200_001, dtype=torch.float64)
    share = 1 - schedules.alpha(schedule, times)
    width = 1 - eps
    for loss_of_count in (lambda n: n, lambda n: n**2, lambda n: n * (slots - n)):
        expected_loss = sum(  # the binomial distribution of how many slots are masked at each time
            math.comb(slots, n) * share**n * (1 - share) ** (slots - n) * loss_of_count(n) for n in range(slots + 1)
        )
        integral = torch.trapezoid(schedules.weight(schedule, times) * expected_loss, times) / width
        drawn = weight.double() * loss_of_count(masked.sum(dim=1).double())
        error = float(drawn.std() / len(drawn) ** 0.5)
        assert float(drawn.mean()) == pytest.approx(float(integral), abs=4 * error + 1e-3)


def test_only_masked_slots_are_learned_and_revealed_tokens_are_seen(backbones):
    torch.manual_seed(0)
    backbone = backbones("llama")
    drafter = Diffusion(backbone, 4)
    nn.init.normal_(drafter.out.weight, std=0.3)
    ids = torch.randint(0, backbone.vocabulary_size, (3, 12))
    anchors = torch.tensor([0, 1, 2, 2]), torch.tensor([1, 4, 3, 10])
    features = backbone.features(ids)
    drafter.train()
    weights = torch.stack([guess.weight for guess in drafter(features, ids, anchors)], dim=1)
    assert set(weights.unique().tolist()) <= {0.0, 1.0}
    drafter.eval()
    assert all(guess.weight is None for guess in drafter(features, ids, anchors))
    hidden, known = torch.randn(1, backbone.width), torch.tensor([3])
    masked = torch.tensor([[False, True, True, True]])
    one, other = (drafter.denoise(hidden, known, torch.tensor([[a, 0, 0, 0]]), masked) for a in (5, 6))
    assert (one[:, 1:] != other[:, 1:]).any()  # a revealed token tells the others something
    same, again = (drafter.denoise(hidden, known, torch.tensor([[a, 7, 7, 7]]), masked | True) for a in (5, 6))
    assert torch.equal(same, again)  # a masked one does not


def test_several_passes_reveal_the_surest_first(backbones):
    """Two passes over four slots, against a loop that follows the definition one slot at a time."""
    torch.manual_seed(0)
    backbone = backbones("llama")
    drafter = Diffusion(backbone, 4, passes=2).eval()
    nn.init.normal_(drafter.out.weight, std=0.5)
    hidden, known = torch.randn(1, backbone.width), torch.tensor([3])
    with torch.no_grad():
        found = drafter.logits(drafter.draft(hidden, known))[0]
        blank = torch.full((1, 4), 3)
        first = torch.stack(
            [drafter.unembed(k, drafter.denoise(hidden, known, blank, blank > 0)[:, k])[0] for k in range(4)]
        )
        sure = first.softmax(dim=1).max(dim=1).values.argsort(descending=True)[:2].tolist()
        block, masked = blank.clone(), torch.ones(1, 4, dtype=torch.bool)
        for slot in sure:
            block[0, slot], masked[0, slot] = first[slot].argmax(), False
        second = drafter.denoise(hidden, known, block, masked)
        for slot in range(4):
            expected = first[slot] if slot in sure else drafter.unembed(slot, second[:, slot])[0]
            torch.testing.assert_close(found[slot], expected, atol=1e-5, rtol=1e-5)


# ---- EAGLE-3: arXiv 2503.01840


def straightforward_eagle3(drafter: Eagle3, features, ids, row: int, t: int) -> list[torch.Tensor]:
    """The logits of K guesses behind position t, one token at a time over a growing list of keys: what the paper's
    drafting does with one sequence, with no mask at all."""
    layer, attention = drafter.midlayer, drafter.midlayer.self_attn
    width = drafter.backbone.width // attention.heads

    def turned(vector, position):  # (D,) -> (H,E), rotated by its position as complex numbers
        halves = vector.view(attention.heads, 2, width // 2)
        number = torch.complex(halves[:, 0], halves[:, 1])
        angle = position * 10_000.0 ** (-torch.arange(width // 2) / (width // 2))
        number = number * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([number.real, number.imag], dim=1)

    def run(token, state, position, keys, values):
        joined = layer.join(drafter.backbone.embed(token), state)
        keys.append(turned(attention.k_proj(joined), position))
        values.append(attention.v_proj(joined).view(attention.heads, width))
        query = turned(attention.q_proj(joined), position)
        scores = torch.einsum("he,she->hs", query, torch.stack(keys)) / width**0.5
        mixed = torch.einsum("hs,she->he", scores.softmax(dim=1), torch.stack(values))
        state = state + attention.o_proj(mixed.flatten())
        return state + layer.mlp(layer.post_attention_layernorm(state))

    keys, values, output = [], [], None
    for position in range(t + 1):
        output = run(ids[row, position + 1], drafter.fc(features.taps[row, position]), position, keys, values)
    logits = [drafter.unembed(0, drafter.norm(output))]
    for step in range(1, drafter.draft_length):
        output = run(ids[row, t + 1 + step], output, t + step, keys, values)
        logits.append(drafter.unembed(step, drafter.norm(output)))
    return logits


def test_training_time_test_is_drafting_unrolled(backbones):
    """The step-diagonal mask: every anchor of a whole row sees just what drafting from there would see."""
    torch.manual_seed(0)
    backbone = backbones("llama")
    drafter = Eagle3(backbone, 7).eval()
    ids = torch.randint(0, backbone.vocabulary_size, (2, 16))
    features = backbone.features(ids, drafter.taps)
    anchors = torch.tensor([0, 0, 1]), torch.tensor([0, 6, 3])
    with torch.no_grad():
        unrolled = [drafter.unembed(k, guess.hidden) for k, guess in enumerate(drafter(features, ids, anchors))]
        for number, (row, t) in enumerate(zip(*map(torch.Tensor.tolist, anchors))):
            for step, expected in enumerate(straightforward_eagle3(drafter, features, ids, row, t)):
                torch.testing.assert_close(unrolled[step][number], expected, atol=1e-4, rtol=1e-4)


def test_training_time_tests_attention_is_a_causal_block_and_diagonals(backbones):
    """The weights that step k gives, against the paper's mask written out over all keys of all steps."""
    torch.manual_seed(0)
    drafter = Eagle3(backbones("llama"), 4, context=6)
    steps, length = 4, 9
    keys = [torch.randn(1, 2, length, 8) for _ in range(steps)]
    values = [torch.randn(1, 2, length, 8) for _ in range(steps)]
    query = torch.randn(1, 2, length, 8)
    for step in range(steps):
        mask = torch.zeros(length, (step + 1) * length, dtype=torch.bool)
        for t in range(length):
            for s in range(t + 1):
                mask[t, s] = t + step - s < 6  # as far back as the context reaches
            for later in range(1, step + 1):
                mask[t, later * length + t] = True
        expected = nn.functional.scaled_dot_product_attention(
            query, torch.cat(keys[: step + 1], dim=2), torch.cat(values[: step + 1], dim=2), attn_mask=mask
        )
        found = drafter.unrolled_attention(query, keys[: step + 1], values[: step + 1])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_draft_vocabulary_round_trip(backbones):
    """d2t[j] = id - j, t2d marks the same ids, the most frequent ones; logits of others are -inf."""
    backbone = backbones("llama")
    frequencies = torch.arange(backbone.vocabulary_size)
    frequencies[5] = 1000
    drafter = Eagle3(backbone, 3, draft_vocabulary=10)
    told = drafter.choose_vocabulary(frequencies)
    chosen = [5, *range(backbone.vocabulary_size - 9, backbone.vocabulary_size)]
    assert (drafter.d2t + torch.arange(10)).tolist() == chosen == drafter.t2d.nonzero()[:, 0].tolist()
    assert drafter.vocabulary.tolist() == chosen and drafter.d2t.dtype == torch.int64
    covered = sum(int(frequencies[token]) for token in chosen) / int(frequencies.sum())
    assert f"{covered:.2%}" in told
    logits = drafter.unembed(0, torch.randn(2, 3, backbone.width))
    assert logits.shape == (2, 3, backbone.vocabulary_size)
    assert logits.isfinite()[0, 0].nonzero()[:, 0].tolist() == chosen
    assert torch.equal(drafter.lm_head.weight, backbone.unembedding[chosen])
    assert Eagle3(backbone, 3).vocabulary is None


@pytest.mark.parametrize(
    "layers, taps", [(32, (2, 16, 29)), (28, (2, 14, 25)), (8, (2, 4, 5)), (6, (1, 3, 5)), (2, (0, 1, 1))]
)
def test_default_taps_do_not_collide_where_they_need_not(layers, taps):
    assert default_taps(layers) == taps


# ---- MLP speculator: arXiv 2404.19124


@pytest.mark.parametrize("heads", [1, 3, 5])
def test_speculator_scaling_keeps_half_of_the_hidden_state(heads):
    """w_s^2n = 1/2: after n steps the first state still counts half in the variance; w_e fills up with tokens whose rows
    have scale 1/sqrt(inner)."""
    inner = 64
    state = 0.5 ** (1 / (2 * heads))
    embedding = math.sqrt((1 - state**2) * inner / 2)
    assert state ** (2 * heads) == pytest.approx(0.5)
    assert speculator_scale(heads, inner) == pytest.approx(embedding / state)


def test_speculator_cell_is_its_formula():
    torch.manual_seed(0)
    cell = SpeculatorCell(16, heads=3)
    nn.init.normal_(cell.ln.weight)
    nn.init.normal_(cell.ln.bias)
    before, token = torch.randn(5, 16), torch.randn(5, 16)
    w_s = 0.5 ** (1 / 6)
    w_e = math.sqrt((1 - w_s**2) * 16 / 2)
    mixed = before @ cell.proj.weight.T + w_e / w_s * (token @ cell.emb.weight.T)
    normed = (mixed - mixed.mean(dim=1, keepdim=True)) / (mixed.var(dim=1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    normed = normed * cell.ln.weight + cell.ln.bias
    gelu = normed * 0.5 * (1 + torch.erf(normed / 2**0.5))
    _, state = cell(before, token)
    torch.testing.assert_close(state, gelu, atol=1e-5, rtol=1e-5)


def test_roll_out_follows_its_schedule(backbones):
    """Nothing is rolled out at the start of training; all anchors at the end, where rollout is 1: then the heads are fed
    their own guesses and no true token but the known one reaches them."""
    torch.manual_seed(0)
    backbone = backbones("llama")
    drafter = Cascade(backbone, 3, rollout=1.0).train()
    for parameter in drafter.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids = torch.randint(0, backbone.vocabulary_size, (1, 8))
    other = ids.clone()
    other[0, 4:] = (other[0, 4:] + 1) % backbone.vocabulary_size  # behind the known next token of t = 2
    features, anchors = backbone.features(ids), (torch.tensor([0]), torch.tensor([2]))
    for progress, seen in ((0.0, True), (1.0, False)):
        drafter.progress = progress
        with torch.no_grad():
            one, two = ([g.hidden for g in drafter(features, text, anchors)] for text in (ids, other))
        assert torch.equal(one[0], two[0])
        assert bool((one[1] != two[1]).any()) == seen


def eagle3_step(drafter: Eagle3, features, ids) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """What each head says at every position, and the gradients of a function of it."""
    drafter.zero_grad()
    every = tuple(torch.ones_like(ids).nonzero(as_tuple=True))
    found = [guess.hidden for guess in drafter(features, ids, every)]
    sum((head + 1) * hidden.sin().sum() for head, hidden in enumerate(found)).backward()
    return found, {name: p.grad.clone() for name, p in drafter.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("context", [9, 2048])
@pytest.mark.parametrize("block, checkpointing", [(7, False), (7, True), (256, True)])
def test_eagle3_in_blocks_and_with_checkpointing_is_the_same(backbones, monkeypatch, block, checkpointing, context):
    torch.manual_seed(0)
    backbone = backbones("llama")
    drafter = Eagle3(backbone, 4, context=context)
    ids = torch.randint(0, backbone.vocabulary_size, (3, 40))
    features = backbone.features(ids, drafter.taps)
    monkeypatch.setattr(eagle3, "BLOCK", 1000)
    expected = eagle3_step(drafter, features, ids)
    monkeypatch.setattr(eagle3, "BLOCK", block)
    drafter.checkpointing = checkpointing
    tolerance = 0 if block > 40 else 1e-5  # other blocks add in another order
    heads, gradients = eagle3_step(drafter, features, ids)
    pairs = [*zip(heads, expected[0]), *((gradients[name], one) for name, one in expected[1].items())]
    assert len(gradients) == len(expected[1])
    assert all((ours - theirs).abs().max() <= tolerance * theirs.abs().max() for ours, theirs in pairs)


def test_eagle3_never_holds_all_weights_of_attention_and_less_with_checkpointing(backbones):
    """4 steps over 1,024 positions: (B,H,T,T) of one step are 16 MiB, held for all of them would be 64."""
    backbone = backbones("llama")
    ids = torch.zeros(1, 1024, dtype=torch.long)
    most = []
    for checkpointing in (False, True):
        drafter = Eagle3(backbone, 4, checkpointing=checkpointing)
        features = backbone.features(ids, drafter.taps)
        with AllocationTracker([*backbone.parameters(), *drafter.parameters(), *features, ids]) as held:
            eagle3_step(drafter, features, ids)
        most.append(held.peak)
    assert 0.85 * most[0] > most[1] and most[0] < 32 << 20


# ---- losses: EAGLE-3's soft targets, LK (arXiv 2602.23881)


def a_head(vocabulary: int = 23, anchors: int = 9):
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    hidden = torch.randn(anchors, 6, **double, requires_grad=True)
    weight = torch.randn(vocabulary, 6, **double, requires_grad=True)
    taught = Teacher(torch.randn(anchors, 6, **double), torch.randn(vocabulary, 6, **double))
    return hidden, weight, taught, torch.randint(0, vocabulary, (anchors,))


@pytest.mark.parametrize("objective", ["ce", "kl", "lk"])
@pytest.mark.parametrize("finish", [None, lambda product: 2 * torch.tanh(product / 2), lambda product: product / 8 + 1])
def test_gradients_by_finite_differences(objective, finish, monkeypatch):
    monkeypatch.setattr("mhc.training.losses.CHUNK", 4)
    hidden, weight, taught, labels = a_head()
    taught.finish = finish
    counts = torch.rand(len(labels), dtype=torch.float64)

    def loss(hidden, weight):
        return chunked_loss(hidden, (weight,), labels, objective, counts, taught, finish=finish).loss

    loss(hidden, weight).backward()
    for leaf, other in ((hidden, weight), (weight, hidden)):
        order = (lambda a, b: (a, b)) if leaf is hidden else (lambda a, b: (b, a))
        for place in ((0, 0), (3, 2), (8, 5)):
            step = torch.zeros_like(leaf)
            step[place] = 1e-5
            with torch.no_grad():
                slope = (loss(*order(leaf + step, other)) - loss(*order(leaf - step, other))) / 2e-5
            assert float(leaf.grad[place]) == pytest.approx(float(slope), abs=1e-6), (objective, place)


def test_losses_are_their_definitions():
    hidden, weight, taught, labels = a_head()
    q = (hidden @ weight.T).softmax(dim=1).detach()
    for temperature in (1.0, 2.0):
        taught.temperature = temperature
        p = (taught.hidden @ taught.weight.T / temperature).softmax(dim=1)
        kept = torch.minimum(p, q).sum(dim=1)
        expected = {"ce": -q.log().gather(1, labels[:, None]).mean(), "kl": (p * (p / q).log()).sum(dim=1).mean()}
        expected["lk"] = -kept.log().mean()
        for objective, value in expected.items():
            found = chunked_loss(hidden, (weight,), labels, objective, teacher=taught)
            assert found.loss.item() == pytest.approx(value.item(), abs=1e-5), objective
            torch.testing.assert_close(found.overlap, kept.detach())


def test_soft_targets_over_a_draft_vocabulary():
    """EAGLE-3: mean(-m * sum_v p_v log q_v), p renormalised over the draft's tokens, m where the backbone's favourite is
    one of them; the same gradient, and less by p's entropy."""
    hidden, weight, taught, labels = a_head()
    ids = torch.tensor([0, 1, 2, 3, 5, 8, 13, 21])
    draft = weight[ids].detach().requires_grad_()
    whole = taught.hidden @ taught.weight.T
    m = torch.isin(whole.argmax(dim=1), ids)
    assert 0 < m.sum() < len(m)
    p = whole[:, ids].softmax(dim=1)
    log_q = (hidden @ draft.T).log_softmax(dim=1)
    cross = (-(p * log_q).sum(dim=1) * m).mean()
    entropy = (-(p * p.log()).sum(dim=1) * m).mean()
    wanted = torch.autograd.grad(cross, (hidden, draft))
    found = chunked_loss(hidden, (draft,), labels, "kl", teacher=taught, vocabulary=ids)
    assert found.loss.item() == pytest.approx((cross - entropy).item(), abs=1e-5)
    torch.testing.assert_close(torch.autograd.grad(found.loss, (hidden, draft)), wanted, atol=1e-5, rtol=1e-5)
    outside = ~torch.isin(labels, ids)
    assert outside.any() and (found.rank[outside] == len(ids)).all()
    text = chunked_loss(hidden, (draft,), labels, "ce", vocabulary=ids)
    at = torch.searchsorted(ids, labels[~outside])
    expected = -log_q[~outside].gather(1, at[:, None]).sum() / len(labels)
    assert text.loss.item() == pytest.approx(expected.item(), abs=1e-5)


def test_side_by_side_matrices_are_one():
    hidden, weight, taught, labels = a_head()
    whole = chunked_loss(hidden, (weight,), labels, "kl", teacher=taught)
    wanted = torch.autograd.grad(whole.loss, (hidden, weight))
    left, right = (part.detach().clone() for part in weight.split([4, 2], dim=1))
    right.requires_grad_()
    parts = chunked_loss(hidden, (left, right), labels, "kl", teacher=taught)
    assert parts.loss.item() == pytest.approx(whole.loss.item(), abs=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(parts.loss, (hidden, right)), (wanted[0], wanted[1][:, 4:]), atol=1e-6, rtol=1e-6
    )
