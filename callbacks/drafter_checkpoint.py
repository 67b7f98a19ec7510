"""The best heads of a run, by a measured figure."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.training.draft_module import DraftModule
from mhc.trees.shapes import FixedTree, TreeShape, parse_tree


class DrafterCheckpoint(Callback):
    """After every validation in which `monitor` has risen, writes best.ckpt and the heads themselves (drafter.json,
    drafter.safetensors) into default_root_dir. (last.ckpt, to resume from, is callbacks.run_checkpoint's.)

    tree: what the heads decode with until they are tuned: choices (paths of ranks), a name, or the arguments
    of a FixedTree or DynamicTree; default: a chain of all heads.
    monitor: a logged figure, higher is better.
    """

    def __init__(
        self, tree: list[list[int]] | dict[str, Any] | str | None = None, monitor: str = "val/tokens_per_step"
    ):
        self.tree, self.monitor = tree, monitor
        self.best = float("-inf")

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        folder = Path(trainer.default_root_dir)
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.monitor not in figures:
            raise UserError(
                f"DrafterCheckpoint monitors '{self.monitor}', which nothing logs; there are: {', '.join(sorted(figures))}"
            )
        if not trainer.strategy.broadcast(figures[self.monitor] > self.best):
            return
        self.best = figures[self.monitor]
        trainer.save_checkpoint(folder / "best.ckpt", weights_only=False)
        state = trainer.strategy.lightning_module_state_dict()  # all processes take part: some hold but a part of it
        if trainer.is_global_zero:
            assert isinstance(module, DraftModule)
            metrics = {name: value for name, value in figures.items() if name.startswith("val/")}
            heads = {name.removeprefix("drafter."): tensor for name, tensor in state.items()}
            save_drafter(folder, module.drafter, self.shape(module.drafter), metrics, heads)

    def shape(self, drafter: Drafter) -> TreeShape:
        """The tree to decode with."""
        return FixedTree.chain(drafter.draft_length) if self.tree is None else parse_tree(self.tree)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = state["best"]
