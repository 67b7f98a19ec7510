"""Plain and speculative decoding of the same prompts, interleaved in one run.

The machine's speed drifts, so each prompt is decoded both ways one after the other, in alternating
order, and the speedup is the median of the paired ratios.
"""

import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
import transformers

import mhc
from mhc.engine import Engine, Generation
from mhc.sampling import GREEDY, Sampling


def compare(
    engine: Engine,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    sampling: Sampling = GREEDY,
) -> dict[str, Any]:
    """Decode every prompt (token ids) twice and report, in the names of `decode_benchmark.json`:

    tokens_per_step (bonus counted), accepted_histogram (how many steps accepted 0, 1, ... guesses),
    plain_tokens_per_second, tokens_per_second, speedup (median of the paired ratios) with
    its quartiles speedup_q1 and speedup_q3 and extremes speedup_min and speedup_max, prompts, identical (outputs that are token for token the same).
    """

    def answer(prompt: list[int], plain: bool) -> Generation:
        return next(found for _, found in engine.generate_ids([prompt], max_new_tokens, 1, plain, sampling))

    for plain in (True, False):
        answer(prompts[0], plain)  # warm up both ways
    pairs: list[tuple[Generation, Generation]] = []
    for number, prompt in enumerate(prompts):
        order = (True, False) if number % 2 else (False, True)
        answers = {plain: answer(prompt, plain) for plain in order}
        pairs.append((answers[True], answers[False]))
        if progress:
            progress(number + 1, len(prompts))
    histogram = [0] * (engine.tree.levels_deep + 1)
    for _, drafted in pairs:
        for accepted in drafted.accepted[1:]:  # the prefill drafts nothing
            histogram[accepted] += 1
    ratios = [plain.seconds / drafted.seconds for plain, drafted in pairs]
    quarters = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    tokens = sum(len(drafted.token_ids) - 1 for _, drafted in pairs)
    return {
        "tokens_per_step": round(tokens / max(1, sum(histogram)), 4),
        "accepted_histogram": histogram,
        "plain_tokens_per_second": round(median(len(p.token_ids) / p.seconds for p, _ in pairs), 2),
        "tokens_per_second": round(median(len(d.token_ids) / d.seconds for _, d in pairs), 2),
        "speedup": round(median(ratios), 4),
        "speedup_q1": round(quarters[0], 4),
        "speedup_q3": round(quarters[2], 4),
        "speedup_min": round(min(ratios), 4),
        "speedup_max": round(max(ratios), 4),
        "prompts": len(pairs),
        "identical": sum(plain.token_ids == drafted.token_ids for plain, drafted in pairs),
        "max_new_tokens": max_new_tokens,
        "tree_nodes": engine.tree.nodes,
    }


def machine() -> dict[str, Any]:
    """Processor, cores and GPU."""
    names = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": gpu,
    }


def versions() -> dict[str, str]:
    """What was measured."""
    return {
        "mhc": mhc.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
