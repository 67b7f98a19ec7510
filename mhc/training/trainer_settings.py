"""The trainer's parsed settings, checked before anything is loaded: device, precision, strategy.

`fit`, `validate`, `test` and the dry run refuse the same ones. (Lightning's own checks come late, behind a loaded
backbone, and as tracebacks.)
"""

from importlib import import_module
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy

from mhc.distributed.strategies import Packages, ZeRO
from mhc.errors import UserError

NAMES = ("auto", "ddp")  # strategies that need no arguments
FILES = "a file of configs/trainer (zero2.yaml, zero3.yaml, zero3-offload.yaml, fsdp.yaml)"
LOW = {"16": torch.float16, "bf16": torch.bfloat16}


def require_trainer(trainer: Namespace, dtype: str, dry_run: float | None) -> None:
    """Raise UserError for settings that cannot train heads on a backbone held in `dtype`. dry_run: None for a real
    run, 0 for a dry run on this machine, or the GiB of each GPU of another machine."""
    on_gpu = on_gpus(trainer, elsewhere=bool(dry_run))
    present = torch.cuda.is_available() or torch.backends.mps.is_available()
    if on_gpu and dry_run is None and not present:
        raise UserError(
            f"--trainer.accelerator {trainer.accelerator} and no GPU is found: use configs/trainer/cpu.yaml, or estimate "
            "what the run takes on GPUs of 24 GiB with --dry_run 24"
        )
    require_precision(dtype, trainer.precision, on_gpu)
    require_strategy(trainer.strategy, on_gpu, elsewhere=dry_run is not None)


def on_gpus(trainer: Namespace, elsewhere: bool = False) -> bool:
    """Whether the trainer computes on GPUs. elsewhere: on another machine, which has some."""
    present = elsewhere or torch.cuda.is_available()
    return trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and present)


# ---- precision


class Precision(NamedTuple):
    """autocast: what products are computed in, where it is not what weights are held in. weights: the heads' dtype; the
    trainer converts the backbone to it as well, unless it is float32."""

    autocast: torch.dtype | None
    weights: torch.dtype


def precision_of(setting: str | int | None, on_gpu: bool) -> Precision:
    """What Lightning makes of trainer.precision; on a CPU it computes 16-mixed in bf16."""
    bits, _, kind = str(setting or "32-true").partition("-")
    low = LOW.get(bits)
    if low and kind != "true":
        return Precision(low if on_gpu else torch.bfloat16, torch.float32)
    return Precision(None, low or (torch.float64 if bits == "64" else torch.float32))


def require_precision(dtype: str, precision: str | int | None, on_gpu: bool) -> None:
    """Raise UserError unless heads can learn from a backbone that is held in `dtype`: they meet its features and its
    unembedding in their own precision."""
    held, chosen = getattr(torch, dtype), precision_of(precision, on_gpu)
    if chosen.weights != torch.float32 or held in (torch.float32, chosen.autocast):
        return
    fitting = "16-mixed" if held == torch.float16 and on_gpu else "bf16-mixed"
    instead = "" if held == precision_of(fitting, on_gpu).autocast else " with --model.dtype bfloat16"
    raise UserError(
        f"a backbone in {dtype} does not go with --trainer.precision {precision or '32-true'} on a {'GPU' if on_gpu else 'CPU'}: "
        f"set --trainer.precision {fitting}{instead}"
    )


# ---- strategy


def require_strategy(strategy: Any, on_gpu: bool, elsewhere: bool = False) -> None:
    """Raise UserError for a strategy, as a command line or a file gives it, that this project does not support, that needs
    GPUs where the run is on a CPU, or that lacks a package, unless it runs elsewhere. (jsonargparse, which makes them, would hide
    their constructors' errors.)"""
    if strategy is None or strategy in NAMES:
        return
    if isinstance(strategy, str):
        raise UserError(f"strategy '{strategy}': choose {' or '.join(NAMES)}, or {FILES}")
    kind = class_of(strategy.class_path)
    plain = issubclass(kind, (DDPStrategy, SingleDeviceStrategy)) and not issubclass(kind, DeepSpeedStrategy)
    if not plain and not issubclass(kind, ZeRO):
        raise UserError(
            f"strategy {strategy.class_path} writes no checkpoints that other strategies can resume from: use {FILES}"
        )
    if issubclass(kind, Packages):
        if kind.gpus_only and not on_gpu:
            raise UserError(
                f"{kind.__name__} needs GPUs, and this run is on a CPU: use ddp.yaml or fsdp.yaml, or estimate what "
                "it takes on GPUs of 24 GiB with --dry_run 24"
            )
        if not elsewhere:
            kind.require_packages()


def class_of(path: str) -> type:
    """The class of a class_path."""
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name)
