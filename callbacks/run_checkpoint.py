"""A run that is stopped at any moment resumes as if it had not been: last.ckpt, the random numbers, and one log.

Everything needed to resume is saved or derived from what is saved: the heads, the optimizer and its schedule, the loops'
counters and the place in the data are in last.ckpt; the order of the data depends on its seed and the epoch
(datamodules.batching), the random numbers of a batch on the run's seed and the batch's number
(mhc.training.optimization.reseed).

last.ckpt is written between two batches, where no gradient is half accumulated and everything logged so far is on disk.
"""

import csv
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mhc.checkpoints.heads_folder import DESCRIPTION
from mhc.checkpoints.settings import compare
from mhc.checkpoints.training_file import previous
from mhc.errors import UserError
from mhc.reports.run_logs import whole_rows
from mhc.util.files import write_atomically

LAST = "last.ckpt"


class RunCheckpoint(Callback):
    """Writes last.ckpt into default_root_dir every `every_n_steps` optimizer steps, after every validation, at the end, and
    (one process) when it is interrupted. `--ckpt_path last` resumes from it, with the log of the stopped run up to that step.

    overwrite: allow a fresh run in the folder of an earlier one.
    """

    def __init__(self, every_n_steps: int = 100, overwrite: bool = False):
        if every_n_steps < 1:
            raise UserError(f"checkpoint.every_n_steps is {every_n_steps}: it must be at least 1")
        self.every_n_steps, self.overwrite = every_n_steps, overwrite
        self.steps: int | None = None  # when the batch before began
        self.due = False
        self.whole = False  # heads and optimizer are those of the counters
        self.logs: list[str] = []  # the CSV logs' folders, seen from default_root_dir
        self.settings: dict[str, Any] = {}  # of this run, by dotted name, where a command line made it
        self.settings_before: dict[str, Any] = {}  # those of the run that wrote the checkpoint

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        if self.settings and trainer.ckpt_path and not self.settings_before and trainer.is_global_zero:
            print("this checkpoint does not hold its settings: they are not compared", file=sys.stderr)
        if self.settings and self.settings_before:
            callbacks: list[Callback] = vars(trainer)["callbacks"]
            states = {type(callback).__name__: callback.state_dict() for callback in callbacks}
            if (line := compare(self.settings_before, self.settings, states)) and trainer.is_global_zero:
                print(line, file=sys.stderr)
        last = Path(trainer.default_root_dir) / LAST
        heads = last.with_name(DESCRIPTION)
        if trainer.ckpt_path and Path(trainer.ckpt_path).resolve().parent == last.parent.resolve():
            return
        self.logs = []  # a checkpoint from elsewhere names other logs
        if self.overwrite:
            if trainer.is_global_zero:
                last.unlink(missing_ok=True)
                previous(last).unlink(missing_ok=True)
        elif last.exists() or previous(last).exists() or heads.exists():
            raise UserError(
                f"'{last.parent}' already holds {'trained heads' if heads.exists() else 'a run'}: choose another "
                "--trainer.default_root_dir, resume with --ckpt_path last, or start over with --checkpoint.overwrite true"
            )

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.is_global_zero:
            root = Path(trainer.default_root_dir)
            loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
            for logger, folder in zip(loggers, self.logs):
                _continue_log(logger, root / folder, trainer.global_step)
            for logger in loggers:
                logger.experiment._rewrite_with_new_header = partial(
                    _rewrite, Path(logger.experiment.metrics_file_path)
                )
            self.logs = [os.path.relpath(logger.log_dir, root) for logger in loggers]

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, index: int) -> None:
        if self.steps is None:  # Lightning counts log lines apart and miscounts on some ways to resume
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        elif trainer.global_step != self.steps:
            self.due |= trainer.global_step % self.every_n_steps == 0
            if self.due:
                self.save(trainer)
        self.whole = trainer.global_step != self.steps
        self.steps = trainer.global_step

    def on_before_optimizer_step(self, trainer: Trainer, module: LightningModule, optimizer: Any) -> None:
        self.whole = False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self.whole = False  # gradients may be half accumulated

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.due |= trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.global_step != self.steps:
            self.save(trainer)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.ckpt_path and self.steps is None and trainer.is_global_zero:
            limits = f"trainer.max_epochs {trainer.max_epochs}, trainer.max_steps {trainer.max_steps}"
            print(f"nothing was left to train behind step {trainer.global_step} ({limits})", file=sys.stderr)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        """Save where the heads are those after some batch, unless a UserError stopped the run: then the heads may be what is
        wrong. (Several processes are not all at the same batch: they save nothing.)"""
        if isinstance(exception, UserError):
            return
        between = isinstance(exception, SIGTERMException) and trainer.global_step != self.steps
        if trainer.world_size == 1 and trainer.state.fn == "fit" and (self.whole or between):
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Write last.ckpt; all processes take part."""
        self.whole = self.due = False
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(Path(trainer.default_root_dir) / LAST, weights_only=False)

    def on_save_checkpoint(self, trainer: Trainer, module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Let the loops' counters count finished batches alone: then Lightning resumes behind the last of them."""
        loops = checkpoint["loops"]["fit_loop"]
        epochs, batches = loops["epoch_progress"], loops["epoch_loop.batch_progress"]
        done = batches["current"]["completed"]
        if batches["current"]["ready"] > done:  # one has begun, with this save or with what went wrong
            batches["is_last_batch"] = False
            for scope in ("total", "current"):
                batches[scope] = dict.fromkeys(batches[scope], batches[scope]["completed"])
        if done and len(set(epochs["current"].values())) == 1:  # training has ended, at the end of an epoch or within
            if done < trainer.num_training_batches:
                for scope in ("total", "current"):
                    epochs[scope]["processed"] -= 1
                    epochs[scope]["completed"] -= 1
            else:
                batches["is_last_batch"] = False
                batches["current"] = dict.fromkeys(batches["current"], 0)

    def state_dict(self) -> dict[str, Any]:
        return {"logs": self.logs, "settings": self.settings}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.logs, self.settings_before = state["logs"], state.get("settings", {})


def _continue_log(logger: CSVLogger, folder: Path, steps: int) -> None:
    """Begin with the lines of the log in `folder` about the first `steps` steps; later ones are trained, and logged,
    again."""
    try:
        lines = whole_rows(folder / logger.experiment.NAME_METRICS_FILE)
    except FileNotFoundError:
        return  # moved away, or nothing was logged
    earlier = [line for line in lines if int(line["step"]) < steps]
    logger.experiment.metrics = earlier + logger.experiment.metrics
    logger.save()


def _rewrite(path: Path, names: list[str]) -> None:
    """Give a log another header. (Lightning does it in place, where a kill would lose the lines.)"""
    with open(path, encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))

    def write(target: Path) -> None:
        with open(target, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(lines)

    write_atomically(path, write)
