"""Training: the golden loss of the heads, what is learned from, and what a checkpoint holds."""

import json
from functools import partial

import pytest
import torch
from lightning import Callback, Trainer

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Diffusion, Eagle3, Medusa
from mhc.errors import UserError
from mhc.training.draft_module import DraftModule
from tests.helpers.backbones import tiny_backbone

# Losses of steps 0 and 24 of `train` below: a refactor that moves them is no refactor.
GOLDEN = {
    "Medusa": (10.1338, 7.1097),
    "Cascade": (10.1375, 1.0665),
    "Diffusion": (4.7179, 2.5264),
    "Eagle3": (10.2395, 0.9675),
}


@pytest.fixture
def module(monkeypatch):
    """A DraftModule on a tiny Llama."""

    def build(family, **arguments) -> DraftModule:
        monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, name, **_: tiny_backbone("llama")))
        torch.manual_seed(0)
        return DraftModule(lambda backbone: family(backbone, 3), "tiny", learning_rate=0.01, **arguments)

    return build


def a_batch() -> dict[str, torch.Tensor]:
    """Text in which each token depends on the one before: t+1 = 3t+1 (mod 61)."""
    ids = torch.arange(8)[:, None].repeat(1, 20)
    for t in range(1, 20):
        ids[:, t] = (3 * ids[:, t - 1] + 1) % 61
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[:, :4] = False
    return {"ids": ids, "mask": mask}


def train(module: DraftModule, steps: int = 25) -> list[float]:
    optimizer = torch.optim.AdamW(module.drafter.parameters(), lr=module.learning_rate)
    losses = []
    for _ in range(steps):
        loss, _ = module.losses(**a_batch())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@pytest.mark.parametrize("family", [Medusa, Cascade, Diffusion, Eagle3])
def test_golden_loss(module, family):
    losses = train(module(family))
    assert (losses[0], losses[-1]) == pytest.approx(GOLDEN[family.__name__], abs=2e-3)


def test_only_heads_learn_and_only_heads_are_saved(module):
    built = module(Cascade)
    before = {name: value.clone() for name, value in built.backbone.state_dict().items()}
    train(built, 3)
    assert all(torch.equal(before[name], value) for name, value in built.backbone.state_dict().items())
    assert all(not parameter.requires_grad for parameter in built.backbone.parameters())
    assert built.state_dict() and all(name.startswith("drafter.") for name in built.state_dict())
    assert not built.train().backbone.training


def test_unsupervised_tokens_are_not_learned_from(module):
    """Changing a token nobody is asked to guess, behind every anchor's view, leaves the loss alone."""
    built, batch = module(Medusa), a_batch()
    batch["mask"][:, 12:] = False
    loss, _ = built.losses(**batch)
    batch["ids"][:, 12:] = 7
    assert built.losses(**batch)[0].item() == pytest.approx(loss.item(), abs=1e-6)
    batch["ids"][:, 11] = 7
    assert built.losses(**batch)[0].item() != pytest.approx(loss.item(), abs=1e-3)


def test_expected_tokens_per_step_counts_guesses_up_to_the_first_wrong_one(module):
    built = module(Cascade)
    train(built, 60)
    _, figures = built.losses(**a_batch())
    top1 = [float(figures[f"head{head}_top1"][0]) for head in range(3)]
    tokens = float(figures["expected_tokens_per_step"][0])
    assert 1 + top1[0] * 0.5 < tokens <= 1 + sum(top1) + 1e-6


class StopAfterOneEpoch(Callback):
    def on_train_epoch_end(self, trainer, module):
        trainer.should_stop = True


@pytest.mark.parametrize("family", [Medusa, Cascade, partial(Cascade, rollout=0.5), Diffusion, Eagle3])
def test_checkpoint_resumes_where_it_stopped(module, tmp_path, family):
    """Six steps at once, and three, a checkpoint, and three more: the same heads."""

    class Batches(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return {name: value.roll(index, 0) for name, value in a_batch().items()}

    loader = torch.utils.data.DataLoader(Batches(), batch_size=None)
    quiet = dict(
        accelerator="cpu",
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    whole = module(family)
    Trainer(max_epochs=2, **quiet).fit(whole, loader, loader)
    first = module(family)
    half = Trainer(max_epochs=2, callbacks=[StopAfterOneEpoch()], **quiet)
    half.fit(first, loader, loader)
    half.save_checkpoint(tmp_path / "x.ckpt")
    saved = torch.load(tmp_path / "x.ckpt", weights_only=True)
    assert saved["drafter"]["drafter"] == type(first.drafter).__name__ and json.dumps(saved["drafter"])
    assert not [name for name in saved["state_dict"] if "backbone" in name]
    second = module(family)
    Trainer(max_epochs=2, **quiet).fit(second, loader, loader, ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    for (name, one), (_, two) in zip(whole.state_dict().items(), second.state_dict().items()):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("family", [Medusa, Cascade, Diffusion, Eagle3])
@pytest.mark.parametrize("objective", ["kl", "lk"])
def test_heads_learn_the_backbones_distribution(module, family, objective):
    """Under kl and lk what the heads cover of the backbone's distribution grows, and is reported."""
    built = module(family, objective=objective, distillation_temperature=1.0)
    built.drafter.eval()
    _, before = built.losses(**a_batch())
    built.drafter.train()
    train(built, 40)
    built.drafter.eval()
    _, after = built.losses(**a_batch())
    for head in range(3):
        assert 0 <= before[f"head{head}_overlap"][0] < after[f"head{head}_overlap"][0] <= 1


def test_unknown_settings_are_named(module):
    for wrong, named in (({"objective": "mse"}, "objective"), ({"distillation_temperature": 0.0}, "temperature")):
        with pytest.raises(UserError, match=named):
            module(Medusa, **wrong)


@pytest.mark.parametrize(
    "family, wrong, named",
    [
        (Cascade, {"cell": "lstm"}, "residual"),
        (Cascade, {"rollout": 1.5}, "rollout"),
        (Cascade, {"tied": True, "condition_first": False}, "condition_first"),
        (Diffusion, {"schedule": "cosine"}, "kappa"),
        (Diffusion, {"weighting": "half"}, "scheduler"),
        (Diffusion, {"passes": 9}, "passes"),
        (Eagle3, {"taps": [0, 1]}, "three"),
        (Eagle3, {"taps": [0, 1, 7]}, "three"),
        (Eagle3, {"draft_vocabulary": 1000}, "draft_vocabulary"),
        (Eagle3, {"context": 1}, "context"),
    ],
)
def test_unknown_arguments_of_drafters_are_named(module, family, wrong, named):
    with pytest.raises(UserError, match=named):
        module(partial(family, **wrong))
