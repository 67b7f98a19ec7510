"""`run.py speed`: how much faster one answer file is than the plain one, by category, with bootstrap intervals."""

import json
from pathlib import Path
from typing import Any

from mhc.commands import Parser
from mhc.errors import UserError

PICTURES = (".png", ".svg", ".pdf")
FEW = 10  # questions: with less, the bootstrap knows too little of the spread


def main(argv: list[str]) -> int:
    """Compare two answer files; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.picture and Path(options.picture).suffix not in PICTURES:
        raise UserError(f"--picture is '{options.picture}': it must end in {', '.join(PICTURES)}")
    if options.json:
        _check_json(Path(options.json))
    if options.picture:
        _check_picture(Path(options.picture))
    from mhc.evaluation.mt_bench import read_answers
    from mhc.evaluation.speedup import paired, speed_table

    names = (options.answers, options.plain)
    pairs = paired(read_answers(options.answers), read_answers(options.plain), names)
    found = {"answers": names[0], "plain": names[1], **speed_table(pairs)}
    try:
        if options.json:
            from mhc.util.files import write_json

            write_json(Path(options.json), found)
        if options.picture:
            from mhc.reports.plots import draw_speed

            Path(options.picture).parent.mkdir(parents=True, exist_ok=True)
            draw_speed(Path(options.picture), found)
    except OSError as problem:
        raise UserError(f"cannot write '{problem.filename}' ({problem.strerror}): choose another place") from problem
    show(found)
    return 0


def _check_json(path: Path) -> None:
    """Raise UserError where something else than an earlier table would be written over."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict) or not {"resamples", "overall", "categories"} <= set(before):
        raise UserError(f"'{path}' is there and is no speed table: choose another --json")


def _check_picture(path: Path) -> None:
    """Raise UserError where something else than an earlier picture would be written over."""
    from mhc.reports.plots import SPEED

    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError:
        before = b""
    if SPEED.encode() not in before:
        raise UserError(f"'{path}' is there and is no picture of speeds: choose another --picture")


def show(found: dict[str, Any]) -> None:
    """The table on the terminal, and what is to be known beside it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"{Path(found['answers']).stem} over {Path(found['plain']).stem}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("category", min_width=14, overflow="fold")
    for heading in ("n", "tokens/s", "speedup", "by turn", "per step", "same"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, one in found["categories"].items():
        table.add_row(name, *_cells(one))
    table.add_section()
    table.add_row("overall", *_cells(found["overall"]), style="bold")
    console = Console(highlight=False)
    console.print(table)
    notes = [
        f"speedup: ratio of the mean tokens/s of n questions; by turn: median of paired ratios; per step: tokens, "
        f"bonus counted; same: turns with the same text; in brackets "
        f"{found['confidence']:.0%} intervals over questions ({found['resamples']:,} resamples, seed {found['seed']})"
    ]
    if any(one["questions"] < FEW for one in found["categories"].values()):
        notes.append(f"of fewer than {FEW} questions an interval is too narrow: take it for a hint")
    if not found["measured_in_turn"]:
        notes.append(
            "the files were not made in turn (run.py answer --both does): a machine's drift counts as speed here"
        )
    if found["unanswered"]:
        notes.append(f"left out, for want of context: questions {', '.join(map(str, found['unanswered']))}")
    for note in notes:
        console.print(note, markup=False)


def _cells(one: dict[str, Any]) -> list[str]:
    return [
        str(one["questions"]),
        f"{one['plain_tokens_per_second']:,.0f} > {one['tokens_per_second']:,.0f}",
        _with_interval(one["speedup"], one["speedup_interval"]),
        f"{one['paired_speedup']:.2f}x",
        f"{one['tokens_per_step']:.2f}",
        f"{one['identical']}/{one['turns']}",
    ]


def _with_interval(value: float, interval: list[float] | None) -> str:
    return f"{value:.2f}x" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else "")


def _parser() -> Parser:
    parser = Parser(
        prog="run.py speed",
        description="The speedup of one answer file over the plain one, by category and overall: as Spec-Bench computes "
        "it, and by turns paired; with bootstrap intervals over questions.",
    )
    add = parser.add_argument
    add("answers", metavar="ANSWERS", help="answer file made with heads")
    add("plain", metavar="PLAIN", help="answer file of the same questions, decoded plainly")
    add("--json", metavar="FILE", help="write the table with all intervals")
    add("--picture", metavar="FILE", help="draw the table: .svg, .png or .pdf")
    return parser
