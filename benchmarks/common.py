"""Shared by all benchmarks: timing, and the format of result files.

{"machine", "versions", "commit", "results": [{"case", "metric", "value", "low", "high"}]}: value is
the median, low and high the extremes unless the benchmark says otherwise.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT))  # so that a benchmark also runs where the package is not installed

import torch

from mhc.util.files import write_json
from mhc.util.provenance import machine, versions


def result(case: str, metric: str, values: list[float], quartiles: bool = False) -> dict[str, Any]:
    """One line of a result file; with `quartiles`, low and high are quartiles instead of the extremes."""
    low, high = min(values), max(values)
    if quartiles and len(values) > 1:
        low, _, high = quantiles(values, n=4, method="inclusive")
    return {
        "case": case,
        "metric": metric,
        "value": round(median(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
    }


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of wall time, and what the call returned; waits for the GPU where there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    value = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started, value


def save(name: str, results: list[dict[str, Any]], folder: Path = RESULTS, **extra: Any) -> Path:
    """Write <folder>/<name>.json."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, encoding="utf-8"
        ).stdout
    except OSError:  # a machine without git
        commit = ""
    path = Path(folder) / f"{name}.json"
    write_json(
        path,
        {"machine": machine(), "versions": versions(), "commit": commit.strip(), **extra, "results": results},
    )
    return path


def write(name: str, results: list[dict[str, Any]], folder: Path = RESULTS, **extra: Any) -> None:
    """Write <folder>/<name>.json (default benchmarks/results) and print it as a table."""
    path = save(name, results, folder, **extra)
    show(results)
    print(f"-> {path}")


def show(results: list[dict[str, Any]]) -> None:
    """Results as a table."""
    for row in results:
        print(f"{row['case']:<34} {row['metric']:<26} {row['value']:>9} ({row['low']} - {row['high']})")
