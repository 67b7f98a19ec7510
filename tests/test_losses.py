"""The chunked cross-entropy against PyTorch's own, and the anchors of the heads."""

import pytest
import torch
from torch.nn.functional import cross_entropy

import mhc.losses
from mhc.losses import chunked_loss
from mhc.module import find_anchors


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("count", [1, 7, 33])
def test_equals_the_straightforward_loss(monkeypatch, count, softcap):
    monkeypatch.setattr(mhc.losses, "CHUNK", 8)
    torch.manual_seed(0)
    hidden = torch.randn(count, 16, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(50, 16, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 50, (count,))
    found = chunked_loss(hidden, (weight,), labels, softcap=softcap)
    (2 * found.loss).backward()
    chunked = hidden.grad.clone(), weight.grad.clone()
    hidden.grad = weight.grad = None
    logits = hidden @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    expected = cross_entropy(logits, labels)
    (2 * expected).backward()
    assert abs(found.loss - expected) < 1e-5
    torch.testing.assert_close(chunked, (hidden.grad, weight.grad), atol=1e-5, rtol=1e-5)
    order = logits.argsort(dim=1, descending=True)
    assert found.rank.tolist() == [row.tolist().index(label) for row, label in zip(order, labels)]


def test_nothing_supervised_is_no_loss():
    found = chunked_loss(torch.zeros(0, 4), (torch.zeros(9, 4),), torch.zeros(0, dtype=torch.long))
    assert found.loss == 0 and len(found.rank) == 0


def test_anchors_are_where_the_next_two_tokens_are_supervised():
    #                      t=0  1  2  3  4  5  6
    mask = torch.tensor([[0, 0, 1, 1, 1, 0, 1]]).bool()
    row, position = find_anchors(mask)
    assert (row.tolist(), position.tolist()) == ([0, 0], [1, 2])
