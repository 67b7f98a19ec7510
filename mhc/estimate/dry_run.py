"""What `run.py fit` would take, told before anything is loaded: parameters, memory on each device, tokens, disk and
time.

Sizes come from a model's config.json and from a step that is rehearsed without contents (mhc.estimate.fake_step, mhc.estimate.memory).
Here is what every run has; what trains draft heads is in mhc.estimate.heads, a language model in mhc.estimate.lm.
"""

import json
import os
import resource
import shutil
import time
from abc import ABC, abstractmethod
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jsonargparse import Namespace

from mhc.errors import UserError
from mhc.estimate.fake_step import Rehearsal, Weights
from mhc.estimate.memory import Sharding, sharding
from mhc.reports.html import duration
from mhc.training.trainer_settings import class_of, on_gpus, precision_of
from mhc.util.files import write_json

GIB = 2**30
CONTEXT = GIB  # of CUDA, its libraries and the allocator's gaps on a GPU: customary, not measured here
WORKING = 256 << 20  # of libraries and the allocator on a CPU once they work: 0.1 to 0.3 GiB over seven runs
REACHED = 0.5  # of a large product's speed, by a whole step
STATED = 1e14  # operations a second of a GPU that is not at hand: a third of an A100's data sheet in bf16
LOG_LINE = 400  # bytes of a line of metrics.csv
BATCH_SIZE = "batch_size.json"


class Written(NamedTuple):
    """What a run writes: the result, by name, and checkpoints, bytes each; which of these lie there at once."""

    name: str
    result: int
    checkpoint: int
    copies: int
    which: str


class DryRun(ABC):
    """A run of `fit` as its parsed configuration describes it. gib: memory of each device, where it is not this
    machine's. tokenizer: the one the data are cut with; prompts: how many of them are decoded at validations; heads:
    whether draft heads are trained, or the model itself.

    Raises UserError for a model whose config.json cannot be had, and for data that cannot be read.
    """

    def __init__(self, chosen: Namespace, gib: float | None, tokenizer: Any, prompts: int, heads: bool):
        from datamodules.survey import survey

        self.chosen, trainer = chosen, chosen.trainer
        self.data = class_of(chosen.data.class_path)(**chosen.data.init_args)
        self.data.tokenizer = tokenizer
        self.rows = self.data.batch_size
        self.survey = survey(self.data, prompts, heads)
        self.accumulate: int = trainer.accumulate_grad_batches or 1
        self.shards: Sharding = sharding(trainer)
        self.on_gpu = on_gpus(trainer, elsewhere=bool(gib))
        precision = precision_of(trainer.precision, self.on_gpu)
        self.autocast, self.trained_dtype = precision.autocast, precision.weights
        self.process = CONTEXT if self.on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + WORKING
        self.there = gib * GIB if gib else available(self.on_gpu, self.shards.processes, self.process)

    # ---- what a kind of run says of itself

    @abstractmethod
    def rehearsed(self, rows: int) -> Rehearsal:
        """A step with so many rows of the data."""

    @abstractmethod
    def memory(self, rows: int, found: Rehearsal) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes on each device by name: what stands all the time, and what comes in turns."""

    @abstractmethod
    def parameters(self, found: Rehearsal) -> list[tuple[str, Weights]]:
        """The models of the run, each with what it is."""

    @abstractmethod
    def loaded(self, found: Rehearsal) -> int:
        """Bytes that the host holds while loading for a GPU."""

    @abstractmethod
    def written(self, found: Rehearsal) -> Written: ...

    @abstractmethod
    def work(self, found: Rehearsal) -> tuple[float, str]:
        """Operations of an epoch on all devices, and a remark."""

    @abstractmethod
    def lighter(self) -> str:
        """What to do where not even one row fits."""

    # ---- what follows from it

    def needed(self, rows: int, found: Rehearsal | None = None) -> int:
        """Bytes on each device at the highest."""
        standing, turns = self.memory(rows, found or self.rehearsed(rows))
        return sum(standing.values()) + max(turns.values())

    def largest_batch(self) -> int:
        """The largest power of two of rows that fits with a tenth to spare, 0 if not even one does."""
        if self.there is None:
            raise UserError(
                "a batch size is found by the memory of the GPU, and there is none here: give --data.batch_size"
            )
        rows = 0
        while rows < self.survey.rows and self.needed(max(1, 2 * rows)) <= 0.9 * self.there:
            rows = max(1, 2 * rows)
        return rows

    def steps(self) -> int:
        """Optimizer steps of the run."""
        trainer = self.chosen.trainer
        each = ceil(self.survey.batches / self.shards.processes / self.accumulate)
        limit = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        by_epochs = each * (epochs or (1 << 62 if limit else 1000))  # 1000 is Lightning's own default
        return min(limit or by_epochs, by_epochs)

    # ---- telling

    def tell(self) -> None:
        """Print everything; raises UserError where the memory or the disk is too small."""
        found = self.rehearsed(self.rows)
        standing, turns = self.memory(self.rows, found)
        peak = sum(standing.values()) + max(turns.values())
        print("a dry run: nothing is loaded, nothing is trained\n")
        for number, (kind, weights) in enumerate(self.parameters(found)):
            print(f"{'' if number else 'parameters':<11} {kind}")
            for part, count in weights.parts.items():
                _line(part, f"{count:,}")
            _line("in all", f"{weights.total:,}")
        kind = "gpu" if self.on_gpu else "cpu"
        long = self.survey.longest
        print(f"memory      on each of {self.shards.processes} {kind} ({self.shards.name}), rows of {long} tokens")
        for name, size in standing.items():
            _line(name, f"{size / GIB:.2f} GiB")
        print("            and the largest of what comes in turns")
        for name, size in turns.items():
            _line(name, f"{size / GIB:.2f} GiB")
        there = "" if self.there is None else f" of {self.there / GIB:.2f}"
        _line("at its highest, about", f"{peak / GIB:.2f} GiB{there}")
        if self.on_gpu and (loaded := self.loaded(found)):
            _line("the host while loading", f"{loaded / GIB:.2f} GiB")
        steps = self._tell_data()
        disk = self._tell_disk(found, steps)
        self._tell_time(found, steps)
        if self.there is None:
            print("\nThere is no GPU here to compare with: --dry_run 24 compares with one of 24 GiB.")
        elif peak > self.there:
            raise UserError(
                f"this run needs {peak / GIB:.1f} GiB on each device and {self.there / GIB:.1f} are there: {self.advice()}"
            )
        if disk:
            raise UserError(disk)

    def _tell_data(self) -> int:
        seen, steps = self.survey, self.steps()
        how = "counted" if seen.counted else "estimated from the first of them"
        print(f"data        {seen.rows:,} rows, {seen.tokens:,} tokens, {seen.anchors:,} of them trained at ({how})")
        batch = self.rows * self.shards.processes * self.accumulate
        print(f"            {steps:,} steps of {batch} rows")
        return steps

    def _tell_disk(self, found: Rehearsal, steps: int) -> str | None:
        """What is written; a complaint where there is no room for it."""
        kept, trainer = self.written(found), self.chosen.trainer
        logs = steps // (trainer.log_every_n_steps or 50) * LOG_LINE
        needed = kept.result + kept.copies * kept.checkpoint + logs
        folder = Path(trainer.default_root_dir or ".").resolve()
        free = shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.exists())).free
        print(
            f"disk        {kept.name} {kept.result / GIB:.2f} GiB, a checkpoint {kept.checkpoint / GIB:.2f} ({kept.which}), "
            f"logs {logs / 2**20:.1f} MiB: {needed / GIB:.2f} GiB of {free / GIB:.1f} free"
        )
        if needed <= free:
            return None
        return (
            f"this run writes {needed / GIB:.1f} GiB and {free / GIB:.1f} are free at {folder}: make room, or choose "
            "another --trainer.default_root_dir"
        )

    def _tell_time(self, found: Rehearsal, steps: int) -> None:
        epochs = steps * self.shards.processes * self.accumulate / self.survey.batches
        each, remark = self.work(found)
        work = each * epochs / self.shards.processes
        rate, how = speed(self.on_gpu, self.autocast or self.computed_in())
        seconds = work / (rate * REACHED)
        print(
            f"time        about {duration(seconds)}, validations apart, give or take half{remark}; "
            f"{rate:.1e} a second {how}, of which {REACHED:.0%} is taken to be reached"
        )

    def computed_in(self) -> torch.dtype:
        """The precision of products where nothing is cast on the way."""
        return self.trained_dtype

    def advice(self) -> str:
        rows = self.largest_batch()
        if rows:
            fewer = ceil(self.rows / rows) * self.accumulate
            return f"--data.batch_size {rows} fits, with --trainer.accumulate_grad_batches {fewer} for the same batch"
        return f"not even one row fits: {self.lighter()}"


def dry_run(chosen: Namespace, gib: float | None = None) -> DryRun:
    """The dry run of whatever module is to be trained. Raises UserError for one that is not this project's."""
    from mhc.estimate.heads import HeadsDryRun
    from mhc.estimate.lm import LMDryRun
    from mhc.lm.module import LMModule
    from mhc.training.draft_module import DraftModule

    kind = class_of(chosen.model.class_path)
    for module, told in ((DraftModule, HeadsDryRun), (LMModule, LMDryRun)):
        if issubclass(kind, module):
            return told(chosen, gib)
    raise UserError(f"a dry run is for DraftModule and LMModule: {chosen.model.class_path} is neither")


