"""Shared by both parts of benchmarks/gpu.py: sizes, heads, and the results so far."""

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import result, save
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Drafter, Medusa

HEADS = 4
FAMILIES: dict[str, Callable[[Backbone], Drafter]] = {
    "medusa": lambda backbone: Medusa(backbone, heads=HEADS, blocks=1),
    "cascade": lambda backbone: Cascade(backbone, heads=HEADS, blocks=1),
}


@dataclass
class Size:
    """All sizes. random: the model of part 1; trained: that of part 2. repeats: per timing.
    step: rows and tokens of the training step that is timed.
    copied: bytes of the bandwidth test. batch x length: tokens of a training step. prompts x new: tokens decoded."""

    random: dict[str, int]
    trained: dict[str, Any]
    repeats: int
    step: tuple[int, int]
    copied: int
    conversations: int
    batch: int
    length: int
    prompts: int
    new: int


class Report:
    """The results so far, written to disk after every part."""

    def __init__(self, out: Path, **extra: Any):
        self.out, self.extra, self.started = out, extra, time.perf_counter()
        self.results: list[dict[str, Any]] = []
        self.failed: dict[str, str] = {}

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    @property
    def everything(self) -> dict[str, Any]:
        return {**self.extra, "seconds": round(self.seconds, 1), "failed": self.failed}

    def log(self, text: str) -> None:
        print(f"[{self.seconds:6.1f} s] {text}", flush=True)

    def add(self, case: str, **metrics: list[float] | float) -> None:
        """Lines of the result file; a number is a list of one."""
        for metric, values in metrics.items():
            self.results.append(result(case, metric, values if isinstance(values, list) else [float(values)]))

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Log a part's name, record its failure, and save the results so far."""
        self.log(name)
        try:
            yield
        except Exception as error:  # of any kind: the other parts still run
            self.failed[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"
            traceback.print_exc()
            self.log(f"FAILED: {name}: {self.failed[name]}")
        save("gpu", self.results, self.out, **self.everything)
