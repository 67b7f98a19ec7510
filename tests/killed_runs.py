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
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning import Callback
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.checkpoint_io import CheckpointFiles
from mhc.lm.tokenizer import train_tokenizer
from run import main

ROOT = Path(__file__).parents[1]
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
        with open(Path(trainer.default_root_dir) / f"batches-{trainer.global_rank}.jsonl", "a") as file:
            file.write(json.dumps(line) + "\n")


def _without_end(ids: list[int], pad: int) -> list[int]:
    while ids and ids[-1] == pad:
        ids = ids[:-1]
    return ids


def tiny_model(folder: Path) -> tuple[Path, Path]:
    """A random Llama with its tokenizer in a folder, and a file of 76 conversations of different lengths."""
    texts = [
        f"What is {a} plus {b}? {a} plus {b} is {'very surely ' * (a % 3)}{a + b}." for a in range(19) for b in range(4)
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
        *("--trainer.callbacks+=tests.killed_runs.Watch", "--trainer.default_root_dir", str(folder), *more),
    ]


def run(arguments: list[str], folder: Path, kill_at: int | None = None, fresh: bool = True) -> int:
    """The status of a run in `folder`, or -9 where it was killed, with all its processes: some time after it had begun step
    `kill_at`. fresh: in an interpreter of its own; otherwise in a copy of this process, which is quick to start."""
    told = folder.with_suffix(".txt")
    child = os.fork()
    if not child:
        os.setsid()
        for stream in (sys.stdout.fileno(), sys.stderr.fileno()):
            os.dup2(os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
        os.chdir(ROOT)
        if fresh:
            environment = os.environ | {"OMP_NUM_THREADS": "1"}
            os.execve(sys.executable, [sys.executable, str(ROOT / "run.py"), *arguments], environment)
        try:
            os._exit(main(arguments))
        finally:
            os._exit(1)
    while kill_at is not None and not began_step(folder, kill_at):
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            return os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.001)
    if kill_at is not None:
        time.sleep(random.uniform(0, 0.02))
        os.killpg(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        print(told.read_text())
    return status


def began_step(folder: Path, step: int) -> bool:
    """Whether a run in this folder has begun so many steps."""
    try:
        *_, last = (folder / "batches-0.jsonl").read_text().splitlines()
        return json.loads(last)["step"] >= step
    except (OSError, ValueError):  # none yet, or one half written
        return False


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
    """The lines of the newest log, each with the figures it has."""
    newest = max(folder.glob("logs/version_*/metrics.csv"), key=lambda path: int(path.parent.name.split("_")[1]))
    with open(newest, newline="") as file:
        return [{name: value for name, value in line.items() if value} for line in csv.DictReader(file)]


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
