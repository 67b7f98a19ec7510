"""The results of evaluating a model: one JSON file, and tables on the terminal."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.util.files import write_atomically
from mhc.util.provenance import machine, versions


class Results:
    """The results of one model in the file `path`, rewritten with every result that is added.

    Earlier results of the same weights stay in it; a file of other weights is renamed to *.previous.json. loaded: dtype,
    device and quantisation, a part of every result's settings. Raises UserError where `path` is not such a file.
    """

    def __init__(self, path: Path, backbone: Backbone, loaded: dict[str, Any]):
        self.path, self.loaded = path, loaded
        self.about = {
            "model": backbone.name,
            "fingerprint": backbone.fingerprint(),
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "parameters": backbone.parameter_count,
        }
        before = self._before()
        self.same = before is not None and backbone.is_model(before["fingerprint"], before.get("dtype"))
        self.earlier = before["results"] if before and self.same else []
        self.new: list[dict[str, Any]] = []

    def _before(self) -> dict[str, Any] | None:
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
            if {"fingerprint", "results"} <= set(before):
                return before
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            pass
        raise UserError(f"'{self.path}' exists and is not an evaluation: choose another --out")

    def add(self, result: dict[str, Any]) -> None:
        """Add a result, in place of an earlier one of its kind with the same settings."""
        settings = result["settings"] | self.loaded
        self.new.append({**result, "settings": settings, "machine": machine(), "versions": versions()})
        replaced = [(new["kind"], new["settings"]) for new in self.new]
        earlier = [old for old in self.earlier if (old["kind"], old["settings"]) not in replaced]
        text = json.dumps(self.about | {"results": earlier + self.new}, indent=2, ensure_ascii=False) + "\n"
        former = None if self.same else self.path.with_suffix(".previous.json")
        try:
            write_atomically(self.path, lambda path: path.write_text(text, encoding="utf-8"), former)
        except OSError as error:
            raise UserError(f"cannot write '{self.path}' ({error.strerror}): choose another --out") from error
        self.same = True


def show_perplexity(results: list[dict[str, Any]]) -> None:
    """The perplexities among the results, one row a text."""
    measured = [result for result in results if result["kind"] == "perplexity"]
    if not measured:
        return
    title = f"loss and perplexity per token, {measured[0]['settings']['split']} split; ± standard error"
    table = _table(title, "text", "rows", "tokens", "loss", "perplexity", "bits per byte")
    for result in measured:
        table.add_row(
            Path(result["settings"]["source"]).name,
            f"{result['rows']:,}",
            f"{result['tokens']:,}",
            _with_error(result, "loss", ".3f"),
            f"{result['perplexity']:,.2f}",
            _with_error(result, "bits_per_byte", ".3f") if "bits_per_byte" in result else "",
        )
    Console().print(table)


def show_exam(result: dict[str, Any]) -> None:
    """One row a subject, the means, and notes on missing examples and cut questions."""
    source, shots = result["settings"]["source"], result["settings"]["shots"]
    splits = "/".join(sorted({subject["split"] for subject in result["subjects"].values()}))
    title = f"{Path(source).name} ({splits}): right answers in percent ± standard error"
    table = _table(title, "subject", "questions", "examples", "right", "guessing")
    for name, subject in result["subjects"].items():
        least, most = subject["shots"]
        examples = str(most) if least == most else f"{least}-{most}"
        table.add_row(name, str(subject["questions"]), examples, *_percent(subject, "accuracy", "chance"))
    table.add_section()
    for name, *figures in (
        ("mean over questions", "accuracy", "chance"),
        ("mean over subjects", "subject_mean", "subject_chance"),
    ):
        row = (str(result["questions"]), f"{result['mean_shots']:.1f}", *_percent(result, *figures))
        table.add_row(name, *row, style="bold")
    console = Console(highlight=False, soft_wrap=True)
    console.print(table, soft_wrap=False)
    if result["mean_shots"] < shots:
        console.print(
            f"{result['mean_shots']:.2f} of {shots} examples before a question on average: a subject had no more, or the "
            "model's context did not hold them"
        )
    if result["cut"]:
        console.print(
            f"too long for the context, beginning cut off: {result['cut']} of {result['questions']} questions"
        )


def _table(title: str, first: str, *numbers: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for heading in numbers:
        table.add_column(heading, justify="right", no_wrap=True)
    return table


def _percent(result: dict[str, Any], accuracy: str, chance: str) -> tuple[str, str]:
    return _with_error(result, accuracy, ".1f", 100), f"{100 * result[chance]:.1f}"


def _with_error(result: dict[str, Any], figure: str, form: str, scale: int = 1) -> str:
    value, error = result[figure], result[f"{figure}_se"]
    return f"{scale * value:{form}}" + ("" if error is None else f" ± {scale * error:{form}}")
