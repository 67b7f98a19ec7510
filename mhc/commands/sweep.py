"""`run.py sweep`: run the trials of a sweep file one after the other, without an account, and say which was best.

The file is one that `wandb sweep` takes as well. Each trial is a process with a folder of its own. A trial that fails or
diverges is marked, and the sweep goes on; a sweep that was stopped, however, goes on where it was.
"""

import subprocess
import time
from pathlib import Path
from statistics import median
from typing import Any

from mhc.commands import Parser
from mhc.commands.stages import RUN, SETTINGS, remember
from mhc.errors import UserError
from mhc.reports.html import duration

RECORDS, RESULT, TABLE, PICTURE = "trials.jsonl", "results.json", "results.md", "parallel.png"


def main(argv: list[str]) -> int:
    """Run what is left of the sweep in FILE; 0 if any trial has finished."""
    options = _parser().parse_args(argv)
    if options.trials is not None and options.trials < 1:
        raise UserError(f"--trials is {options.trials}: it must be above 0")
    from rich.console import Console

    from mhc.sweeps.schema import read_sweep
    from mhc.sweeps.trials import only_runner
    from mhc.util.journal import Journal

    sweep = read_sweep(Path(options.file))
    trials = sweep.trials(options.trials, options.seed)
    out = Path(options.out or Path("runs/sweeps") / Path(options.file).stem)
    if out.exists() and not (out / RECORDS).exists() and any(out.iterdir()):
        raise UserError(f"'{out}' holds something else than a sweep: choose another --out")
    console = Console(highlight=False)
    if not any(out.glob("trial-*")):  # nothing has run, and the file may have been mended
        _check_flags(console, sweep.arguments(trials[0], out))
        (out / SETTINGS).unlink(missing_ok=True)
    with Journal(out / RECORDS, console.print) as journal, only_runner(out, console.print) as lock:
        remember(out, "sweep", _settings(sweep, options.seed))
        done = {record["trial"]: record for record in journal.records() if record["trial"] <= len(trials)}
        if 0 < len(done) < len(trials):
            console.print(f"{len(done)} of {len(trials)} trials are done: going on")
        for number, settings in enumerate(trials, 1):
            if number not in done:
                record = _run(console, sweep, trials, number, settings, out, lock, done)
                journal.append(record)
                done[number] = record
                write_results(out, sweep, done, len(trials))
    best = write_results(out, sweep, done, len(trials))["best"]
    show(console, sweep, done)
    console.print(f"-> {out / RESULT}, {TABLE} and {PICTURE}", soft_wrap=True)
    return 1 if best is None else 0


