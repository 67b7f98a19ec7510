"""What `run.py fit` would take, before anything is loaded: parameters, memory on each device, tokens, disk and time.

Sizes come from a model's config.json and from a step run on fake tensors (mhc.estimate.fake_step, mhc.estimate.memory).
This is what every run has; what trains draft heads is in mhc.estimate.heads, a language model in mhc.estimate.lm.
"""

import resource
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from math import ceil
from pathlib import Path
from typing import NamedTuple

import torch
from jsonargparse import Namespace
from transformers import PreTrainedTokenizerBase

from datamodules.survey import survey
from mhc.errors import UserError
from mhc.estimate.fake_step import StepEstimate, Weights
from mhc.estimate.memory import Sharding, sharding
from mhc.training.trainer_settings import on_gpus, precision_of
from mhc.util.duration import duration
from mhc.util.machine import product_speed

GIB = 2**30
CUDA_CONTEXT = GIB  # CUDA, its libraries and the allocator's gaps on a GPU: customary, not measured here
CPU_LIBRARIES = 256 << 20  # libraries and the allocator on a CPU once they work: 0.1 to 0.3 GiB over seven runs
REACHED = 0.5  # of a large product's speed, by a whole step
LOG_LINE = 400  # bytes of a line of metrics.csv


class Output(NamedTuple):
    """What a run writes: the result, by name, and checkpoints, bytes each; how many of these exist at once, and which."""

    name: str
    result: int
    checkpoint: int
    copies: int
    which: str


