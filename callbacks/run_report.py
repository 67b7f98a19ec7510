"""One page about a run, beside its heads."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mhc.reports.run_page import report
from mhc.util.files import write_atomically

RESULT = "report.html"


class RunReport(Callback):
    """At the end of `fit` (also where it was interrupted or failed) and of `test` writes report.html into
    default_root_dir, from the files that are there by then."""

    def __init__(self) -> None:
        self._trained = False

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        self._trained = True

    def teardown(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        if stage in ("fit", "test"):  # behind every callback that writes at the end of either
            self.write(trainer)

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if self._trained:
            self.write(trainer)

    def write(self, trainer: Trainer) -> None:
        """Make the page from what the run's folder holds now."""
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            page = report(folder)
            write_atomically(folder / RESULT, lambda file: file.write_text(page, encoding="utf-8"))
            trainer.print(f"report: {folder / RESULT}")
