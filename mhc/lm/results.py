"""What was measured of a model: one JSON file, and tables on the terminal."""

import hashlib
import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.util.files import write_atomically
from mhc.util.provenance import machine, versions

SAMPLED = 64  # numbers of each weight that tell models apart


class Results:
    """The results of one model in the file `path`, written anew with every one that is added.

    What the file says of the same weights stays; of other weights, it is kept as *.previous.json. loaded: how the model is
    held, a part of every result's settings. Raises UserError where something else stands at `path`.
    """

    def __init__(self, path: Path, backbone: Backbone, loaded: dict[str, Any]):
        self.path, self.loaded = path, loaded
        self.about = {
            "model": backbone.name,
            "fingerprint": backbone.fingerprint(),
            "weights": weights_digest(backbone.model),
            "parameters": backbone.parameter_count,
        }
        before = self._before()
        self.same = before is not None and before["weights"] == self.about["weights"]
        self.kept = before["results"] if before and self.same else []
        self.new: list[dict[str, Any]] = []

    def _before(self) -> dict[str, Any] | None:
        try:
            before = json.loads(self.path.read_text(encoding="utf-8"))
            if {"weights", "results"} <= set(before):
                return before
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError):
            pass
        raise UserError(f"'{self.path}' is there and is no evaluation: choose another --out")

    def add(self, result: dict[str, Any]) -> None:
        """Keep one more result, in place of an earlier one of its kind with the same settings."""
        settings = result["settings"] | self.loaded
        self.new.append({**result, "settings": settings, "machine": machine(), "versions": versions()})
        ours = [(one["kind"], one["settings"]) for one in self.new]
        kept = [one for one in self.kept if (one["kind"], one["settings"]) not in ours]
        text = json.dumps(self.about | {"results": kept + self.new}, indent=2, ensure_ascii=False) + "\n"
        former = None if self.same else self.path.with_suffix(".previous.json")
        try:
            write_atomically(self.path, lambda at: at.write_text(text, encoding="utf-8"), former)
        except OSError as error:
            raise UserError(f"cannot write '{self.path}' ({error.strerror}): choose another --out") from error
        self.same = True


def weights_digest(model: nn.Module) -> str:
    """A hash of some numbers of every weight, in bf16, so that it is the same in whatever precision they are held (quantised
    ones apart)."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if type(parameter.data) is Tensor:
            step = max(1, parameter.numel() // SAMPLED)
            some = parameter.detach().flatten()[::step].bfloat16().float().cpu()
            digest.update(name.encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]


def show_perplexity(results: list[dict[str, Any]]) -> None:
    """The perplexities among the results, one row a text."""
    found = [one for one in results if one["kind"] == "perplexity"]
    if not found:
        return
    table = _table(f"loss and perplexity per token, {found[0]['settings']['split']} split; ± standard error", "text")
    for heading in ("rows", "tokens", "loss", "perplexity", "bits per byte"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            Path(one["settings"]["source"]).name,
            f"{one['rows']:,}",
            f"{one['tokens']:,}",
            _with_error(one["loss"], one["loss_se"], ".3f"),
            f"{one['perplexity']:,.2f}",
            _with_error(one["bits_per_byte"], one["bits_per_byte_se"], ".3f") if "bits_per_byte" in one else "",
        )
    Console().print(table)


def show_exam(found: dict[str, Any]) -> None:
    """One row a subject, the means, and what is to be known beside them."""
    source, shots = found["settings"]["source"], found["settings"]["shots"]
    splits = "/".join(sorted({one["split"] for one in found["subjects"].values()}))
    table = _table(f"{Path(source).name} ({splits}): right answers in percent ± standard error", "subject")
    for heading in ("asked", "shown", "right", "guessing"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in found["subjects"].items():
        least, most = one["shots"]
        shown = str(most) if least == most else f"{least}-{most}"
        right = _with_error(100 * one["accuracy"], 100 * one["accuracy_se"], ".1f")
        table.add_row(name, str(one["questions"]), shown, right, f"{100 * one['chance']:.1f}")
    table.add_section()
    for name, mean, chance in (
        ("mean over questions", "accuracy", "chance"),
        ("mean over subjects", "subject_mean", "subject_chance"),
    ):
        right = _with_error(100 * found[mean], 100 * found[f"{mean}_se"], ".1f")
        row = (str(found["questions"]), f"{found['mean_shots']:.1f}", right, f"{100 * found[chance]:.1f}")
        table.add_row(name, *row, style="bold")
    console = Console(highlight=False)
    console.print(table)
    if found["mean_shots"] < shots:
        console.print(
            f"{found['mean_shots']:.2f} of {shots} examples before a question on average: a subject had no more, or the "
            "model's context did not hold them",
            soft_wrap=True,
        )
    if found["cut"]:
        console.print(
            f"too long for the context, beginning cut off: {found['cut']} of {found['questions']} questions",
            soft_wrap=True,
        )


def _table(title: str, first: str) -> Table:
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column(first, overflow="fold")
    return table


def _with_error(value: float, error: float | None, form: str) -> str:
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"
