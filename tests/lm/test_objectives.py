"""Objectives against references written from their definitions, the golden loss of each, and what is no target."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, log_softmax

from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.lm.module import LMModule
from mhc.lm.objectives import Distillation, NextToken, Preference, Reasoning, tag_tokens
from tests.helpers.language_models import TEXT, a_module

ROWS, LENGTH = 4, 24
# Losses of steps 0 and 4 of `train` below: a refactor that moves them is no refactor.
GOLDEN = {
    "next token": (5.7881, 4.4722),
    "distillation": (3.0233, 2.3653),
    "reasoning": (20.4574, 15.1587),
    "preference": (0.6931, 0.0845),
}


@pytest.fixture
def build(tokenizer, tmp_path):
    """A module by the name of its objective; a distillation has a teacher of another width."""

    def make(name: str, **arguments) -> LMModule:
        if name != "distillation":
            kind = {"next token": NextToken, "reasoning": Reasoning, "preference": Preference}[name]
            return a_module(tokenizer, kind(**arguments))
        a_module(tokenizer, NextToken(), width=48).save_pretrained(tmp_path / "teacher", torch.float32)
        module = a_module(tokenizer, Distillation(str(tmp_path / "teacher"), **arguments))
        module.objective.teacher = Backbone.load(str(tmp_path / "teacher"), decoding=False)
        return module

    return make


def a_batch(module: LMModule) -> dict[str, torch.Tensor]:
    """Rows of random tokens with tags in two of them, half of each supervised; of pairs also the model's own figures."""
    dice = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (ROWS, LENGTH), generator=dice)
    tags = module.tokenizer(TEXT[0], add_special_tokens=False)["input_ids"]
    ids[1, -len(tags) :] = ids[2, : len(tags)] = torch.tensor(tags[:LENGTH])
    mask = (torch.arange(LENGTH) >= LENGTH // 2).expand(ROWS, -1) & (torch.rand(ROWS, LENGTH, generator=dice) < 0.9)
    batch = {"ids": ids, "mask": mask}
    if isinstance(module.objective, Preference):
        with torch.no_grad():
            batch["reference"] = module.objective.answers(module, ids, mask)
    return batch


def train(module: LMModule, steps: int = 5) -> list[float]:
    batch, losses = a_batch(module), []
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=0.003)
    for _ in range(steps):
        loss, _ = module.objective(module, **batch)["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_loss(build, name):
    losses = train(build(name))
    assert (losses[0], losses[-1]) == pytest.approx(GOLDEN[name], abs=2e-3)


def distributions(model, ids: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """log p (B,T-1,V) of the token behind each position, by the model's own forward."""
    return log_softmax(model(input_ids=ids).logits[:, :-1].double() / temperature, dim=-1)


def gradients(module: LMModule, loss: torch.Tensor) -> torch.Tensor:
    module.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in module.parameters()])


def assert_same_loss(module: LMModule, found: torch.Tensor, expected: torch.Tensor) -> None:
    """The loss and its gradient, to 1e-5 of what they are."""
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    slopes, wanted = gradients(module, found), gradients(module, expected)
    assert (slopes - wanted).norm() < 1e-5 * wanted.norm()


def test_distillation_is_its_definition(build):
    module = build("distillation", alpha=0.3, temperature=1.5)
    batch = a_batch(module)
    ids, valid = batch["ids"], batch["mask"][:, 1:]
    told = distributions(module.objective.teacher.model, ids, 1.5)[valid]
    said = distributions(module.model, ids, 1.5)[valid]
    divergence = (told.exp() * (told - said)).sum(dim=-1).mean()
    entropy = cross_entropy(distributions(module.model, ids)[valid], ids[:, 1:][valid])
    expected = 0.3 * entropy + 0.7 * 1.5**2 * divergence
    found = module.objective(module, **batch)
    assert found["cross_entropy"][0].item() == pytest.approx(entropy.item(), rel=1e-5)
    assert found["divergence"][0].item() == pytest.approx(divergence.item(), rel=1e-5)
    assert_same_loss(module, found["loss"][0], expected)


