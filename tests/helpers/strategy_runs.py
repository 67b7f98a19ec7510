"""What test_strategies.py runs in two processes: every strategy in turn on a tiny backbone.

    python tests/helpers/strategy_runs.py FOLDER STRATEGY...

Lightning's launcher starts the second process. FOLDER holds the backbone and one process's `single.ckpt`; each strategy
leaves its checkpoints and figures there.
"""

import hashlib
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch.strategies import DDPStrategy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset

from callbacks import Acceptance
from mhc.backbone.weight_layout import unpack
from mhc.checkpoints.heads_folder import for_decoding
from mhc.checkpoints.training_file import CheckpointFiles
from mhc.distributed.sharding import whole_state
from mhc.distributed.strategies import FSDP, ZeRO
from mhc.drafters import Cascade, Diffusion, Eagle3
from mhc.training.draft_module import DraftModule

BATCHES, ROWS, TIME = 7, 4, 16
ACCUMULATED = 2  # batches of an optimizer step; the last one of the epoch has a single batch
STEPS, HALF = 4, 2


class ZeROOnCPU(ZeRO):
    """Lifts Lightning's demand for CUDA and touches nothing else."""

    gpus_only = False

    def setup_environment(self) -> None:
        self.accelerator.setup_device(self.root_device)
        self.setup_distributed()

    def setup_distributed(self) -> None:
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, for a minute
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu", self.local_rank)


def strategy_of(name: str):
    if name.startswith("zero"):
        return ZeROOnCPU(int(name[4]), settings={"stage3_param_persistence_threshold": 0})
    return {"ddp": DDPStrategy, "fsdp": FSDP}[name]()


# Heads with matrices of their own that are read as they are, not through a module: what sharding makes hard.
DRAFTERS = {
    "cascade": partial(Cascade, heads=3, cell="low_rank", rank=8, own_lm_head=True),
    "eagle3": partial(Eagle3, draft_length=2, taps=[0, 1, 1], draft_vocabulary=100),
    "diffusion": partial(Diffusion, draft_length=2),
}


class Rows(Dataset):
    """ROWS rows a batch; process r of W has every W-th of them. In the third only process 0 has anything to learn."""

    def __init__(self, rank: int, world: int, start: int = 0):
        self.rank, self.world, self.start = rank, world, start

    def __len__(self) -> int:
        return BATCHES

    def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
        number = (self.start + number) % BATCHES
        dice = torch.Generator().manual_seed(number)
        ids = torch.randint(3, 300, (ROWS, TIME), generator=dice)
        for t in range(1, TIME):
            ids[:, t] = (3 * ids[:, t - 1] + 1) % 300
        mask = torch.rand(ROWS, TIME, generator=dice) < torch.linspace(0.4, 1.0, ROWS)[:, None]
        if number == 2:
            mask[1::2] = False
        return {"ids": ids[self.rank :: self.world], "mask": mask[self.rank :: self.world]}


class Data(LightningDataModule):
    def __init__(self, start: int):
        super().__init__()
        self.start = start

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.trainer.global_rank, self.trainer.world_size, self.start), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Rows(self.trainer.global_rank, self.trainer.world_size), batch_size=None)

    def rows(self, split: str) -> list[tuple]:
        rows = [Rows(0, 1)[number] for number in range(BATCHES)]
        return [(i.numpy(), m.numpy()) for row in rows for i, m in zip(row["ids"], row["mask"])]

    def prompts(self, split: str, count: int) -> list[Any]:
        from datamodules.conversations import Prompt

        return [Prompt(str(n), [], Rows(0, 1)[n]["ids"][0, :6].tolist()) for n in range(count)]

    def train_batches(self) -> int:
        return BATCHES


class Watch(Callback):
    """Notes the global loss of each batch, saves once before training and when told to stop, and stops there."""

    def __init__(self, folder: Path, name: str, until: int):
        self.folder, self.name, self.until, self.losses = folder, name, until, []

    def on_train_start(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{self.name}-start.ckpt")

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.losses.append(float(trainer.callback_metrics["loss"]))
        if trainer.global_step == self.until:
            trainer.should_stop = True
            trainer.save_checkpoint(self.folder / f"{self.name}-end.ckpt")
            drafter, backbone = for_decoding(module.drafter), whole_state(module.backbone.model)
            unpack(drafter)  # on some processors its weights are packed
            self.held = sum(held_here(parameter) for parameter in module.backbone.parameters())
            self.backbone = hash_of(backbone)
            if trainer.is_global_zero:
                torch.save(drafter.state_dict(), self.folder / f"{self.name}-heads.pt")


def held_here(parameter: torch.Tensor) -> int:
    """How many numbers of a parameter this process holds."""
    if isinstance(parameter, DTensor):
        return parameter.to_local().numel()
    return getattr(parameter, "ds_tensor", parameter).numel()


def hash_of(state: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(state[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def run(
    folder: Path,
    name: str,
    strategy,
    drafter: str = os.environ.get("DRAFTER", "cascade"),
    until: int = STEPS,
    start: str | None = None,
) -> dict:
    """Train to step `until`, from a checkpoint or from nothing; the losses by step and the validation's figures."""
    torch.manual_seed(0)
    sharded = isinstance(strategy, FSDP) or (isinstance(strategy, ZeRO) and strategy.zero_stage_3)
    module = DraftModule(DRAFTERS[drafter], str(folder / "backbone"), learning_rate=0.01, sharded=sharded)
    watch = Watch(folder, name, until)
    trainer = Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        max_steps=STEPS,
        gradient_clip_val=1.0,
        accumulate_grad_batches=ACCUMULATED,
        limit_val_batches=3,
        val_check_interval=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[CheckpointFiles()],
        default_root_dir=folder,
        callbacks=[watch, Acceptance(prompts=3, max_new_tokens=8)],
    )
    trainer.fit(module, datamodule=Data(HALF * ACCUMULATED if start else 0), ckpt_path=start, weights_only=True)
    figures = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {"losses": watch.losses, "val": figures, "backbone": watch.backbone, "held": watch.held}


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in names:
        found = {"first": run(folder, name, strategy_of(name), until=HALF)}
        found["second"] = run(folder, f"{name}-resumed", strategy_of(name), start=str(folder / "single-end.ckpt"))
        if os.environ.get("LOCAL_RANK", "0") == "0":
            (folder / f"{name}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
