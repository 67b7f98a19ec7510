"""The dry run that belongs to a run's module, and the batch size that its estimate allows."""

import json
import os
from collections.abc import Callable
from pathlib import Path

from jsonargparse import Namespace

from mhc.errors import UserError
from mhc.estimate.dry_run import GIB, DryRun
from mhc.estimate.heads import HeadsDryRun
from mhc.estimate.lm import LMDryRun
from mhc.lm.module import LMModule
from mhc.training.draft_module import DraftModule
from mhc.training.trainer_settings import class_of
from mhc.util.files import write_json

BATCH_SIZE = "batch_size.json"


def dry_run(settings: Namespace, instantiate: Callable[[Namespace], Namespace], gib: float | None = None) -> DryRun:
    """The dry run of the module that the settings train; see DryRun. Raises UserError for another project's module."""
    module = class_of(settings.model.class_path)
    if issubclass(module, DraftModule):
        return HeadsDryRun(settings, instantiate, gib)
    if issubclass(module, LMModule):
        return LMDryRun(settings, instantiate, gib)
    raise UserError(f"a dry run is for DraftModule and LMModule: {settings.model.class_path} is neither")


def choose_batch_size(settings: Namespace, instantiate: Callable[[Namespace], Namespace], folder: Path) -> None:
    """Set data.batch_size to the largest that fits; the run's folder remembers it, so that a resumed run takes the
    same."""
    path = folder / BATCH_SIZE
    if path.exists():
        rows, why = json.loads(path.read_text(encoding="utf-8"))["batch_size"], f"as {path} says"
    else:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                "several processes would each choose a batch size: run the command with --dry_run in one process "
                f"first, then all take the one in {path}"
            )
        run = dry_run(settings, instantiate)
        rows, why = run.largest_batch(), "the largest power of two that fits by the dry run's estimate"
        gib = (run.available or 0) / GIB
        if not rows:
            raise UserError(f"{gib:.1f} GiB per device are not enough: {run.advice()}")
        write_json(path, {"batch_size": rows, "memory_gib": round(gib, 2)})
    print(f"batch size {rows}, {why}")
    settings.data.init_args.batch_size = rows
