"""Runs that are killed at random steps and resumed, compared with undisturbed ones.

    python benchmarks/resume.py [--count 10] [--cases epochs accumulation ...] [--trainers configs/trainer/cpu.yaml ...]
        [--flags=--trainer.devices=2 ...] [--fork]

Each case is trained once undisturbed and once killed (SIGKILL, all its processes) at `count` random steps, each time
resumed by --ckpt_path last, with every trainer file. Adds to benchmarks/results/resume.json, for <trainer>/<case>:

    kills               runs that were killed before the end
    differing_lines     of metrics.csv, compared as text
    repeated_samples, skipped_samples
                        rows trained on more or less often than in the undisturbed run, by epoch
    differing_tensors   heads and optimizer moments that are not bitwise equal
    lost_steps          repeated after a kill (median, fewest, most)

A tiny random Llama with cascade heads and a roll-out, so that training uses random numbers; see tests/helpers/killed_runs.py.
"""

import argparse
import json
import random
import signal
import tempfile
from pathlib import Path

import torch

from common import RESULTS, result, write
from mhc.checkpoints.training_file import CheckpointFiles, newest_whole
from tests.helpers.killed_runs import begun, differences, fitting, language_modelling, run, tiny_model

CASES = {
    "epochs": [],
    "accumulation": ["--trainer.accumulate_grad_batches", "3", "--data.batch_size", "2"],
    "validation in mid-epoch": ["--trainer.val_check_interval", "5", "--data.batch_size", "2"],
    "workers": ["--data.workers", "2"],
    "every step": ["--checkpoint.every_n_steps", "1"],  # so also after the last step of an epoch
    "rare": ["--checkpoint.every_n_steps", "1000"],  # only at validations, at the end of an epoch
    "all at once": [
        *("--trainer.accumulate_grad_batches", "2", "--data.batch_size", "2", "--data.workers", "2"),
        *("--trainer.val_check_interval", "6"),
    ],
    "packed": ["--data.pack", "true", "--data.max_length", "48", "--data.batch_size", "1"],
    "language model": [],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10, help="kills of each case")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--trainers", nargs="+", default=["configs/trainer/cpu.yaml"], help="files for --config")
    parser.add_argument("--flags", nargs="*", default=[], help="more for `run.py fit`, as --name=value")
    parser.add_argument(
        "--fork", action="store_true", help="start runs as copies of this process: quick, for one process"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    random.seed(options.seed)
    torch.set_num_threads(1)
    path = RESULTS / "resume.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else []
    for trainer in options.trainers:
        for case in options.cases:
            name = f"{Path(trainer).stem}/{case}"
            with tempfile.TemporaryDirectory() as folder:
                figures = killed(
                    Path(folder), case, ["--config", trainer, *options.flags], options.count, not options.fork
                )
            results = [row for row in results if row["case"] != name]
            results += [result(name, metric, values) for metric, values in figures.items()]
            write("resume", results, count=options.count)


def killed(folder: Path, case: str, flags: list[str], count: int, fresh: bool) -> dict[str, list[float]]:
    """One case's figures."""
    build = language_modelling if case == "language model" else fitting
    model = tiny_model(folder)
    interrupted, whole = folder / "killed", folder / "whole"
    more = [*CASES[case], *flags]
    last = interrupted / "last.ckpt"
    if status := run(build(*model, whole, *more), whole, fresh=fresh):
        raise SystemExit(
            f"the undisturbed run ended with {status}:\n{whole.with_suffix('.txt').read_text(encoding='utf-8')}"
        )
    steps = CheckpointFiles().load_checkpoint(whole / "last.ckpt")["global_step"]
    lost, kills = [], 0
    for step in sorted(random.choices(range(1, steps), k=count)):
        resume = ["--ckpt_path", "last"] if interrupted.exists() else []
        status = run(build(*model, interrupted, *more, *resume), interrupted, step, fresh)
        if status != -signal.SIGKILL:
            raise SystemExit(
                f"a run ended with {status}:\n{interrupted.with_suffix('.txt').read_text(encoding='utf-8')}"
            )
        kills += 1
        saved = CheckpointFiles().load_checkpoint(newest_whole(last))["global_step"] if last.exists() else 0
        lost.append(begun(interrupted) - saved)
    if status := run(build(*model, interrupted, *more, "--ckpt_path", "last"), interrupted, fresh=fresh):
        raise SystemExit(
            f"the last run ended with {status}:\n{interrupted.with_suffix('.txt').read_text(encoding='utf-8')}"
        )
    different = {metric: [value] for metric, value in differences(whole, interrupted).items()}
    return {"kills": [kills], **different, "lost_steps": lost}


if __name__ == "__main__":
    main()
