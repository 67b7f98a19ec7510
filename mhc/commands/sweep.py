"""`run.py sweep`: run the trials of a sweep file one after the other, without an account, and report the best.

The file is one that `wandb sweep` takes as well. Each trial is a process with a folder of its own. A trial that fails or
diverges is marked, and the sweep continues; an interrupted sweep resumes where it was.
"""

import subprocess
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from mhc.commands import Parser
from mhc.commands.stages import RUN, SETTINGS
from mhc.errors import UserError
from mhc.util.duration import duration
from mhc.util.manifest import open_settings

if TYPE_CHECKING:
    from rich.console import Console

    from mhc.sweeps.results import SweepResults
    from mhc.sweeps.schema import Sweep

RECORDS = "trials.jsonl"


def main(argv: list[str]) -> int:
    """Run the remaining trials of the sweep in FILE; 0 if any trial has finished."""
    options = _parser().parse_args(argv)
    if options.trials is not None and options.trials < 1:
        raise UserError(f"--trials is {options.trials}: it must be above 0")
    from rich.console import Console

    from mhc.sweeps.results import PICTURE, RESULT, TABLE, SweepResults
    from mhc.sweeps.schema import read_sweep
    from mhc.sweeps.trials import only_runner
    from mhc.util.journal import Journal

    sweep = read_sweep(Path(options.file))
    trials = sweep.trials(options.trials, options.seed)
    out = Path(options.out or Path("runs/sweeps") / Path(options.file).stem)
    if out.exists() and not (out / RECORDS).exists() and any(out.iterdir()):
        raise UserError(f"'{out}' is not the folder of a sweep: choose another --out")
    console = Console(highlight=False)
    if not any(out.glob("trial-*")):  # nothing has run, and the file may have been changed
        _check_flags(console, sweep.arguments(trials[0], out))
        (out / SETTINGS).unlink(missing_ok=True)
    with Journal(out / RECORDS, console.print) as journal, only_runner(out, console.print) as lock:
        open_settings(out / SETTINGS, out, _settings(sweep, options.seed))
        done = {record["trial"]: record for record in journal.records() if record["trial"] <= len(trials)}
        results = SweepResults(sweep, len(trials), done)
        if 0 < len(done) < len(trials):
            console.print(f"{len(done)} of {len(trials)} trials are done: resuming")
        for number, settings in enumerate(trials, 1):
            if number not in done:
                record = _run(console, results, number, settings, out, lock)
                journal.append(record)
                done[number] = record
                results.write(out)
    results.write(out)
    results.show(console)
    console.print(f"-> {out / RESULT}, {TABLE} and {PICTURE}", soft_wrap=True)
    return 1 if results.best is None else 0


def _run(
    console: "Console", results: "SweepResults", number: int, settings: dict[str, Any], out: Path, lock: IO[bytes]
) -> dict[str, Any]:
    """Run one trial and print how it went; its record."""
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    from mhc.sweeps.schema import short_names, shown
    from mhc.sweeps.trials import LOG, NeverLogged, judge, run_trial
    from mhc.util.progress import bar

    sweep, folder = results.sweep, out / f"trial-{number:03d}"
    short = short_names(parameter.name for parameter in sweep.varied)
    console.rule(f"trial {number} of {results.trials}", align="left")
    console.print(", ".join(f"{short[name]} {shown(settings[name])}" for name in short), soft_wrap=True, markup=False)
    console.print(f"{results.outlook()} (it writes {folder / LOG})", style="dim", soft_wrap=True)
    started = time.monotonic()
    with bar(SpinnerColumn(), TextColumn("running"), TimeElapsedColumn()) as progress:
        progress.add_task("")
        status = run_trial(sweep.arguments(settings, folder), folder, lock)
    try:
        value, reason = judge(folder, status, sweep.metric, sweep.maximise)
    except NeverLogged as error:
        if results.best is None:
            raise UserError(
                f"trial {number} finished, but never logged '{sweep.metric}'; it logged {error}: correct metric.name, and "
                f"start again with another --out than '{out}'"
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


def _check_flags(console: "Console", command: list[str]) -> None:
    """Raise UserError where run.py does not take the first trial's flags, before every trial fails by them."""
    if not any(Path(part).resolve() == RUN for part in command):
        return
    with console.status("reading the first trial's settings"):
        process = subprocess.run(
            [*command, "--print_config"], stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8"
        )
    if process.returncode:
        lines = process.stderr.strip().splitlines() or [f"exit status {process.returncode}"]
        raise UserError(f"run.py refuses the first trial's flags: {lines[-1].removeprefix('error: ')}")


def _settings(sweep: "Sweep", seed: int) -> dict[str, Any]:
    """What must be the same for a sweep to resume."""
    return {
        "command": " ".join([sweep.program, *sweep.command]),
        "method": sweep.method,
        "metric": f"{'maximize' if sweep.maximise else 'minimize'} {sweep.metric}",
        "seed": seed if sweep.method == "random" else None,
        **{
            parameter.name: {key: value for key, value in asdict(parameter).items() if value and key != "name"}
            for parameter in sweep.parameters
        },
    }


def _parser() -> Parser:
    parser = Parser(
        prog="run.py sweep",
        description="Run the trials of a sweep file (the schema of Weights & Biases; method grid or random) one after the "
        "other, without an account. Each trial has its own folder and process; failed and diverged ones are marked. An "
        "interrupted sweep resumes with the same command. Writes results.json, results.md and parallel.png after every "
        "trial. The value of a trial is the best of the metric over its run. With an account, the same file works with "
        "`wandb sweep FILE` and `wandb agent`.",
    )
    add = parser.add_argument
    add("file", metavar="FILE", help="e.g. configs/sweeps/learning_rate.yaml")
    add("--out", metavar="DIR", help="where trials and results go (default runs/sweeps/<name of the file>)")
    add("--trials", type=int, metavar="N", help="at most N trials (default: the file's run_cap, or the whole grid)")
    add("--seed", type=int, default=0, metavar="N", help="seed of random trials (default 0)")
    return parser
