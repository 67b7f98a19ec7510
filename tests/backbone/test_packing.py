"""Packed rows: every conversation is read, and learned from, as if it were alone."""

import pytest
import torch

from mhc.backbone.model import Backbone
from mhc.backbone.packing import PADDING, Packing
from mhc.drafters import Cascade, Diffusion, Eagle3, Medusa
from mhc.lm.module import LMModule
from mhc.lm.tokenizer import train_tokenizer
from mhc.training.draft_module import DraftModule
from tests.helpers.backbones import ARCHITECTURES, VOCABULARY, tiny_backbone

LENGTHS = [[9, 4, 6, 5], [3, 14, 2], [24]]  # of the conversations of three rows
T = 26


def a_packed_batch(lengths=LENGTHS) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Random conversations packed into rows of T, and the same ones in rows of their own."""
    torch.manual_seed(1)
    ids, segments = torch.randint(0, VOCABULARY, (len(lengths), T)), torch.full((len(lengths), T), PADDING)
    mask = torch.rand(len(lengths), T) < 0.8
    count, longest = sum(map(len, lengths)), max(map(max, lengths))
    alone = {
        "ids": torch.zeros(count, longest, dtype=torch.long),
        "mask": torch.zeros(count, longest, dtype=torch.bool),
    }
    number = 0
    for row, sizes in enumerate(lengths):
        at = 0
        for segment, size in enumerate(sizes):
            here = slice(at, at + size)
            segments[row, here] = segment
            alone["ids"][number, :size], alone["mask"][number, :size] = ids[row, here], mask[row, here]
            at, number = at + size, number + 1
        mask[row, at:] = False
    return {"ids": ids, "mask": mask, "segments": segments}, alone


def test_positions_and_masks_by_hand():
    packing = Packing(torch.tensor([[0, 0, 1, 1, 1, PADDING], [0, 0, 0, 0, 0, 1]]))
    assert packing.positions.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 0]] and packing.longest == 5
    assert packing.mask()[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]
    assert packing.mask(window=2)[1, 0, 4].int().tolist() == [0, 0, 0, 1, 1, 0]
    taken = [row.tolist() for part in packing.split(torch.arange(12).reshape(2, 6)) for row in part]
    assert taken == [[6, 7, 8, 9, 10], [2, 3, 4], [0, 1], [11]]  # by length
    assert [inside.sum().item() for _, inside in packing.groups] == [5, 3, 2, 1]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("lengths", [LENGTHS, [[5, 4, 6, 3], [6, 6, 6]]], ids=["long", "within every window"])
def test_each_conversation_is_read_as_if_alone(backbones, name, lengths):
    backbone = backbones(name)
    packed, alone = a_packed_batch(lengths)
    features = backbone.features(packed["ids"], (0, 1), Packing(packed["segments"]))
    each = backbone.features(alone["ids"], (0, 1))
    number = 0
    for row, sizes in enumerate(lengths):
        at = 0
        for size in sizes:
            for kind in ("hidden", "taps"):
                here, there = getattr(features, kind)[row, at : at + size], getattr(each, kind)[number, :size]
                torch.testing.assert_close(here, there, atol=1e-5, rtol=0)
            at, number = at + size, number + 1


@pytest.mark.parametrize("objective", ["ce", "kl"])
@pytest.mark.parametrize("family", [Medusa, Cascade, Eagle3, Diffusion])
def test_the_loss_and_its_gradient_are_those_of_unpacked_rows(monkeypatch, family, objective):
    monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, name, **_: tiny_backbone("llama")))
    module = DraftModule(lambda backbone: family(backbone, 4), "tiny", objective=objective)
    if family is Diffusion:
        module.eval()  # while training its masks are random; eval drafts, as decoding does
    found = []
    for batch in a_packed_batch():
        loss, figures = module.losses(**batch)
        module.drafter.zero_grad()
        loss.backward()
        slopes = torch.cat([p.grad.flatten() for p in module.drafter.parameters() if p.grad is not None])
        found.append((loss, slopes, figures))
    (loss, slopes, figures), (same, same_slopes, same_figures) = found
    torch.testing.assert_close(loss, same, atol=1e-5, rtol=0)
    torch.testing.assert_close(slopes, same_slopes, atol=1e-5, rtol=1e-4)
    assert figures.keys() == same_figures.keys()
    for name, (value, count) in figures.items():
        assert count == same_figures[name][1] and value.item() == pytest.approx(same_figures[name][0].item(), abs=1e-5)


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2"])
def test_the_language_model_learns_the_same(model_type, tmp_path):
    train_tokenizer(["some words to cut"] * 3, 300).save_pretrained(tmp_path)
    sizes = ARCHITECTURES[model_type] | {"vocab_size": 300, "model_type": model_type}
    module = LMModule(sizes, tokenizer=str(tmp_path)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)  # so that what is seen shows
    packed, alone = a_packed_batch()
    alone["mask"][:, 0] = False  # predicted by nothing
    found, same, mixed = (
        module.objective(module, **batch)["loss"][0].detach()
        for batch in (packed, alone, {name: packed[name] for name in ("ids", "mask")})
    )
    torch.testing.assert_close(found, same, atol=1e-5, rtol=1e-6)
    assert mixed.item() != pytest.approx(found.item(), abs=1e-4)
