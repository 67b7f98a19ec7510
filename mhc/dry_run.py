"""What `run.py fit` would take, told before anything is loaded: parameters, memory on each device, tokens, disk and
time.

Sizes come from the backbone's config.json and from a step that is rehearsed without contents (mhc.rehearsal,
mhc.memory).
"""

import json
import os
import resource
import shutil
import time
from dataclasses import replace
from math import ceil
from pathlib import Path

import torch
from jsonargparse import Namespace

from mhc.backbone import Backbone, load_config, load_tokenizer
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.files import write_json
from mhc.memory import Decoding, Setting, Sharding, memory, sharding, weight_bytes
from mhc.page import duration
from mhc.rehearsal import Rehearsal, rehearse
from mhc.trainer_settings import class_of, on_gpus, precision_of

GIB = 2**30
CONTEXT = GIB  # of CUDA, its libraries and the allocator's gaps on a GPU: customary, not measured here
WORKING = 256 << 20  # of libraries and the allocator on a CPU once they work: 0.1 to 0.3 GiB over seven runs
REACHED = 0.5  # of a large product's speed, by a whole step
STATED = 1e14  # operations a second of a GPU that is not at hand: a third of an A100's data sheet in bf16
LOG_LINE = 400  # bytes of a line of metrics.csv
BATCH_SIZE = "batch_size.json"