def choose_batch_size(chosen: Namespace, folder: Path) -> None:
    """Set data.batch_size to the largest that fits; the run's folder remembers it, so that a resumed run takes the
    same."""
    known = folder / BATCH_SIZE
    if known.exists():
        rows, why = json.loads(known.read_text())["batch_size"], f"as {known} says"
    else:
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                "several processes would each choose a batch size: run the command with --dry_run in one process "
                f"first, then all take the one in {known}"
            )
        run = dry_run(chosen)
        rows, why = run.largest_batch(), "the largest power of two that fits by the dry run's estimate"
        if not rows:
            raise UserError(f"{run.there / GIB:.1f} GiB on each device do not do: {run.advice()}")
        write_json(known, {"batch_size": rows, "memory_gib": round(run.there / GIB, 2)})
    print(f"batch size {rows}, {why}")
    chosen.data.init_args.batch_size = rows


def available(on_gpu: bool, processes: int, process: int) -> int | None:
    """Bytes that each process may hold here, this one's own included; None for a GPU that is not here."""
    if on_gpu:
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    told = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return (int(told["MemAvailable"].split()[0]) * 1024 + process) // processes


def speed(on_gpu: bool, dtype: torch.dtype) -> tuple[float, str]:
    """Floating-point operations a second of a large product, and how that is known."""
    if on_gpu and not torch.cuda.is_available():
        return STATED, "(a GPU is not here: an assumption)"
    device, size = ("cuda", 8192) if on_gpu else ("cpu", 1024)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    spent = []
    for _ in range(8):
        started = time.perf_counter()
        (left @ right).sum().item()
        spent.append(time.perf_counter() - started)
    return 2 * size**3 / min(spent), f"measured here in {str(dtype).rpartition('.')[2]}"


def _line(name: str, value: str) -> None:
    print(f"            {name:<36}{value:>18}")
