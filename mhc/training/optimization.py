"""The optimizer, the learning rate's schedule and the random numbers that every LightningModule here trains with."""

import math

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers.optimization import get_cosine_schedule_with_warmup

from mhc.distributed.optimizer_state import keep_by_name
from mhc.errors import UserError
from mhc.training.data import data_of


def optimize(
    module: LightningModule, learning_rate: float, weight_decay: float, warmup: float
) -> OptimizerLRSchedulerConfig:
    """AdamW (no decay on biases and norms), linear warm-up over a share of the steps, cosine to zero."""
    trained = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [(name, p) for name, p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [(name, p) for name, p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    optimizer = keep_by_name(AdamW(groups, lr=learning_rate, betas=(0.9, 0.95)))
    steps = total_steps(module.trainer)
    schedule: LambdaLR = get_cosine_schedule_with_warmup(optimizer, int(warmup * steps), steps)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def total_steps(trainer: Trainer) -> int:
    """Optimizer steps of the whole run. (Lightning's estimate asks for the loader, and before a resumed run's place in the
    data is known.) Raises UserError where there is no end."""
    if trainer.max_epochs == trainer.max_steps == -1:
        raise UserError("the learning rate's schedule needs an end: set trainer.max_epochs or trainer.max_steps")
    if trainer.max_epochs == -1:
        return trainer.max_steps
    limit = trainer.limit_train_batches
    if getattr(trainer, "datamodule", None) is None:
        loader = trainer.fit_loop._data_source.instance
        assert isinstance(loader, DataLoader)
        batches = len(loader)
    else:
        batches = data_of(trainer).train_batches()
    batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * (trainer.max_epochs or 1)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)


def reseed(trainer: Trainer, seed: int, index: int) -> None:
    """Seed the random numbers of a batch from the run's seed, the process, the epoch and the batch's number in it alone, so
    that a resumed run draws the same."""
    source = np.random.SeedSequence([seed, trainer.global_rank, trainer.current_epoch, index])
    torch.manual_seed(int(source.generate_state(1, np.uint64)[0]))