@pytest.mark.parametrize("averaged", [False, True])
def test_preference_is_its_definition(build, averaged):
    module = build("preference", beta=0.2, length_averaged=averaged)
    batch = a_batch(module)
    batch["reference"] += torch.tensor([0.5, -1.0, 2.0, 0.1])
    ids, mask = batch["ids"], batch["mask"]
    each = distributions(module.model, ids).gather(2, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    said = each.sum(dim=1) / (mask[:, 1:].sum(dim=1) if averaged else 1)
    ratio = said - batch["reference"]
    margin = 0.2 * torch.stack([ratio[0] - ratio[1], ratio[2] - ratio[3]])
    expected = -torch.sigmoid(margin).log().mean()
    found = module.objective(module, **batch)
    assert found["accuracy"][0].item() == (margin > 0).double().mean().item()
    assert found["margin"][0].item() == pytest.approx(margin.mean().item(), rel=1e-5)
    assert_same_loss(module, found["loss"][0], expected)


def test_preference_is_trl_s(build, tmp_path):
    """The loss that trl's DPOTrainer computes for a policy that has left its reference, on the batch that it makes."""
    trl = pytest.importorskip("trl", reason="trl is not installed: make test-extras does it")
    from datasets import Dataset

    module = build("preference", beta=0.2)
    module.model.save_pretrained(tmp_path / "model")
    rows = [{"prompt": "a question ", "chosen": "with some words", "rejected": "one and two"}] * 2
    rows += [{"prompt": "three", "chosen": " and one", "rejected": " with some words"}]
    arguments = trl.DPOConfig(
        str(tmp_path), beta=0.2, use_cpu=True, report_to=[], bf16=False, gradient_checkpointing=False, seed=0
    )
    theirs = trl.DPOTrainer(
        str(tmp_path / "model"),
        args=arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=module.tokenizer,
    )
    batch = theirs.data_collator(list(theirs.train_dataset))
    pairs = len(batch["input_ids"]) // 2
    order = torch.arange(2 * pairs).view(2, pairs).T.flatten()  # theirs: all chosen, then all rejected
    ids, mask = batch["input_ids"][order], batch["completion_mask"][order].bool()
    with torch.no_grad():
        reference = module.objective.answers(module, ids, mask)
        for ours, policy in zip(module.model.parameters(), theirs.model.parameters()):
            ours += 0.1 * torch.randn_like(ours)
            policy.copy_(ours)
        found = module.objective(module, ids, mask, reference=reference)["loss"][0]
        expected = theirs.compute_loss(theirs.model.train(False), batch)
    assert found.item() != pytest.approx(math.log(2), abs=0.01)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_preference_starts_at_a_draw(build):
    module = build("preference")
    found = module.objective(module, **a_batch(module))
    assert found["loss"][0].item() == pytest.approx(math.log(2)) and found["accuracy"][0].item() == 0.5


def test_a_process_without_pairs_learns_nothing(build):
    module = build("preference")
    dummy = {
        "ids": torch.zeros(2, 3, dtype=torch.long),
        "mask": torch.zeros(2, 3, dtype=torch.bool),
        "reference": torch.zeros(2),
    }
    found = module.objective(module, **dummy)
    assert found["loss"][0].item() == 0 and {count for _, count in found.values()} == {0}
    assert not gradients(module, found["loss"][0]).any()


def test_tags_count_where_the_assistant_writes_them(build):
    module = build("reasoning", tag_weight=10.0)
    batch = a_batch(module)
    ids, valid = batch["ids"], batch["mask"][:, 1:]
    pieces = [module.tokenizer.decode([token]) for token in range(300)]
    tags = tag_tokens(ids, pieces)
    text = module.tokenizer.decode(ids[1].tolist())
    inside = "".join(pieces[token] for token in ids[1][tags[1]].tolist())
    assert "<think>" in text and inside.replace("\n", "") == "".join(
        tag for tag in ("<think>", "</think>", "<answer>", "</answer>") if tag in text
    )
    assert not tags[0].any() and tags[2].any() and not (tags[2, 1:] & valid[2]).all()
    each = -distributions(module.model, ids).gather(2, ids[:, 1:, None])[..., 0]
    weight = torch.where(tags[:, 1:], 10.0, 1.0)
    found = module.objective(module, **batch)
    assert found["cross_entropy"][0].item() == pytest.approx(each[valid].mean().item(), rel=1e-5)
    assert found["tag_cross_entropy"][0].item() == pytest.approx(each[valid & tags[:, 1:]].mean().item(), rel=1e-5)
    assert_same_loss(module, found["loss"][0], (each * weight)[valid].sum() / valid.sum())


@pytest.mark.parametrize(
    "make, named",
    [
        (lambda: Preference(beta=0), "beta"),
        (lambda: Distillation("x", alpha=2), "alpha"),
        (lambda: Distillation("x", temperature=0), "temperature"),
        (lambda: Reasoning(tag_weight=-1), "tag_weight"),
    ],
)
def test_senseless_settings_are_refused(make, named):
    with pytest.raises(UserError, match=named):
        make()
