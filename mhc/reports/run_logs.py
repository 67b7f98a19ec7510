"""What a run has logged: its curves, and the configuration it ran with."""

import csv
import re
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

Curves = dict[str, dict[int, float]]  # of each logged figure its value at each step where it was logged


def whole_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a metrics.csv, each with the figures it has. The last line of a run that is killed may be half written:
    it is left out."""
    text = path.read_text(encoding="utf-8")
    lines = csv.DictReader(StringIO(text[: text.rfind("\n") + 1]))
    return [{name: value for name, value in line.items() if value} for line in lines]


def read_logs(folder: Path) -> tuple[Curves, dict[str, Any]]:
    """The curves of a run, and the configuration it had last. A run that was resumed has one metrics.csv or several: where
    steps were made again, what was logged later holds, and nothing is kept from beyond the step at which it resumed."""

    def order(path: Path) -> list[Any]:
        return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]

    rows: dict[int, dict[str, float]] = {}
    config: dict[str, Any] = {}
    for path in sorted(folder.glob("*/*/metrics.csv"), key=order):
        logged = whole_rows(path)
        if not any(row.get("train/loss") or int(row["step"]) > 0 for row in logged):
            continue  # of `validate` or `test`, which begin no step
        first = min(int(row["step"]) for row in logged)
        rows = {step: row for step, row in rows.items() if step < first}
        for row in logged:
            numbers = {name: float(value) for name, value in row.items() if name != "step"}
            rows.setdefault(int(row["step"]), {}).update(numbers)
        if (path.parent / "config.yaml").exists():
            config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
    curves: Curves = {}
    for step in sorted(rows):
        for name, value in rows[step].items():
            curves.setdefault(name, {})[step] = value
    return curves, config
