"""The chunked cross-entropy against PyTorch's own, and the anchors of the heads."""

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

import mhc.training.losses
from mhc.estimate.fake_step import AllocationTracker
from mhc.training.draft_module import find_anchors
from mhc.training.losses import Teacher, chunked_loss


@pytest.mark.parametrize("finish", [None, lambda product: 3 * torch.tanh(product / 3), lambda product: product / 8 + 1])
@pytest.mark.parametrize("count", [1, 7, 33])
def test_equals_the_straightforward_loss(monkeypatch, count, finish):
    monkeypatch.setattr(mhc.training.losses, "CHUNK", 8)
    torch.manual_seed(0)
    hidden = torch.randn(count, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (count,))
    found = chunked_loss(hidden, (weight,), labels, finish=finish)
    (2 * found.loss).backward()
    chunked = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    logits = logits if finish is None else finish(logits)
    expected = cross_entropy(logits, labels)
    (2 * expected).backward()
    assert abs(found.loss - expected) < 1e-5
    torch.testing.assert_close(chunked, (hidden.grad, weight.grad), atol=1e-5, rtol=1e-5)
    order = logits.argsort(dim=1, descending=True)
    assert found.rank.tolist() == [row.tolist().index(label) for row, label in zip(order, labels)]


def a_head(trained: bool, count: int = 1300, width: int = 64, vocabulary: int = 2000):
    """Hidden states over more than one chunk, an unembedding and labels; teacher states."""
    torch.manual_seed(0)
    hidden = torch.randn(count, width, requires_grad=True)
    weight = (torch.randn(vocabulary, width) * width**-0.5).requires_grad_(trained)
    return hidden, weight, torch.randint(0, vocabulary, (count,)), torch.randn(count, width)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("objective", ["ce", "kl"])
def test_gradients_are_the_straightforward_ones_in_fp32(objective, trained):
    hidden, weight, labels, states = a_head(trained)
    frozen = torch.randn(2000, 64) * 64**-0.5
    teacher = Teacher(states, frozen) if objective == "kl" else None
    found = chunked_loss(hidden, (weight,), labels, objective, teacher=teacher)
    logits = hidden @ weight.T
    if objective == "ce":
        expected = cross_entropy(logits, labels)
    else:
        p = (states @ frozen.T).softmax(dim=-1)
        expected = kl_div(logits.log_softmax(dim=-1), p, reduction="batchmean")
    assert abs(found.loss - expected) < 1e-5
    leaves = [hidden, weight] if trained else [hidden]
    for ours, theirs in zip(torch.autograd.grad(found.loss, leaves), torch.autograd.grad(expected, leaves)):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("objective", ["ce", "kl", "lk"])
def test_the_loss_in_bf16_is_fp32s(objective, trained):
    """Products under autocast; of one loss over the other less than a thousandth is missing."""
    hidden, weight, labels, states = a_head(trained)
    teacher = None if objective == "ce" else Teacher(states, torch.randn(2000, 64) * 64**-0.5)
    exact = chunked_loss(hidden, (weight,), labels, objective, teacher=teacher).loss
    with torch.autocast("cpu", torch.bfloat16):
        rough = chunked_loss(hidden, (weight,), labels, objective, teacher=teacher).loss
    assert rough.dtype == torch.float32 and abs(rough - exact) < 1e-3 * exact.abs()
    (ours,), (theirs,) = (torch.autograd.grad(loss, [hidden]) for loss in (rough, exact))
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), dim=0) > 0.999


@pytest.mark.parametrize("trained", [False, True])
def test_logits_of_all_positions_never_exist_at_once(trained):
    """8,192 anchors over 2,000 tokens: their logits are 62.5 MiB; 4 chunks' worth and the gradients are held."""
    hidden, weight, labels, _ = a_head(trained, count=8192, width=16)
    with AllocationTracker([hidden, weight, labels]) as held:
        chunked_loss(hidden, (weight,), labels).loss.backward()
    chunk = mhc.training.losses.CHUNK * 2000 * 4
    assert held.peak < 4 * chunk + 4 * (hidden.nbytes + weight.nbytes) < 0.35 * 8192 * 2000 * 4


def test_nothing_supervised_is_no_loss():
    found = chunked_loss(torch.zeros(0, 4), (torch.zeros(9, 4),), torch.zeros(0, dtype=torch.long))
    assert found.loss == 0 and len(found.rank) == 0


def test_anchors_are_where_the_next_two_tokens_are_supervised():
    #                      t=0  1  2  3  4  5  6
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 1]]).bool()
    row, position = find_anchors(mask)
    assert (row.tolist(), position.tolist()) == ([0, 0], [1, 2])