def _run(console, sweep, trials: list, number: int, settings: dict, out: Path, lock: Any, done: dict) -> dict[str, Any]:
    """Run one trial and say how it went; its record."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    from mhc.sweeps.trials import LOG, NeverLogged, judge, run_trial
    from mhc.util.progress import bar

    folder = out / f"trial-{number:03d}"
    console.rule(f"trial {number} of {len(trials)}", align="left")
    console.print(_spelled(sweep, settings), soft_wrap=True, markup=False)
    console.print(f"{_outlook(sweep, done, len(trials))} (it writes {folder / LOG})", style="dim", soft_wrap=True)
    started = time.monotonic()
    with bar(SpinnerColumn(), TextColumn("running"), TimeElapsedColumn()) as progress:
        progress.add_task("")
        status = run_trial(sweep.arguments(settings, folder), folder, lock)
    try:
        value, reason = judge(folder, status, sweep.metric, sweep.maximise)
    except NeverLogged as error:
        if not any(record["state"] == "finished" for record in done.values()):
            raise UserError(
                f"trial {number} went well, but never logged '{sweep.metric}'; it logged {error}: mend metric.name, and start "
                f"again with another --out than '{out}'"
            ) from error
        value, reason = None, f"never logged {sweep.metric}"
    seconds = round(time.monotonic() - started, 1)
    console.print(f"{'failed: ' + reason if reason else f'{sweep.metric} {value:.4g}'}, after {duration(seconds)}")
    return {
        "trial": number,
        "state": "failed" if reason else "finished",
        "value": value,
        "reason": reason,
        "seconds": seconds,
        "folder": folder.name,
        "parameters": settings,
    }


def _check_flags(console, command: list[str]) -> None:
    """Raise UserError where run.py does not take the first trial's flags: better told now than by every trial."""
    if not any(Path(part).resolve() == RUN for part in command):
        return
    with console.status("reading the first trial's settings"):
        told = subprocess.run([*command, "--print_config"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if told.returncode:
        lines = told.stderr.strip().splitlines() or [f"exit status {told.returncode}"]
        raise UserError(f"run.py refuses the first trial's flags: {lines[-1].removeprefix('error: ')}")


def write_results(out: Path, sweep, done: dict[int, dict[str, Any]], trials: int) -> dict[str, Any]:
    """results.json, results.md and parallel.png of the trials so far; what is in results.json."""
    from mhc.sweeps.parallel_coordinates import draw_parallel
    from mhc.util.files import write_atomically, write_json

    best = best_of(sweep, done)
    results = {
        "sweep": sweep.name,
        "method": sweep.method,
        "metric": sweep.metric,
        "goal": "maximize" if sweep.maximise else "minimize",
        "trials": trials,
        "best": best,
        "results": [done[number] for number in sorted(done)],
    }
    write_json(out / RESULT, results)
    write_atomically(out / TABLE, lambda at: at.write_text(as_markdown(sweep, done, trials)))
    write_atomically(out / PICTURE, lambda at: draw_parallel(at, sweep, results["results"], best))
    return results


def best_of(sweep, done: dict[int, dict[str, Any]]) -> int | None:
    """The number of the best trial, the first of equals; None where none has finished."""
    return next((number for number in ranked(sweep, done) if done[number]["state"] == "finished"), None)


def ranked(sweep, done: dict[int, dict[str, Any]]) -> list[int]:
    """Trials from best to worst, failed ones last."""

    def place(number: int) -> tuple:
        value = done[number]["value"]
        return value is None, 0 if value is None else -value if sweep.maximise else value, number

    return sorted(done, key=place)


def as_markdown(sweep, done: dict[int, dict[str, Any]], trials: int) -> str:
    """The table as Markdown, the best in bold, failed ones with their reason."""
    from mhc.sweeps.schema import short_names, shown

    best, varied = best_of(sweep, done), [parameter.name for parameter in sweep.varied]
    short = short_names(varied)
    lines = [
        f"# {sweep.name}",
        "",
        f"{len(done)} of {trials} trials; best of the run by {sweep.metric}.",
        "",
        f"| trial | {' | '.join(short[name] for name in varied)} | {sweep.metric} | time |",
        "|" + "---|" * (len(varied) + 3),
    ]
    for number in ranked(sweep, done):
        record = done[number]
        value = (
            "failed: " + record["reason"].replace("|", "\\|") if record["value"] is None else f"{record['value']:.4g}"
        )
        cells = [
            str(number),
            *(shown(record["parameters"][name]) for name in varied),
            value,
            duration(record["seconds"]),
        ]
        lines.append("| " + " | ".join(f"**{cell}**" if number == best else cell for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def show(console, sweep, done: dict[int, dict[str, Any]]) -> None:
    """The table on the terminal, best first, and why trials failed below it."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    from mhc.sweeps.schema import short_names, shown

    best, varied = best_of(sweep, done), [parameter.name for parameter in sweep.varied]
    table = Table(title=f"{sweep.name}: best of each run by {sweep.metric}", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("trial", *short_names(varied).values(), sweep.metric.split("/")[-1], "time", ""):
        table.add_column(heading.replace("_", " "), justify="right", overflow="fold")  # so that it folds at words
    for number in ranked(sweep, done):
        record = done[number]
        value = "failed" if record["value"] is None else f"{record['value']:.4g}"
        table.add_row(
            str(number),
            *(shown(record["parameters"][name]) for name in varied),
            value,
            duration(record["seconds"]),
            "<-" if number == best else "",
            style="bold" if number == best else "dim" if record["value"] is None else "",
        )
    console.print(table)
    for number in sorted(done):
        if done[number]["reason"]:
            console.print(f"trial {number} failed: {done[number]['reason']}", soft_wrap=True, markup=False)


def _outlook(sweep, done: dict[int, dict[str, Any]], trials: int) -> str:
    """The best so far and the time that is left."""
    best, told = best_of(sweep, done), []
    if best is not None:
        told.append(f"best so far {done[best]['value']:.4g} (trial {best})")
    if done:
        left = median(record["seconds"] for record in done.values()) * (trials - len(done))
        told.append(f"about {duration(left)} left")
    return ", ".join(told) or "the first trial"


def _spelled(sweep, settings: dict[str, Any]) -> str:
    from mhc.sweeps.schema import short_names, shown

    short = short_names(parameter.name for parameter in sweep.varied)
    return ", ".join(f"{short[name]} {shown(settings[name])}" for name in short)


def _settings(sweep, seed: int) -> dict[str, Any]:
    """What must be the same for a sweep to go on."""
    from dataclasses import asdict

    described = {parameter.name: asdict(parameter) for parameter in sweep.parameters}
    return {
        "command": " ".join([sweep.program, *sweep.command]),
        "method": sweep.method,
        "metric": f"{'maximize' if sweep.maximise else 'minimize'} {sweep.metric}",
        "seed": seed if sweep.method == "random" else None,
        **{
            name: {key: value for key, value in told.items() if value and key != "name"}
            for name, told in described.items()
        },
    }


def _parser() -> Parser:
    parser = Parser(
        prog="run.py sweep",
        description="Run the trials of a sweep file (the schema of Weights & Biases; method grid or random) one after the "
        "other, without an account. Each trial has its own folder and process; failed and diverged ones are marked. Stopped "
        "sweeps go on with the same command. Writes results.json, results.md and parallel.png after every trial. A trial "
        "counts with the best that the metric has been over its run. With an account, the same file works with "
        "`wandb sweep FILE` and `wandb agent`.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="e.g. configs/sweeps/learning_rate.yaml")
    add("--out", metavar="DIR", help="where trials and results go (default runs/sweeps/<name of the file>)")
    add("--trials", type=int, metavar="N", help="at most N trials (default: the file's run_cap, or the whole grid)")
    add("--seed", type=int, default=0, metavar="N", help="decides what random trials draw (default 0)")
    return parser
