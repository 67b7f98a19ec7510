"""Part 2 of benchmarks/gpu.py: train a model and heads, and decode held-out prompts with them."""

import time
from datetime import timedelta
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import lightning
import torch

from datamodules import ConversationData
from gpu_common import FAMILIES, HEADS, Report, Size
from mhc.backbone.model import Backbone
from mhc.engine import Engine
from mhc.evaluation.decode_benchmark import compare
from mhc.lm.module import LMModule
from mhc.lm.tokenizer import train_tokenizer
from mhc.sampling import GREEDY, Sampling
from mhc.training.draft_module import DraftModule
from mhc.trees.shapes import DynamicTree

SECONDS = 450  # in total, part 1 included, so that it ends within 8 minutes with imports
DECODING = 90  # seconds of that reserved for decoding at the end, compilation included
TRIAL = 12  # training steps for estimating the time of one
SAMPLINGS = {"T=0": GREEDY, "T=1": Sampling(temperature=1.0, seed=0)}


def together(paths: list[str], folder: Path) -> str:
    """One path for all of these: the single one, or a folder of links to their files."""
    if len(paths) == 1:
        return paths[0]
    folder.mkdir()
    for number, path in enumerate(map(Path, paths)):
        for file in [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]:
            (folder / f"{number}-{file.name}").symlink_to(file.resolve())
    return str(folder)


def train_and_decode(report: Report, size: Size, paths: list[str], minutes: float, device: torch.device) -> None:
    """Train a backbone, then every family's heads, and decode with each."""
    with TemporaryDirectory() as temporary:
        model = str(Path(temporary) / "model")
        with report.part("trained/backbone"):
            data = ConversationData(
                together(paths, Path(temporary) / "data"),
                max_length=size.length,
                batch_size=size.batch,
                limit=size.conversations,
                pack=True,
            )
            texts = (turn["content"] for conversation in data.conversations("train") for turn in conversation.messages)
            train_tokenizer(texts, size.trained["vocab_size"]).save_pretrained(model)
            module = LMModule(size.trained, tokenizer=model, learning_rate=1.5e-3)
            data.tokenizer = module.tokenizer
            data.setup()
            seconds = min(60 * minutes, (SECONDS - DECODING - report.seconds) / (1 + len(FAMILIES) / 4))
            if seconds <= 0:
                raise TimeoutError("part 1 took too long: no time is left for part 2")
            report.log(f"training for {seconds:.0f} s on {data.totals['train'].tokens:,} tokens of {', '.join(paths)}")
            steps = fit(module, data, seconds, device)
            report.add(
                "trained/backbone",
                parameters_millions=sum(p.numel() for p in module.model.parameters()) / 1e6,
                steps=steps,
                validation_loss=measured_by(module, data, device)["val/loss"],
            )
            report.extra["training"] = {"data": paths, "tokens": data.totals["train"].tokens, "seconds": round(seconds)}
            module.model.save_pretrained(model)
        if "trained/backbone" in report.failed:
            return
        prompts = sorted((prompt.ids for prompt in data.prompts("test", size.prompts)), key=len, reverse=True)
        backbone = Backbone.load(model, device=str(device))
        tree = DynamicTree(width=4, depth=HEADS, budget=32)
        report.extra["training"]["tree"] = tree.describe()
        for family, build in FAMILIES.items():
            case = f"trained/{family}"
            with report.part(f"{case}: training"):
                module = DraftModule(build, model, learning_rate=2e-3)
                fit(module, data, seconds / 4, device)
                measured = measured_by(module, data, device)
            if f"{case}: training" in report.failed:
                continue
            top1 = {f"head{head}_top1": measured[f"val/head{head}_top1"] for head in range(HEADS)}
            module.to(device)
            for name, sampling in SAMPLINGS.items():
                for compiled in (True, False):
                    part = f"{case}/{name}: decoding{'' if compiled else ', eager'}"
                    with report.part(part):
                        engine = Engine(backbone, module.drafter, tree, compile=compiled)
                        report.add(f"{case}/{name}", **decoded(engine, prompts, size.new, sampling), **top1)
                    if part not in report.failed:
                        break


class Clock(lightning.Callback):
    """Records when each training step ended."""

    def __init__(self):
        self.ends: list[float] = []

    def on_train_batch_end(self, *_):
        self.ends.append(time.perf_counter())


def fit(module, data, seconds: float, device: torch.device) -> int:
    """Train for about this many seconds; the time of a few first steps decides how many. Returns the steps made."""
    started, clock = time.perf_counter(), Clock()
    trainer(device, max_steps=TRIAL, callbacks=[clock]).fit(module, data)
    step = median(b - a for a, b in zip(clock.ends[TRIAL // 2 :], clock.ends[TRIAL // 2 + 1 :]))
    left = max(0.0, seconds - (time.perf_counter() - started))
    whole = trainer(device, max_steps=max(2, int(left / step)), max_time=timedelta(seconds=1.1 * left + 1))
    whole.fit(module, data)
    return whole.global_step


def measured_by(module, data, device: torch.device) -> dict[str, float]:
    """The figures of a short validation."""
    validation = trainer(device, limit_val_batches=20)
    validation.validate(module, data, verbose=False)
    return {name: float(value) for name, value in validation.callback_metrics.items()}


def trainer(device: torch.device, **options: Any):
    """A Lightning trainer that writes and prints nothing."""
    on_gpu = device.type == "cuda"
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
    return lightning.Trainer(
        accelerator="gpu" if on_gpu else "cpu",
        devices=1,
        precision="bf16-mixed" if on_gpu else "32-true",
        max_epochs=-1,
        num_sanity_val_steps=0,
        gradient_clip_val=1.0,
        **dict.fromkeys(quiet, False),
        **{"limit_val_batches": 0, **options},
    )


def decoded(engine: Engine, prompts: list[list[int]], new: int, sampling: Sampling) -> dict[str, list[float] | float]:
    """The figures of `compare`. The longest and the shortest prompt are decoded beforehand, so that buffers and graphs of
    all lengths exist before the timing."""
    for prompt in (prompts[0], prompts[-1]):
        for plain in (True, False):
            next(engine.generate_ids([prompt], new, plain=plain, sampling=sampling))
    figures = compare(engine, prompts, new, sampling=sampling)
    return {
        "tokens_per_step": figures["tokens_per_step"],
        "speedup_vs_plain": [figures["speedup_q1"], figures["speedup"], figures["speedup_q3"]],
        "identical": figures["identical"] / figures["prompts"],
        "plain_tokens_per_second": figures["plain_tokens_per_second"],
        "tokens_per_second": figures["tokens_per_second"],
    }