class DryRun:
    """A run of `fit` as its parsed configuration describes it. gib: memory of each device, where it is not this
    machine's.

    Raises UserError for a backbone whose config.json cannot be had, and for data that cannot be read.
    """

    def __init__(self, chosen: Namespace, gib: float | None = None):
        from datamodules.survey import survey

        model = chosen.model.init_args
        if "drafter" not in model:
            raise UserError(f"a dry run is for draft heads: {chosen.model.class_path} has none")
        self.chosen, trainer = chosen, chosen.trainer
        self.config = load_config(model.backbone)
        self.data = class_of(chosen.data.class_path)(**chosen.data.init_args)
        self.data.tokenizer = load_tokenizer(model.backbone)
        told = next((c.init_args for c in trainer.callbacks or [] if c.class_path.endswith("Acceptance")), None)
        self.survey = survey(self.data, told.prompts if told else 0)
        self.decoding = told and Decoding(told.prompts, self.survey.prompt + told.max_new_tokens)
        self.shards: Sharding = sharding(trainer)
        on_gpu = on_gpus(trainer, elsewhere=bool(gib))
        precision = precision_of(trainer.precision, on_gpu)
        self.setting = Setting(
            rows=self.data.batch_size,
            length=self.survey.longest,
            anchors=self.survey.batch_anchors,
            dtype=getattr(torch, model.dtype),
            autocast=precision.autocast,
            heads_dtype=precision.weights,
            objective=model.objective,
            quantize=model.quantize,
            on_gpu=on_gpu,
            collected=not hasattr(self.data, "conversations"),
        )
        self.process = CONTEXT if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + WORKING
        self.there = gib * GIB if gib else available(on_gpu, self.shards.processes, self.process)

    def build(self, backbone: Backbone) -> Drafter:
        drafter = self.chosen.model.init_args.drafter
        return class_of(drafter.class_path)(backbone, **drafter.get("init_args", {}))

    def rehearsed(self, rows: int) -> Rehearsal:
        """A step with so many rows."""
        chosen = self.setting
        anchors = ceil(chosen.anchors * rows / chosen.rows)
        kinds = chosen.objective, chosen.dtype, chosen.autocast, chosen.heads_dtype
        return rehearse(self.config, self.build, rows, chosen.length, anchors, *kinds)

    def needed(self, rows: int, found: Rehearsal | None = None) -> int:
        """Bytes on each device at the highest."""
        standing, turns = self.memory(rows, found or self.rehearsed(rows))
        return sum(standing.values()) + max(turns.values())

    def memory(self, rows: int, found: Rehearsal) -> tuple[dict[str, int], dict[str, int]]:
        setting = replace(self.setting, rows=rows)
        return memory(found, setting, self.shards, self.config, self.decoding, self.process)

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
        each = ceil(self.survey.batches / self.shards.processes / (trainer.accumulate_grad_batches or 1))
        limit = trainer.max_steps if trainer.max_steps and trainer.max_steps > 0 else None
        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        by_epochs = each * (epochs or (1 << 62 if limit else 1000))  # 1000 is Lightning's own default
        return min(limit or by_epochs, by_epochs)

    # ---- telling

    def tell(self) -> None:
        """Print everything; raises UserError where the memory or the disk is too small."""
        setting, found = self.setting, self.rehearsed(self.setting.rows)
        standing, turns = self.memory(setting.rows, found)
        peak = sum(standing.values()) + max(turns.values())
        print("a dry run: nothing is loaded, nothing is trained\n")
        self._tell_parameters(found)
        kind = "gpu" if setting.on_gpu else "cpu"
        print(
            f"memory      on each of {self.shards.processes} {kind} ({self.shards.name}), rows of {setting.length} tokens"
        )
        for name, size in standing.items():
            _line(name, f"{size / GIB:.2f} GiB")
        print("            and the largest of what comes in turns")
        for name, size in turns.items():
            _line(name, f"{size / GIB:.2f} GiB")
        there = "" if self.there is None else f" of {self.there / GIB:.2f}"
        _line("at its highest, about", f"{peak / GIB:.2f} GiB{there}")
        if setting.on_gpu and not self.chosen.model.init_args.sharded:
            _line("the host while loading", f"{weight_bytes(found.backbone, setting.dtype, None) / GIB:.2f} GiB")
        steps = self._tell_data()
        disk = self._tell_disk(found, steps)
        self._tell_time(found, steps)
        if self.there is None:
            print("\nThere is no GPU here to compare with: --dry_run 24 compares with one of 24 GiB.")
        elif peak > self.there:
            raise UserError(
                f"this run needs {peak / GIB:.1f} GiB on each device and {self.there / GIB:.1f} are there: "
                f"{self._advice()}"
            )
        if disk:
            raise UserError(disk)

    def _tell_parameters(self, found: Rehearsal) -> None:
        chosen = self.chosen.model.init_args
        held = self.setting.quantize or chosen.dtype
        frozen = f"{chosen.backbone}, frozen, {held}"
        heads = f"{chosen.drafter.class_path.rpartition('.')[2]}, trained"
        for title, named, weights in (("parameters", frozen, found.backbone), ("", heads, found.drafter)):
            print(f"{title:<11} {named}")
            for part, count in weights.parts.items():
                _line(part, f"{count:,}")
            _line("in all", f"{weights.total:,}")

    def _tell_data(self) -> int:
        seen, steps = self.survey, self.steps()
        how = "counted" if seen.counted else "estimated from the first of them"
        print(f"data        {seen.rows:,} rows, {seen.tokens:,} tokens, {seen.anchors:,} of them trained at ({how})")
        batch = self.setting.rows * self.shards.processes * (self.chosen.trainer.accumulate_grad_batches or 1)
        print(f"            {steps:,} steps of {batch} rows")
        return steps

    def _tell_disk(self, found: Rehearsal, steps: int) -> str | None:
        """What is written; a complaint where there is no room for it."""
        heads, trainer = 4 * found.drafter.total, self.chosen.trainer
        logs = steps // (trainer.log_every_n_steps or 50) * LOG_LINE
        # last.ckpt and best.ckpt, of each the one before, and one being written; two moments in each
        needed = heads + 5 * 3 * heads + logs
        folder = Path(trainer.default_root_dir or ".").resolve()
        free = shutil.disk_usage(next(at for at in (folder, *folder.parents) if at.exists())).free
        print(
            f"disk        heads {heads / GIB:.2f} GiB, a checkpoint {3 * heads / GIB:.2f} (last and best, the one "
            f"before each, one being written), logs {logs / 2**20:.1f} MiB: {needed / GIB:.2f} GiB of {free / GIB:.1f} free"
        )
        if needed <= free:
            return None
        return (
            f"this run writes {needed / GIB:.1f} GiB and {free / GIB:.1f} are free at {folder}: make room, or choose "
            "another --trainer.default_root_dir"
        )

    def _tell_time(self, found: Rehearsal, steps: int) -> None:
        seen, setting = self.survey, self.setting
        epochs = steps * self.shards.processes * (self.chosen.trainer.accumulate_grad_batches or 1) / seen.batches
        forward = 0 if setting.collected else found.forward_operations * seen.tokens / (setting.rows * setting.length)
        heads = found.heads_operations * seen.anchors / setting.anchors
        work = (forward + heads) * epochs / self.shards.processes
        rate, how = speed(setting.on_gpu, setting.autocast or setting.dtype)
        seconds = work / (rate * REACHED)
        print(
            f"time        about {duration(seconds)}, validations apart, give or take half (kl and lk more): "
            f"{work:.1e} operations on each device, {heads / max(1.0, forward + heads):.0%} of them of the heads; "
            f"{rate:.1e} a second {how}, of which {REACHED:.0%} is taken to be reached"
        )

    def _advice(self) -> str:
        rows = self.largest_batch()
        if rows:
            fewer = ceil(self.setting.rows / rows) * (self.chosen.trainer.accumulate_grad_batches or 1)
            return f"--data.batch_size {rows} fits, with --trainer.accumulate_grad_batches {fewer} for the same batch"
        return (
            "not even one row fits: hold the backbone in fewer bytes (--model.dtype bfloat16, --model.quantize int8), "
            "shorten --data.max_length, or shard it over several devices (configs/trainer/zero3.yaml)"
        )


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
        run = DryRun(chosen)
        rows, why = run.largest_batch(), "the largest power of two that fits by the dry run's estimate"
        if not rows:
            raise UserError(f"{run.there / GIB:.1f} GiB on each device do not do: {run._advice()}")
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
