"""The results of a sweep: which trial is best, results.json, the tables and the picture."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mhc.sweeps.schema import Sweep, short_names, shown
from mhc.util.duration import duration
from mhc.util.files import write_atomically, write_json

RESULT, TABLE, PICTURE = "results.json", "results.md", "parallel.png"


@dataclass
class SweepResults:
    """Of a sweep of so many trials the records, by number, of those that have ended."""

    sweep: Sweep
    trials: int
    records: dict[int, dict[str, Any]]

    @property
    def ranked(self) -> list[int]:
        """Trials from best to worst, the first of equals first, failed ones last."""

        def order(number: int) -> tuple[bool, float, int]:
            value = self.records[number]["value"]
            return value is None, (-1 if self.sweep.maximise else 1) * (value or 0), number

        return sorted(self.records, key=order)

    @property
    def best(self) -> int | None:
        """The number of the best trial; None where none has finished."""
        return next((number for number in self.ranked if self.records[number]["state"] == "finished"), None)

    def write(self, out: Path) -> None:
        """Write results.json, results.md and parallel.png of the trials so far."""
        from mhc.sweeps.parallel_coordinates import draw_parallel  # matplotlib: not before the first trial runs

        records = [self.records[number] for number in sorted(self.records)]
        results = {
            "sweep": self.sweep.name,
            "method": self.sweep.method,
            "metric": self.sweep.metric,
            "goal": "maximize" if self.sweep.maximise else "minimize",
            "trials": self.trials,
            "best": self.best,
            "results": records,
        }
        write_json(out / RESULT, results)
        write_atomically(out / TABLE, lambda path: path.write_text(self.markdown(), encoding="utf-8"))
        write_atomically(out / PICTURE, lambda path: draw_parallel(path, self.sweep, records, self.best))

    def markdown(self) -> str:
        """The table as Markdown, the best in bold, failed trials with their reason."""
        headings = ["trial", *short_names(self._varied).values(), self.sweep.metric, "time"]
        lines = [
            f"# {self.sweep.name}",
            "",
            f"{len(self.records)} of {self.trials} trials; best of the run by {self.sweep.metric}.",
            "",
            f"| {' | '.join(headings)} |",
            "|" + "---|" * len(headings),
        ]
        for number in self.ranked:
            reason = (self.records[number]["reason"] or "").replace("|", "\\|")
            cells = self._cells(number, f"failed: {reason}")
            lines.append("| " + " | ".join(f"**{cell}**" if number == self.best else cell for cell in cells) + " |")
        return "\n".join(lines) + "\n"

    def show(self, console: Console) -> None:
        """The table on the terminal, best first, and the reasons of failed trials below it."""
        table = Table(
            title=f"{self.sweep.name}: best of each run by {self.sweep.metric}", box=SIMPLE_HEAD, padding=(0, 1)
        )
        for heading in ("trial", *short_names(self._varied).values(), self.sweep.metric.split("/")[-1], "time", ""):
            table.add_column(heading.replace("_", " "), justify="right", overflow="fold")  # so that it folds at words
        for number in self.ranked:
            failed = self.records[number]["value"] is None
            best = number == self.best
            style = "bold" if best else "dim" if failed else ""
            table.add_row(*self._cells(number, "failed"), "<-" if best else "", style=style)
        console.print(table)
        for number, record in sorted(self.records.items()):
            if record["reason"]:
                console.print(f"trial {number} failed: {record['reason']}", soft_wrap=True, markup=False)

    def outlook(self) -> str:
        """The best so far and the time that is left."""
        parts = []
        if self.best is not None:
            parts.append(f"best so far {self.records[self.best]['value']:.4g} (trial {self.best})")
        if self.records:
            left = median(record["seconds"] for record in self.records.values()) * (self.trials - len(self.records))
            parts.append(f"about {duration(left)} left")
        return ", ".join(parts) or "the first trial"

    @property
    def _varied(self) -> list[str]:
        return [parameter.name for parameter in self.sweep.varied]

    def _cells(self, number: int, failure: str) -> list[str]:
        """Number, settings, value (or `failure`) and time of a trial."""
        record = self.records[number]
        settings = [shown(record["parameters"][name]) for name in self._varied]
        value = failure if record["value"] is None else f"{record['value']:.4g}"
        return [str(number), *settings, value, duration(record["seconds"])]
