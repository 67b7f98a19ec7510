"""What `quickstart`, `compare` and `sweep` share: stages: each is a command that a user would type, in a process of its own.

(In one process, what a Lightning run leaves behind slows the decoding that is measured after it.)
"""

import argparse
import subprocess
import sys
from pathlib import Path

from mhc.util.verbs import RUN, shell_line

CONFIGS = RUN.parent / "configs"
TRAINERS = ("cpu", "cpu-bf16", "gpu")
SETTINGS = "settings.json"  # of a comparison, a sweep or a language model run: what its folder was begun with


def run_stage(console, title: str, command: list[str]) -> int:
    """Print and run one stage; its exit status."""
    console.rule(title, align="left")
    console.print(shell_line(*command), style="dim", soft_wrap=True, highlight=False, markup=False)
    return subprocess.run([sys.executable, str(RUN), *command]).returncode


def add_trainer(parser: argparse.ArgumentParser) -> None:
    """The flag for how the machine is used."""
    text = "a file of configs/trainer (default: what the machine can do)"
    parser.add_argument("--trainer", choices=TRAINERS, help=text)


def best_trainer() -> str:
    """The file of configs/trainer that makes the most of this machine."""
    import torch

    from mhc.util.machine import product_speed

    if torch.cuda.is_available():
        return "gpu"
    if not torch.cpu._is_avx512_bf16_supported():
        return "cpu"
    # Some processors have the instructions and are half as fast with them (an Intel Xeon without AMX; docs/log.md).
    half, full = (product_speed(False, dtype)[0] for dtype in (torch.bfloat16, torch.float32))
    return "cpu-bf16" if half > 1.2 * full else "cpu"


def training(family: str, trainer: str, data: str, folder: Path, *more: str, collected: bool = False) -> list[str]:
    """The arguments common to fit, validate and test of one family of heads. data: conversations, or a folder of
    collected features."""
    source = ["data/features"] if collected else []
    configs = ["quickstart", *source, f"trainer/{trainer}", f"drafter/{family}"]
    chosen = [part for name in configs for part in ("--config", str(CONFIGS / f"{name}.yaml"))]
    return [*chosen, "--data.path", data, "--trainer.default_root_dir", str(folder), *more]


def distilling(data: str, out: str, conversations: int, *more: str) -> list[str]:
    """The arguments that let the backbone answer so many prompts."""
    return ["distill", "--data", data, "--out", out, "--limit", str(conversations), "--batch_size", "64", *more]
