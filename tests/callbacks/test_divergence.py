"""Losses that are really not finite: from poisoned features, weights and learning rates. What is named, what is kept."""

import copy
import csv
import hashlib
import json
import re

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from safetensors.torch import load_file, save_file

import run
from callbacks import Divergence, TrainingCost
from datamodules import ConversationData, FeatureData
from datamodules.batching import PackedRows, batch_order
from mhc.distill.features import collect
from mhc.drafters import Cascade, Medusa
from mhc.errors import UserError
from mhc.lm.module import LMModule
from tests.helpers.features import Rows, module_on, settings_for
from tests.helpers.runs import CASCADE, COMMON, ROOT, small, sums

LENGTHS = [9, 9, 14, 24, 13, 20, 11, 24, 17, 16, 22, 15, 13, 18]  # two are held out
BATCH, POISONED = 3, 2  # rows of a batch; the batch of the first epoch that holds the poisoned row


@pytest.fixture(scope="module")
def features(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("features") / "features"
    collect(tiny, Rows(LENGTHS), folder, settings_for(tiny))
    return folder


@pytest.fixture(scope="module")
def poisoned(tiny, tmp_path_factory):
    """As `features`, where the hidden states of one row are infinite (and the shard vouches for them)."""
    folder = tmp_path_factory.mktemp("poisoned") / "features"
    collect(tiny, Rows(LENGTHS), folder, settings_for(tiny))
    shard = folder / "train-00000.safetensors"
    tensors = load_file(shard)
    row = batch_order(LENGTHS[2:], BATCH, 0, 0)[POISONED][1]
    tensors["hidden"][tensors["offsets"][row] : tensors["offsets"][row + 1]] = float("inf")
    save_file(tensors, shard)
    note = json.loads(shard.with_suffix(".json").read_text())
    note |= {"bytes": shard.stat().st_size, "sha256": hashlib.sha256(shard.read_bytes()).hexdigest()}
    shard.with_suffix(".json").write_text(json.dumps(note))
    return folder


def fit(module, data, folder, *callbacks: Callback, **options) -> Trainer:
    """A run without validation, everything logged."""
    chosen = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 1}
    chosen |= {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    logger = CSVLogger(folder, "logs")
    trainer = Trainer(**chosen | options, logger=logger, callbacks=list(callbacks), default_root_dir=folder)
    trainer.fit(module, data)
    return trainer


class Watch(Callback):
    """Of each batch: did weights or moments change?"""

    def __init__(self):
        self.changed: list[bool] = []

    def state(self, trainer, module) -> list[torch.Tensor]:
        moments = trainer.optimizers[0].state_dict()["state"].values()
        every = [*module.drafter.state_dict().values(), *(one for state in moments for one in state.values())]
        return copy.deepcopy(every)

    def on_train_batch_start(self, trainer, module, *_):
        self.before = self.state(trainer, module)

    def on_train_batch_end(self, trainer, module, *_):
        after = self.state(trainer, module)
        same = len(after) == len(self.before) and all(map(torch.equal, self.before, after))
        self.changed.append(not same)


def test_step_rows_and_heads_are_named_before_the_weights_change(tiny, poisoned, tmp_path, monkeypatch):
    module, watch = module_on(tiny, Cascade, monkeypatch), Watch()
    (tmp_path / "training.json").write_text("{}")  # of a run that had its end
    with pytest.raises(UserError) as caught:
        fit(module, FeatureData(str(poisoned), batch_size=BATCH), tmp_path, TrainingCost(), Divergence(), watch)
    told, rows = str(caught.value), sorted(batch_order(LENGTHS[2:], BATCH, 0, 0)[POISONED])
    named = ", ".join(map(str, rows))
    assert f"step {POISONED}, epoch 0, batch {POISONED}: the loss (head 0, head 1, head 2) is not finite" in told
    assert f"rows {named} of the training data, collected:{named}." in told and "learning rate" in told
    assert watch.changed == [True] * POISONED and not (tmp_path / "training.json").exists()
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_only_the_head_that_is_broken_is_named(tiny, features, tmp_path, monkeypatch):
    module = module_on(tiny, Medusa, monkeypatch)
    first = next(parameter for name, parameter in module.drafter.named_parameters() if ".1." in name)
    with torch.no_grad():
        first.fill_(3e38)
    with pytest.raises(UserError, match=r"step 0, epoch 0, batch 0: the loss \(head 1\) is not finite"):
        fit(module, FeatureData(str(features), batch_size=BATCH), tmp_path, Divergence())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_update_leaves_weights_and_moments_alone(tiny, poisoned, tmp_path, monkeypatch, capfd, accumulate):
    module, watch, guard = module_on(tiny, Cascade, monkeypatch), Watch(), Divergence(skip=True)
    data = FeatureData(str(poisoned), batch_size=BATCH)
    fit(module, data, tmp_path, guard, watch, accumulate_grad_batches=accumulate)
    assert watch.changed == {1: [True, True, False, True], 2: [False, True, False, False]}[accumulate]
    assert guard.state_dict() == {"skipped": 1, "in_a_row": 0 if accumulate == 1 else 1}
    told = capfd.readouterr()
    assert told.err.count("left out: ") == 1 and f"batch {POISONED}: the loss (head 0, head 1, head 2)" in told.err
    assert re.search(r"1 of \d updates were left out", told.out)
    with next(tmp_path.glob("logs/*/metrics.csv")).open() as file:
        logged = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [float(row["train/skipped_updates"]) for row in logged] == ([0, 0, 1, 1] if accumulate == 1 else [0, 1])
    norms = [float(row["train/gradient_norm"]) for row in logged]
    assert all(0 < norm < float("inf") for norm in norms[:1]) and all(
        float(r["train/learning_rate"]) >= 0 for r in logged
    )


def test_too_many_in_a_row_end_the_run(tiny, features, tmp_path, monkeypatch):
    module, guard = module_on(tiny, Cascade, monkeypatch, learning_rate=1e30), Divergence(skip=True, patience=3)
    data = FeatureData(str(features), batch_size=BATCH)
    with pytest.raises(UserError, match=r"step 3, .* as in the 3 updates before"):
        fit(module, data, tmp_path, guard, max_epochs=3)
    assert guard.skipped == 2
    with pytest.raises(UserError, match="patience"):
        Divergence(patience=0)


class PoisonOneProcess(Callback):
    """The second process sees infinite features in its batch 0."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.global_rank == 1 and index == 0:
            batch["hidden"].fill_(float("inf"))


class Result(Callback):
    def __init__(self, folder, guard, cost):
        self.folder, self.guard, self.cost = folder, guard, cost

    def on_train_end(self, trainer, module):
        kept = {"weights": module.state_dict(), "guard": self.guard.state_dict(), "cost": self.cost.state_dict()}
        self.cost.load_state_dict(kept["cost"])  # as a resumed run would
        torch.save(kept, self.folder / f"{trainer.global_rank}.pt")


class Unlearnable(Callback):
    """No token of batch 0 is supervised."""

    def on_train_batch_start(self, trainer, module, batch, index):
        if index == 0:
            batch["mask"].fill_(False)


def test_a_batch_without_anchors_is_no_divergence(tiny, poisoned, tmp_path, monkeypatch, capfd):
    """Nothing is logged of it. What follows is judged by its own loss."""
    module, watch = module_on(tiny, Cascade, monkeypatch), Watch()
    data = FeatureData(str(poisoned), batch_size=BATCH)
    fit(module, data, tmp_path, Unlearnable(), Divergence(skip=True), watch)
    assert watch.changed[1:] == [True, False, True]
    assert capfd.readouterr().err.count("left out: ") == 1


def test_processes_decide_together(tiny, features, tmp_path, monkeypatch, capfd):
    module, guard, cost = module_on(tiny, Cascade, monkeypatch), Divergence(skip=True), TrainingCost()
    data = FeatureData(str(features), batch_size=BATCH)
    chosen = {"strategy": "ddp_fork", "devices": 2, "use_distributed_sampler": False}
    fit(module, data, tmp_path, PoisonOneProcess(), cost, guard, Result(tmp_path, guard, cost), **chosen)
    told = capfd.readouterr().err  # each process names its own rows alone
    assert told.count("left out: ") == 2 and told.count("step 0: another process says that its loss is not finite") == 1
    assert told.count("batch 0: the loss (head 0, head 1, head 2) is not finite; rows") == 1
    one, two = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["guard"] == two["guard"] == {"skipped": 1, "in_a_row": 0}
    assert all(torch.equal(value, two["weights"][name]) for name, value in one["weights"].items())
    assert all(value.isfinite().all() for value in one["weights"].values())
    assert one["cost"]["tokens"] == two["cost"]["tokens"] == sum(LENGTHS[2:])  # each saw half of the rows
    assert json.loads((tmp_path / "training.json").read_text())["tokens"] == sum(LENGTHS[2:])
    with next(tmp_path.glob("logs/*/metrics.csv")).open() as file:
        assert all(float(row["train/tokens_per_second"]) > 0 for row in csv.DictReader(file))


@pytest.mark.parametrize("pack", [False, True])
def test_a_language_model_names_the_lines_of_its_file(tmp_path, pack):
    """Conversations that nothing is learned from (their answers begin too late) are counted over. Here the loss is finite
    still, and its gradient no longer."""
    path = sums(tmp_path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for number in range(0, len(rows), 5):
        rows[number]["messages"][0]["content"] += " Please." * 60
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    module = LMModule(
        {"model_type": "llama", "vocab_size": 3072, "num_key_value_heads": 2, **sizes},
        tokenizer=str(ROOT / "mhc/lm/pocket"),
        learning_rate=1e30,
    )
    data = ConversationData(str(path), max_length=64, batch_size=4 if pack else 8, pack=pack)
    with pytest.raises(UserError) as caught:
        fit(module, data, tmp_path, Divergence())
    rows, lengths = data.rows("train"), data.rows("train").lengths
    packed = PackedRows(rows, lengths, 64, 0)
    numbers = sorted(batch_order([64] * len(packed), 4, 0, 0)[1] if pack else batch_order(lengths, 8, 0, 0)[1])
    inside = [row for number in numbers for row in packed.bins[number]] if pack else numbers
    learned = [c.where for c in data.conversations("train") if "Please" not in c.prompt]
    lines = [learned[row].rpartition(":")[2] for row in inside]
    assert data.totals["train"].dropped > 0
    assert f"step 1, epoch 0, batch 1: the gradient is not finite; rows {', '.join(map(str, numbers))}" in str(
        caught.value
    )
    assert f"sums.jsonl:{', '.join(lines)}." in str(caught.value)


def test_a_diverged_run_ends_with_one_line_and_its_last_good_checkpoint(tmp_path, capsys):
    """The learning rate is nothing in the first step and far too much in the second, after which validation shows it."""
    out = tmp_path / "run"
    flags = ["--model.learning_rate", "1e30", "--model.warmup", "0.5", "--trainer.val_check_interval", "1"]
    status = run.main(["fit", *COMMON, *CASCADE, *small(out, sums(tmp_path)), *flags])
    told = capsys.readouterr().err
    assert status == 2 and told.count("error: ") == 1 and told.strip().count("\n") == 0
    assert "step 2: the validation loss is not finite" in told and "Start again with a lower learning rate" in told
    kept = torch.load(out / "last.ckpt", weights_only=True)
    assert "The run has not finished" in (out / "report.html").read_text()
    assert kept["global_step"] == 1 and all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_run_that_is_stopped_leaves_its_checkpoints_alone(tmp_path, capsys):
    """The second update breaks the weights, is saved, and the third batch shows it: nothing is written then, and the
    checkpoint before is whole."""
    out = tmp_path / "run"
    flags = ["--model.learning_rate", "1e30", "--model.warmup", "0.5", "--trainer.limit_val_batches", "0"]
    flags += ["--checkpoint.every_n_steps", "1"]
    assert run.main(["fit", *COMMON, *CASCADE, *small(out, sums(tmp_path)), *flags]) == 2
    assert "error: step 2, epoch 0" in capsys.readouterr().err
    last, before = (torch.load(out / name, weights_only=True) for name in ("last.ckpt", "last.previous.ckpt"))
    assert (before["global_step"], last["global_step"]) == (1, 2)
    assert all(value.isfinite().all() and value.abs().max() < 1e3 for value in before["state_dict"].values())
