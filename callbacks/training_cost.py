"""What training cost: steps, seconds, tokens and memory, for whoever compares drafters.

B rows   T time
"""

import resource
import time
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from mhc.backbone.packing import PADDING
from mhc.distributed.sharding import element_count, summed
from mhc.lm.module import LMModule
from mhc.training.draft_module import DraftModule
from mhc.util.files import write_json
from mhc.util.provenance import machine, versions, wait

RESULT = "training.json"


class TrainingCost(Callback):
    """At the end of `fit` writes training.json: steps, rows in a batch, the seconds they took (validation and loading
    apart), the tokens they saw (padding apart), the heads' parameters, the most memory that was held (of the GPU, or the
    process), and machine and versions. A resumed run continues the counts, on any number of processes.

    Logs train/tokens_per_second (of all processes, since it was logged last) and train/memory_mib.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.tokens: Tensor | int = 0  # on the device until the figures are logged
        self._logged = 0.0, 0  # seconds and tokens when the figures were logged last

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self.tokens = torch.as_tensor(self.tokens, device=module.device)
        if trainer.is_global_zero:  # what an earlier run has left
            (Path(trainer.default_root_dir) / RESULT).unlink(missing_ok=True)

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: dict[str, Tensor], index: int
    ) -> None:
        wait(module.device)  # as Lightning does next, to show the loss
        self.seconds += time.perf_counter() - self._started
        assert isinstance(module, DraftModule | LMModule)
        self.tokens = self.tokens + real_tokens(batch, module.tokenizer.pad_token_id or 0)
        if trainer._logger_connector.should_update_logs and not trainer.fit_loop._should_accumulate():
            tokens = int(self.tokens)
            rate = (tokens - self._logged[1]) / (self.seconds - self._logged[0])
            module.log("train/tokens_per_second", rate, sync_dist=True, reduce_fx="sum")
            module.log("train/memory_mib", float(held_mib(module)))
            self._logged = self.seconds, tokens

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        tokens = int(trainer.strategy.reduce(torch.tensor(int(self.tokens), device=module.device), reduce_op="sum"))
        if trainer.is_global_zero:
            figures = {
                "steps": trainer.global_step,
                "max_steps": trainer.max_steps,
                "batch_size": getattr(getattr(trainer, "datamodule", None), "batch_size", None),
                "seconds": round(self.seconds, 2),
                "tokens": tokens,
                "parameters": sum(element_count(p) for p in module.parameters() if p.requires_grad),
                "peak_memory_mib": held_mib(module),
                "machine": machine(),
                "versions": versions(),
            }
            write_json(Path(trainer.default_root_dir) / RESULT, figures)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "tokens": int(summed(torch.as_tensor(self.tokens).clone()))}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        self.seconds, self.tokens = state["seconds"], state["tokens"] if first else 0  # a checkpoint has those of all
        self._logged = self.seconds, self.tokens


def real_tokens(batch: dict[str, Tensor], pad_id: int) -> Tensor:
    """How many positions (B,T) are no padding; a scalar on the batch's device, without synchronising with it. Where the
    padding is a token of text as well, it is what follows a row's last other or supervised token."""
    if "segments" in batch:
        return (batch["segments"] != PADDING).sum()
    ids, real = batch["ids"], (batch["ids"] != pad_id) | batch["mask"]
    return (real * torch.arange(1, ids.shape[1] + 1, device=ids.device)).amax(dim=1).sum()


def held_mib(module: LightningModule) -> int:
    """The most memory held so far, in MiB: of the module's GPU, or of this process (Linux; macOS counts bytes)."""
    if module.device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(module.device) / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
