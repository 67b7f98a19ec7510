"""Runs of `run.py fit` that are killed at some moment, and how what becomes of them differs from an undisturbed run.

Every process of a run notes the rows it trains on (Watch); the log tells the losses; the heads are compared bit by bit.
"""

import csv
import hashlib
import json
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning import Callback
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.checkpoints.training_file import CheckpointFiles
from mhc.lm.tokenizer import train_tokenizer
from run import main

ROOT = Path(__file__).parents[2]
MEASURED = ("train/tokens_per_second", "train/memory_mib")  # of the machine: never the same twice
COMPARED = ("differing_lines", "repeated_samples", "skipped_samples", "differing_tensors")


class Watch(Callback):
    """Appends a line to batches-<process>.jsonl in default_root_dir before every batch that is trained on: who trains, the
    optimizer steps so far, the epoch, and a hash of every row, padding apart."""

    def on_train_batch_start(self, trainer, module, batch, index):
        pad = module.tokenizer.pad_token_id
        rows = [json.dumps(row).encode() for ids in batch["ids"].tolist() if (row := _without_end(ids, pad))]
        line = {
            "process": os.getpid(),
            "step": trainer.global_step,
            "epoch": trainer.current_epoch,
            "rows": [hashlib.sha256(row).hexdigest()[:16] for row in rows],
        }
        with open(
            Path(trainer.default_root_dir) / f"batches-{trainer.global_rank}.jsonl", "a", encoding="utf-8"
        ) as file:
            file.write(json.dumps(line) + "\n")


def _without_end(ids: list[int], pad: int) -> list[int]:
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids


def tiny_model(folder: Path) -> tuple[Path, Path]:
    """A random Llama with its tokenizer in a folder, and a file of 48 conversations of different lengths."""
    texts = [
        f"What is {a} plus {b}? {a} plus {b} is {'very surely ' * (a % 3)}{a + b}." for a in range(12) for b in range(4)
    ]
    tokenizer = train_tokenizer(texts, 280)
    sizes = dict(hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, vocab_size=280)
    ends = dict(bos_token_id=None, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("llama", max_position_embeddings=256, **sizes, **ends)
    )
    model.save_pretrained(folder / "backbone")
    tokenizer.save_pretrained(folder / "backbone")
    split = (text.partition("? ") for text in texts)
    rows = [{"question": asked + "?", "answer": said} for asked, _, said in split]
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "backbone", folder / "data.json"


def fitting(backbone: Path, data: Path, folder: Path, *more: str) -> list[str]:
    """The arguments that train small cascade heads with a roll-out, that is, with dice; every step is logged."""
    configs = ("quickstart", "trainer/cpu", "drafter/cascade")
    return [
        "fit",
        *(part for name in configs for part in ("--config", str(ROOT / f"configs/{name}.yaml"))),
        *("--model.backbone", str(backbone), "--model.drafter.init_args.heads", "3"),
        *("--model.drafter.init_args.rollout", "0.5", "--data.path", str(data), "--data.batch_size", "4"),
        *("--trainer.max_epochs", "3", "--trainer.log_every_n_steps", "1", "--checkpoint.every_n_steps", "4"),
        *("--trainer.callbacks.prompts", "2", "--trainer.callbacks.max_new_tokens", "8"),
        *("--trainer.callbacks+=tests.helpers.killed_runs.Watch", "--trainer.default_root_dir", str(folder), *more),
    ]


