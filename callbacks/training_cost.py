"""What training cost: steps, seconds and memory, for whoever compares drafters."""

import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from mhc.checkpoint import write_json

RESULT = "training.json"


class TrainingCost(Callback):
    """At the end of `fit` writes training.json: steps, rows in a batch, the seconds they took (validation and loading apart), the
    heads' parameters, and the most memory that was held (of the GPU, or the process). A resumed run goes on counting."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds += time.perf_counter() - self._started

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            on_gpu = module.device.type == "cuda"
            held = torch.cuda.max_memory_allocated() if on_gpu else 1024 * _resident_kib()
            figures = {
                "steps": trainer.global_step,
                "max_steps": trainer.max_steps,
                "batch_size": getattr(trainer.datamodule, "batch_size", None),
                "seconds": round(self.seconds, 2),
                "parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
                "peak_memory_mib": round(held / 2**20),
            }
            write_json(Path(trainer.default_root_dir) / RESULT, figures)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]


def _resident_kib() -> int:
    """The most memory that this process has held, in KiB (Linux; macOS counts bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
