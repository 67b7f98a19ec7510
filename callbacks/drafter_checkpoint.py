"""Checkpoints of a run that trains heads: the best ones, and the place to go on from."""

from functools import partial
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mhc.checkpoint import DESCRIPTION, save_drafter, write_atomically
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.tree import FixedTree, Shape, shape_of


class DrafterCheckpoint(Callback):
    """After every validation writes last.ckpt (to resume with) and, where `monitor` has risen,
    best.ckpt and the heads themselves (drafter.json, drafter.safetensors), all into default_root_dir.

    tree: what the heads shall decode with until they are tuned: choices (paths of ranks), a name, or the arguments
    of a FixedTree or DynamicTree; default: a chain of all heads.
    monitor: a logged figure, higher is better. overwrite: allow a fresh run to replace the heads of
    an earlier one.
    """

    def __init__(
        self,
        tree: list[list[int]] | dict[str, Any] | str | None = None,
        monitor: str = "val/tokens_per_step",
        overwrite: bool = False,
    ):
        self.tree, self.monitor, self.overwrite = tree, monitor, overwrite
        self.best = float("-inf")

    def on_fit_start(self, trainer: Trainer, module: LightningModule) -> None:
        existing = Path(trainer.default_root_dir) / DESCRIPTION
        if existing.exists() and not self.overwrite and not trainer.ckpt_path:
            raise UserError(
                f"'{existing.parent}' already holds trained heads: choose another --trainer.default_root_dir, go on "
                "with --ckpt_path last, or set the DrafterCheckpoint's `overwrite: true`"
            )

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        folder = Path(trainer.default_root_dir)
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.monitor not in figures:
            raise UserError(
                f"DrafterCheckpoint monitors '{self.monitor}', which nothing logs; there are: {', '.join(sorted(figures))}"
            )
        better = figures[self.monitor] > self.best
        if better:
            self.best = figures[self.monitor]
        for name in ["last.ckpt", *(["best.ckpt"] if better else [])]:
            write_atomically(folder / name, partial(trainer.save_checkpoint, weights_only=False))
        if better and trainer.is_global_zero:
            drafter = module.drafter
            tree = self.shape(drafter)
            kept = {name: value for name, value in figures.items() if name.startswith("val/")}
            save_drafter(folder, drafter, tree, kept)

    def shape(self, drafter: Drafter) -> Shape:
        """The tree that these heads shall decode with."""
        return FixedTree.chain(drafter.heads) if self.tree is None else shape_of(self.tree)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