def language_modelling(backbone: Path, data: Path, folder: Path, *more: str) -> list[str]:
    """The arguments that train a small language model with that backbone's tokenizer."""
    sizes = dict(model_type="llama", vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
    return [
        *("fit", "--config", str(ROOT / "configs/lm/pocket.yaml"), "--trainer.precision", "32-true"),
        *("--model.init_args.tokenizer", str(backbone), "--model.init_args.compile", "false"),
        *("--model.init_args.model", json.dumps(sizes | {"num_attention_heads": 4})),
        *("--data.path", str(data), "--data.limit", "null", "--data.max_length", "48", "--data.batch_size", "2"),
        *("--trainer.max_steps", "19", "--trainer.val_check_interval", "5", "--trainer.log_every_n_steps", "1"),
        *("--trainer.callbacks+=tests.helpers.killed_runs.Watch", "--trainer.default_root_dir", str(folder)),
        *("--checkpoint.every_n_steps", "2", *more),
    ]


def run(
    arguments: list[str],
    folder: Path,
    stop_at: int | None = None,
    fresh: bool = True,
    how: signal.Signals = signal.SIGKILL,
    before: Callable[[], Any] = lambda: None,
) -> int:
    """The status of a run in `folder`, -9 where it was killed. Some time after it had begun step `stop_at` all its processes
    are sent the signal `how`. fresh: in an interpreter of its own; otherwise in a copy of this process, which is quick to
    start. before: called in it first. What it says is added to <folder>.txt."""
    told, notes = folder.with_suffix(".txt"), folder / "batches-0.jsonl"
    behind = notes.stat().st_size if notes.exists() else 0
    child = os.fork()
    if not child:
        os.setsid()
        for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.chdir(ROOT)
        before()
        if fresh:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, str(ROOT / "run.py"), *arguments], environment)
        try:
            os._exit(main(arguments))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    while stop_at is not None and begun(folder, behind) < stop_at:
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.001)
    if stop_at is not None:
        time.sleep(random.uniform(0, 0.01))
        os.killpg(child, how)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def begun(folder: Path, behind: int = 0) -> int:
    """The furthest step that runs in this folder have begun, as of the notes behind so many bytes; -1 for none."""
    try:
        with open(folder / "batches-0.jsonl", encoding="utf-8") as file:
            file.seek(behind)
            return max((json.loads(line)["step"] for line in file if line.endswith("\n")), default=-1)
    except FileNotFoundError:
        return -1


def trained_rows(folder: Path) -> Counter:
    """How often each row went into the heads, by epoch: of a stopped run what the next one built upon."""
    counts: Counter = Counter()
    for path in folder.glob("batches-*.jsonl"):
        runs: dict[int, list[dict[str, Any]]] = {}
        for line in path.read_text().splitlines():
            note = json.loads(line)
            runs.setdefault(note["process"], []).append(note)
        reached = [*[notes[0]["step"] for notes in runs.values()][1:], sys.maxsize]
        for end, notes in zip(reached, runs.values()):
            counts.update((note["epoch"], row) for note in notes if note["step"] < end for row in note["rows"])
    return counts


def log_lines(folder: Path) -> list[dict[str, str]]:
    """The lines of the newest log, each with the figures it has, those of the machine apart."""
    newest = max(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    with open(newest, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    return [{name: value for name, value in line.items() if value and name not in MEASURED} for line in lines]


def differences(whole: Path, resumed: Path) -> dict[str, int]:
    """COMPARED: lines of the logs, rows that were trained on, tensors of heads and optimizer, of an undisturbed run and of
    one that was killed and went on."""
    here, there = trained_rows(whole), trained_rows(resumed)
    states = [tensors(CheckpointFiles().load_checkpoint(folder / "last.ckpt")) for folder in (whole, resumed)]
    counts = (
        sum(one != two for one, two in zip_longest(log_lines(whole), log_lines(resumed))),
        sum((there - here).values()),
        sum((here - there).values()),
        sum(not states[0][name].equal(states[1][name]) for name in states[0])
        + len(states[0].keys() ^ states[1].keys()),
    )
    return dict(zip(COMPARED, counts))


def tensors(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Heads and moments by name."""
    moments = checkpoint["optimizer_states"][0]["state"]
    return checkpoint["state_dict"] | {
        f"{name}.{key}": value for name, state in moments.items() for key, value in state.items()
    }