class DryRun(ABC):
    """A run of `fit` as its parsed settings describe it. instantiate: makes the objects of a part of the settings, as
    `fit` does. gib: memory of each device, where it is not this machine's. tokenizer: the one the data are cut with;
    prompts: how many of them are decoded at validations; heads: whether draft heads are trained, or the model itself.

    Raises UserError for a model whose config.json is not available, and for data that cannot be read.
    """

    def __init__(
        self,
        settings: Namespace,
        instantiate: Callable[[Namespace], Namespace],
        gib: float | None,
        tokenizer: PreTrainedTokenizerBase,
        prompts: int,
        heads: bool,
    ):
        self.settings, trainer = settings, settings.trainer
        self.data = instantiate(Namespace(data=settings.data.clone())).data
        self.data.tokenizer = tokenizer
        self.rows: int = self.data.batch_size
        self.survey = survey(self.data, prompts, heads)
        self.accumulate: int = trainer.accumulate_grad_batches or 1
        self.shards: Sharding = sharding(trainer)
        self.on_gpu = on_gpus(trainer, elsewhere=bool(gib))
        precision = precision_of(trainer.precision, self.on_gpu)
        self.autocast, self.trained_dtype = precision.autocast, precision.weights
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        self.process = CUDA_CONTEXT if self.on_gpu else own + CPU_LIBRARIES
        self.available = int(gib * GIB) if gib else available(self.on_gpu, self.shards.processes, self.process)

    # ---- what each kind of run estimates

    @abstractmethod
    def step(self, rows: int) -> StepEstimate:
        """A step with so many rows of the data."""

    @abstractmethod
    def memory(self, rows: int, step: StepEstimate) -> tuple[dict[str, int], dict[str, int]]:
        """Bytes on each device by name: what is held all the time, and what comes in turns."""

    @abstractmethod
    def parameters(self, step: StepEstimate) -> list[tuple[str, Weights]]:
        """The models of the run, each with what it is."""

    @abstractmethod
    def loaded(self, step: StepEstimate) -> int:
        """Bytes that the host holds while loading for a GPU."""

    @abstractmethod
    def output(self, step: StepEstimate) -> Output:
        """What the run writes."""

    @abstractmethod
    def operations(self, step: StepEstimate) -> tuple[float, str]:
        """Operations of an epoch on all devices, and a remark."""

    @abstractmethod
    def lighter(self) -> str:
        """What to do where not even one row fits."""

    def product_dtype(self) -> torch.dtype:
        """The precision of products without autocast."""
        return self.trained_dtype

    # ---- what follows from it

    def peak(self, rows: int) -> int:
        """The most bytes on each device."""
        always, in_turn = self.memory(rows, self.step(rows))
        return sum(always.values()) + max(in_turn.values())

    def largest_batch(self) -> int:
        """The largest power of two of rows that fits with a tenth to spare, 0 if not even one does."""
        if self.available is None:
            raise UserError(
                "a batch size is chosen by the memory of the GPU, and no GPU is present: give --data.batch_size"
            )
        rows = 0
        while rows < self.survey.rows and self.peak(max(1, 2 * rows)) <= 0.9 * self.available:
            rows = max(1, 2 * rows)
        return rows

    def steps(self) -> int:
        """Optimizer steps of the run."""
        trainer = self.settings.trainer
        per_epoch = ceil(self.survey.batches / self.shards.processes / self.accumulate)
        limit = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        by_epochs = per_epoch * (epochs or (1 << 62 if limit else 1000))  # 1000 is Lightning's own default
        return min(limit or by_epochs, by_epochs)

    # ---- printing

    def print(self) -> None:
        """Print everything; raises UserError where the memory or the disk is too small."""
        step = self.step(self.rows)
        always, in_turn = self.memory(self.rows, step)
        peak = sum(always.values()) + max(in_turn.values())
        print("a dry run: nothing is loaded, nothing is trained\n")
        for number, (kind, weights) in enumerate(self.parameters(step)):
            print(f"{'' if number else 'parameters':<11} {kind}")
            for part, count in weights.parts.items():
                _line(part, f"{count:,}")
            _line("in all", f"{weights.total:,}")
        kind = "gpu" if self.on_gpu else "cpu"
        longest = self.survey.longest
        print(f"memory      on each of {self.shards.processes} {kind} ({self.shards.name}), rows of {longest} tokens")
        for name, size in always.items():
            _line(name, f"{size / GIB:.2f} GiB")
        print("            and the largest of what comes in turns")
        for name, size in in_turn.items():
            _line(name, f"{size / GIB:.2f} GiB")
        limit = "" if self.available is None else f" of {self.available / GIB:.2f}"
        _line("at its highest, about", f"{peak / GIB:.2f} GiB{limit}")
        if self.on_gpu and (loaded := self.loaded(step)):
            _line("the host while loading", f"{loaded / GIB:.2f} GiB")
        steps = self._print_data()
        disk_problem = self._print_disk(step, steps)
        self._print_time(step, steps)
        if self.available is None:
            print("\nNo GPU is present to compare with: --dry_run 24 compares with one of 24 GiB.")
        elif peak > self.available:
            raise UserError(
                f"this run needs {peak / GIB:.1f} GiB on each device, {self.available / GIB:.1f} are available: "
                f"{self.advice()}"
            )
        if disk_problem:
            raise UserError(disk_problem)

    def _print_data(self) -> int:
        seen, steps = self.survey, self.steps()
        how = "counted" if seen.counted else "estimated from the first of them"
        print(f"data        {seen.rows:,} rows, {seen.tokens:,} tokens, {seen.anchors:,} of them trained at ({how})")
        batch = self.rows * self.shards.processes * self.accumulate
        print(f"            {steps:,} steps of {batch} rows")
        return steps

    def _print_disk(self, step: StepEstimate, steps: int) -> str | None:
        """What is written; the error where the disk is too small."""
        output, trainer = self.output(step), self.settings.trainer
        logs = steps // (trainer.log_every_n_steps or 50) * LOG_LINE
        needed = output.result + output.copies * output.checkpoint + logs
        folder = Path(trainer.default_root_dir or ".").resolve()
        free = shutil.disk_usage(next(path for path in (folder, *folder.parents) if path.exists())).free
        print(
            f"disk        {output.name} {output.result / GIB:.2f} GiB, a checkpoint {output.checkpoint / GIB:.2f} "
            f"({output.which}), logs {logs / 2**20:.1f} MiB: {needed / GIB:.2f} GiB of {free / GIB:.1f} free"
        )
        if needed <= free:
            return None
        return (
            f"this run writes {needed / GIB:.1f} GiB and {free / GIB:.1f} are free at {folder}: make room, or choose "
            "another --trainer.default_root_dir"
        )

    def _print_time(self, step: StepEstimate, steps: int) -> None:
        epochs = steps * self.shards.processes * self.accumulate / self.survey.batches
        per_epoch, remark = self.operations(step)
        speed, how = product_speed(self.on_gpu, self.autocast or self.product_dtype())
        seconds = per_epoch * epochs / self.shards.processes / (speed * REACHED)
        print(
            f"time        about {duration(seconds)}, validations apart, give or take half{remark}; "
            f"{speed:.1e} a second {how}, of which {REACHED:.0%} is assumed to be reached"
        )

    def advice(self) -> str:
        """What to change so that the run fits."""
        rows = self.largest_batch()
        if rows:
            batches = ceil(self.rows / rows) * self.accumulate
            return f"--data.batch_size {rows} fits, with --trainer.accumulate_grad_batches {batches} for the same batch"
        return f"not even one row fits: {self.lighter()}"


def available(on_gpu: bool, processes: int, process: int) -> int | None:
    """Bytes that each process may hold on this machine, the `process` bytes of this one included; None for a GPU where none
    is present."""
    if on_gpu:
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None
    kib = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines())
    return (int(kib["MemAvailable"].split()[0]) * 1024 + process) // processes


def _line(name: str, value: str) -> None:
    print(f"            {name:<36}{value:>18}")
