"""One trial of a sweep: a process in a folder of its own, and its outcome.

A trial's value is the best that its metric has been over the run, as CSVLogger wrote it: DrafterCheckpoint keeps the heads
of that step. (wandb's own table shows the last value.) A trial has failed if its process did, or if its loss or metric
is not finite at the end: heads of NaN still decode, at one token a step.
"""

import fcntl
import math
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

from mhc.errors import UserError
from mhc.reports.run_logs import whole_rows

LOG, CHECKPOINTS, RUNNING = "log.txt", "last*.ckpt", "running.lock"
PATIENCE = 60  # seconds until an interrupted trial is killed


class Outcome(NamedTuple):
    """value: the metric's best, or None with the reason."""

    value: float | None
    reason: str | None


class NeverLogged(Exception):
    """The trial finished, but its metric is not among those that it logged."""

    def __init__(self, logged: list[str]):
        super().__init__(", ".join(logged) or "nothing")


@contextmanager
def only_runner(folder: Path, notify: Callable[[str], None]) -> Iterator[IO[bytes]]:
    """A lock that trials hold as well: after a sweep was killed, it waits until the trial that was running has ended,
    whose result is then used."""
    with open(folder / RUNNING, "wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            notify("a trial of the sweep that was killed is still running: waiting for its end")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock


def run_trial(command: list[str], folder: Path, lock: IO[bytes]) -> int:
    """Run a trial, or resume it from its last checkpoint, or restart it where there is none; its exit status.
    Its command and output go to log.txt. An interruption (Ctrl-C) is passed on to it and raised once it has ended."""
    if any(folder.glob(CHECKPOINTS)):  # the last or the one before it
        command = [*command, "--ckpt_path=last"]
    elif folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(exist_ok=True)
    with open(folder / LOG, "ab", buffering=0) as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()]
            )
        except OSError as error:
            raise UserError(f"cannot start '{command[0]}' ({error.strerror}): correct the sweep's command") from error
        try:
            return process.wait()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(PATIENCE)
            except (subprocess.TimeoutExpired, KeyboardInterrupt):
                process.kill()
                process.wait()
            raise


def judge(folder: Path, status: int, metric: str, maximise: bool) -> Outcome:
    """The outcome of a trial that ended with this exit status. Raises NeverLogged."""
    if status < 0:
        return Outcome(None, f"killed by {signal.Signals(-status).name}")
    if status:
        return Outcome(None, f"exit status {status}: {_last_line(folder / LOG)}")
    logged = read_logged(folder)
    if metric not in logged:
        raise NeverLogged(sorted(logged))
    for name, values in logged.items():
        step, value = values[-1]
        if (name == metric or name.endswith("loss")) and not math.isfinite(value):
            return Outcome(None, f"diverged: {name} is {value} at step {step}")
    best = max if maximise else min
    return Outcome(best(value for _, value in logged[metric] if math.isfinite(value)), None)


def read_logged(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All figures that CSVLoggers wrote in the folder, by name: (step, value), in the order of writing."""
    logged: dict[str, list[tuple[int, float]]] = {}
    for path in sorted(folder.rglob("metrics.csv"), key=lambda path: path.stat().st_mtime_ns):
        for row in whole_rows(path):
            step = int(row.pop("step"))
            for name, value in row.items():
                if name != "epoch":
                    logged.setdefault(name, []).append((step, float(value)))
    return logged


def _last_line(log: Path) -> str:
    """The last line that a program has printed, with the reason where it failed."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return "it printed nothing" if lines[-1].startswith("$ ") else lines[-1][:300]
