"""Cost of a training step of draft heads over the frozen forward alone; and of two processes over one.

    K heads   B rows   T time   A anchors   D width   V vocabulary

Used by benchmarks/train.py on a CPU and by benchmarks/gpu.py on a GPU, on random backbones of a given shape.
"""

import json
import os
import resource
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common import result, timed
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade
from mhc.training.draft_module import DraftModule

K = 5
SUPERVISED = 0.75  # of the positions: conversations have prompts
WARM = 2  # steps that are not counted
LM_HEADS = {"shared": False, "trained": True}


def module_on(backbone: Backbone, own_lm_head: bool) -> DraftModule:
    """The module that `fit` trains, MHC heads, on a backbone that is loaded already."""
    module = DraftModule(lambda small: Cascade(small, heads=K), "pocket")
    module.backbone = backbone
    with torch.device(backbone.device):
        module.drafter = Cascade(backbone, heads=K, own_lm_head=own_lm_head)
    return module


def batch_of(backbone: Backbone, rows: int, length: int) -> dict[str, Tensor]:
    """Random ids (B,T) whose first quarter is a prompt."""
    ids = torch.randint(backbone.vocabulary_size, (rows, length), device=backbone.device)
    mask = torch.ones(rows, length, dtype=torch.bool, device=backbone.device)
    mask[:, : round((1 - SUPERVISED) * length)] = False
    return {"ids": ids, "mask": mask}


def peak_gib(device: torch.device) -> float:
    """Peak memory in GiB: on a GPU since the last reset, on a CPU of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def step_costs(backbone: Backbone, rows: int, length: int, repeats: int) -> dict[str, list[float]]:
    """By metric: the frozen forward alone and whole steps (forward, heads, loss, backward, AdamW) with the backbone's
    shared frozen lm_head and with trained copies, interleaved. Under autocast to bf16 where the backbone is in bf16."""
    device, batch = backbone.device, batch_of(backbone, rows, length)
    seconds: dict[str, list[float]] = {"frozen_forward": []}
    metrics: dict[str, list[float]] = {}
    lower = torch.autocast(device.type, torch.bfloat16) if backbone.dtype == torch.bfloat16 else nullcontext()
    for name, own in LM_HEADS.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        module = module_on(backbone, own)
        optimizer = torch.optim.AdamW(module.drafter.parameters(), lr=1e-4)

        def step(module=module, optimizer=optimizer):
            with lower:
                loss, _ = module.losses(**batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        calls = {"frozen_forward": lambda: backbone.features(batch["ids"]), name: step}
        for repeat in range(WARM + repeats):
            for part, call in calls.items():
                spent, _ = timed(call)
                if repeat >= WARM:
                    seconds.setdefault(part, []).append(spent)
        frozen = seconds["frozen_forward"][-repeats:]
        kind = "" if name == "shared" else "_trained_lm_heads"
        metrics[f"time_vs_frozen_forward{kind}"] = [a / b for a, b in zip(seconds[name], frozen)]
        metrics[f"step_ms{kind}"] = [1000 * a for a in seconds[name]]
        metrics[f"tokens_per_second{kind}"] = [rows * length / a for a in seconds[name]]
        metrics[f"peak_gib{kind}"] = [peak_gib(device)]
        del module, optimizer, step, calls
    metrics["frozen_forward_ms"] = [1000 * a for a in seconds["frozen_forward"]]
    return metrics


# ---- one process and two


class Step(nn.Module):
    """The loss of a module as a forward, which is what DistributedDataParallel wraps."""

    def __init__(self, module: DraftModule):
        super().__init__()
        self.module = module

    def forward(self, **batch: Tensor) -> Tensor:
        return self.module.losses(**batch)[0]


def worker(rows: int, length: int, steps: int) -> None:
    """One of the processes that torchrun starts: trains on the pocket, and the first prints the seconds of each
    step."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo")
    torch.manual_seed(torch.distributed.get_rank())
    module = DraftModule(lambda backbone: Cascade(backbone, heads=K), "pocket")
    trained = nn.parallel.DistributedDataParallel(Step(module))
    optimizer = torch.optim.AdamW(module.drafter.parameters(), lr=1e-3)
    batch, seconds = batch_of(module.backbone, rows, length), []

    def step() -> None:
        optimizer.zero_grad()
        trained(**batch).backward()
        optimizer.step()

    for _ in range(WARM + steps):
        seconds.append(timed(step)[0])
    if torch.distributed.get_rank() == 0:
        print(json.dumps(seconds[WARM:]))
    torch.distributed.destroy_process_group()


def scaling(rows: int = 8, length: int = 256, steps: int = 8, rounds: int = 3) -> list[dict[str, Any]]:
    """Tokens per second of two processes over those of one, each with one thread and the same rows; interleaved."""
    speeds: dict[int, list[float]] = {1: [], 2: []}
    script = Path(__file__).with_name("train.py")
    for _ in range(rounds):
        for processes, measured in speeds.items():
            command = [
                *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
                f"--nproc_per_node={processes}",
            ]
            output = subprocess.run(
                [*command, str(script), "--worker", str(rows), str(length), str(steps)],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            )
            seconds = json.loads(output.stdout.splitlines()[-1])
            measured += [processes * rows * length / second for second in seconds]
    ratios = [two / single for single, two in zip(*speeds.values())]
    return [
        result("scaling/ddp", "tokens_per_second_2_vs_1", ratios, quartiles=True),
        result("scaling/ddp", "tokens_per_second_1", speeds[1], quartiles=True),
        result("scaling/ddp", "tokens_per_second_2", speeds[2], quartiles=True),
    ]
