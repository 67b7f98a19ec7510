"""Stops a run, or leaves one update out, when a loss or a gradient is no longer a finite number."""

import sys
from itertools import islice
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from mhc.errors import UserError
from mhc.training.data import data_of


class Divergence(Callback):
    """Before every update looks at the loss of each of its batches, every process at its own rows', and at the gradient's
    norm. Where one is not finite, `fit` ends with a line that names the step, the heads and the rows. The weights have not
    changed then, nor has any checkpoint. (If the update before was the one that broke the weights, a last.ckpt that was due
    right behind it holds them; last.previous.ckpt is from before.) A validation loss that is not finite ends it as well,
    before the checkpoint is written.

    skip: leave out that update only. Weights and moments stay as they are, bit for bit; the schedule continues.
    train/skipped_updates counts, and a line names each. patience: so many in a row end the run all the same.

    Logs train/gradient_norm (over all parameters, before clipping; DeepSpeed keeps it to itself) and train/learning_rate,
    in which divergence shows first. Processes decide together. Looking costs one read from the device before the update,
    where Lightning, which shows the loss, would read one behind it.
    """

    def __init__(self, skip: bool = False, patience: int = 10):
        if patience < 1:
            raise UserError(f"Divergence's patience is {patience}: it must be at least 1")
        self.skip, self.patience = skip, patience
        self.skipped, self.in_a_row = 0, 0
        self._batches: list[tuple[int, dict[str, Tensor]]] = []  # of the update to come: number in the epoch, losses

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if self.skip and isinstance(trainer.strategy, DeepSpeedStrategy):
            raise UserError("DeepSpeed makes its updates itself, none can be left out: set Divergence's skip to false")

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        logged = trainer.callback_metrics  # of all processes: they name the heads
        losses = {name: logged[name] for name in logged if name.startswith("train/") and name.endswith("loss")}
        self._batches.append((trainer.fit_loop.batch_idx, losses | {"train/loss": loss.detach()}))

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Optimizer) -> None:
        batches, self._batches = self._batches, []
        rate = optimizer.param_groups[0]["lr"]
        module.log("train/learning_rate", rate)
        figures = [losses["train/loss"].float() for _, losses in batches]
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if gradients:
            norm = get_total_norm(gradients)
            norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
            module.log("train/gradient_norm", norm)
            if (
                getattr(trainer.precision_plugin, "scaler", None) is None
            ):  # fp16's scaler overflows on purpose, and skips
                figures.append(norm.float())
        broken = ~torch.stack(figures).isfinite()
        processes = trainer.strategy.reduce(broken.int(), reduce_op="sum")  # how many of them
        assert isinstance(processes, Tensor)
        anywhere = bool(processes.any())
        self.in_a_row = self.in_a_row + 1 if anywhere else 0
        if anywhere:
            problem = _describe(trainer, batches, broken.tolist(), processes.tolist())
            if not self.skip:
                raise UserError(
                    f"{problem}. Nothing was learned from it, checkpoints are as they were. Lower the learning rate "
                    f"({rate:.3g} here), compute in fp32 (--trainer.precision 32-true), look at these rows, or leave such "
                    "updates out (Divergence's `skip: true`)"
                )
            if self.in_a_row == self.patience:
                raise UserError(
                    f"{problem}, as in the {self.patience} updates before: lower the learning rate ({rate:.3g})"
                )
            print(f"left out: {problem}", file=sys.stderr)
            optimizer.zero_grad()  # an optimizer passes by what has no gradient, its moments included
            self.skipped += 1
        if self.skip:
            module.log("train/skipped_updates", float(self.skipped))

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        """Weights that an update has broken are not saved: this callback stands before the one that would."""
        loss = trainer.callback_metrics.get("val/loss")
        if trainer.state.fn == "fit" and not trainer.sanity_checking and loss is not None and not loss.isfinite():
            raise UserError(
                f"step {trainer.global_step}: the validation loss is not finite, an update before has broken the weights. "
                "Checkpoints are as they were. Start again with a lower learning rate "
                f"({trainer.optimizers[0].param_groups[0]['lr']:.3g} here): a resumed run keeps the one it began with"
            )

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self.skipped:
            trainer.print(f"{self.skipped} of {trainer.global_step} updates were left out: not finite")

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]


def _describe(
    trainer: Trainer, batches: list[tuple[int, dict[str, Tensor]]], broken: list[bool], processes: list[int]
) -> str:
    """What is not finite, at which step, in which rows; of an accumulated update only the batches that are to blame.
    broken: in this process; processes: in how many. Both of each batch's loss and then of the gradient's norm."""
    blamed = [batch for batch, bad in zip(batches, broken) if bad]
    if any(processes[: len(batches)]) and not blamed:
        return f"step {trainer.global_step}: another process says that its loss is not finite"
    heads = sorted({int(name[len("train/head") :].split("_")[0]) for name in _not_finite(blamed) if "head" in name})
    which = f" ({', '.join(f'head {head}' for head in heads)})" if heads else ""
    what = f"the loss{which}" if _not_finite(blamed) else "the gradient"
    loader = trainer.train_dataloader
    assert loader is not None
    order = loader.sampler
    numbers = sorted(number for index, _ in blamed or batches for number in next(islice(order, index, None)))
    places = data_of(trainer).origins(numbers)
    return (
        f"step {trainer.global_step}, epoch {trainer.current_epoch}, batch "
        f"{', '.join(str(index) for index, _ in blamed or batches)}: {what} is not finite; rows "
        f"{', '.join(map(str, numbers))} of the training data, {_together(places)}"
    )


def _not_finite(batches: list[tuple[int, dict[str, Tensor]]]) -> list[str]:
    return [name for _, losses in batches for name, loss in losses.items() if not loss.isfinite()]


def _together(places: list[str]) -> str:
    """["a.jsonl:3", "a.jsonl:7", "b.jsonl:1"] as "a.jsonl:3, 7, b.jsonl:1"."""
    files: dict[str, list[str]] = {}
    for place in places:
        file, _, line = place.rpartition(":")
        files.setdefault(file, []).append(line)
    return ", ".join(f"{file}:{', '.join(lines)}" for file, lines in files.items())
