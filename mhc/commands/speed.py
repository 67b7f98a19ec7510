"""`run.py speed`: the speedup of an answer file over the plain one, by category, with bootstrap intervals."""

import json
from pathlib import Path
from typing import Any

from mhc.commands import Parser
from mhc.errors import UserError

PICTURES = (".png", ".svg", ".pdf")
FEW = 10  # questions: with fewer, bootstrap intervals are too narrow


def main(argv: list[str]) -> int:
    """Compare two answer files; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.picture and Path(options.picture).suffix not in PICTURES:
        raise UserError(f"--picture is '{options.picture}': it must end in {', '.join(PICTURES)}")
    if options.json:
        _check_json(Path(options.json))
    if options.picture:
        _check_picture(Path(options.picture))
    from mhc.evaluation.answer_files import read_answers
    from mhc.evaluation.speedup import paired, speed_table

    names = (options.answers, options.plain)
    pairs = paired(read_answers(options.answers), read_answers(options.plain), names)
    result = {"answers": names[0], "plain": names[1], **speed_table(pairs)}
    try:
        if options.json:
            from mhc.util.files import write_json

            write_json(Path(options.json), result)
        if options.picture:
            from mhc.reports.plots import draw_speed

            Path(options.picture).parent.mkdir(parents=True, exist_ok=True)
            draw_speed(Path(options.picture), result)
    except OSError as problem:
        raise UserError(f"cannot write '{problem.filename}' ({problem.strerror}): choose another place") from problem
    show(result)
    return 0


def _check_json(path: Path) -> None:
    """Raise UserError rather than overwrite a file that is not an earlier table."""
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        before = None
    if not isinstance(before, dict) or not {"resamples", "overall", "categories"} <= set(before):
        raise UserError(f"'{path}' exists and is not a speed table: choose another --json")


def _check_picture(path: Path) -> None:
    """Raise UserError rather than overwrite a file that is not an earlier picture."""
    from mhc.reports.plots import SPEED

    try:
        before = path.read_bytes()
    except FileNotFoundError:
        return
    except OSError:
        before = b""
    if SPEED.encode() not in before:
        raise UserError(f"'{path}' exists and is not a picture of speeds: choose another --picture")


def show(result: dict[str, Any]) -> None:
    """Print the table and notes on how to read it."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    title = f"{Path(result['answers']).stem} over {Path(result['plain']).stem}"
    table = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("category", min_width=14, overflow="fold")
    for heading in ("n", "tokens/s", "speedup", "by turn", "per step", "same"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in result["categories"].items():
        table.add_row(name, *_cells(figures))
    table.add_section()
    table.add_row("overall", *_cells(result["overall"]), style="bold")
    console = Console(highlight=False)
    console.print(table)
    notes = [
        f"speedup: ratio of the mean tokens/s of n questions; by turn: median of paired ratios; per step: tokens, "
        f"bonus counted; same: turns with the same text; in brackets "
        f"{result['confidence']:.0%} intervals over questions ({result['resamples']:,} resamples, seed {result['seed']})"
    ]
    if any(figures["questions"] < FEW for figures in result["categories"].values()):
        notes.append(f"an interval over fewer than {FEW} questions is too narrow: take it as a hint")
    if not result["measured_in_turn"]:
        notes.append(
            "the files were not interleaved (run.py answer --both does that): a drift of the machine counts as speed here"
        )
    if result["unanswered"]:
        notes.append(
            f"left out, since they did not fit into the context: questions {', '.join(map(str, result['unanswered']))}"
        )
    for note in notes:
        console.print(note, markup=False)


def _cells(figures: dict[str, Any]) -> list[str]:
    return [
        str(figures["questions"]),
        f"{figures['plain_tokens_per_second']:,.0f} > {figures['tokens_per_second']:,.0f}",
        _with_interval(figures["speedup"], figures["speedup_interval"]),
        f"{figures['paired_speedup']:.2f}x",
        f"{figures['tokens_per_step']:.2f}",
        f"{figures['identical']}/{figures['turns']}",
    ]


def _with_interval(value: float, interval: list[float] | None) -> str:
    return f"{value:.2f}x" + (f" ({interval[0]:.2f}-{interval[1]:.2f})" if interval else "")


def _parser() -> Parser:
    parser = Parser(
        prog="run.py speed",
        description="The speedup of one answer file over the plain one, by category and overall: as Spec-Bench computes "
        "it, and as the median of paired turns; with bootstrap intervals over questions.",
    )
    add = parser.add_argument
    add("answers", metavar="ANSWERS", help="answer file made with heads")
    add("plain", metavar="PLAIN", help="plain answer file of the same questions")
    add("--json", metavar="FILE", help="write the table as JSON, with all intervals")
    add("--picture", metavar="FILE", help="draw the table: .svg, .png or .pdf")
    return parser
