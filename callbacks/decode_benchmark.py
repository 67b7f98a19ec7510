"""Decodes held-out prompts plain and with heads: the figures that count."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from callbacks.drafter_checkpoint import DrafterCheckpoint
from mhc.checkpoints.heads_folder import for_decoding, tuned_tree
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.evaluation.decode_benchmark import race
from mhc.evaluation.teacher_forced import predict_all, save_guesses
from mhc.sampling import GREEDY
from mhc.training.data import data_of
from mhc.training.draft_module import DraftModule
from mhc.tuning.measure import example_round
from mhc.util.files import write_json
from mhc.util.progress import bar
from mhc.util.provenance import machine, versions

RESULT, GUESSES = "decode_benchmark.json", "guesses.csv"


class DecodeBenchmark(Callback):
    """`test` decodes `prompts` held-out prompts both ways, prints a table and writes decode_benchmark.json into
    default_root_dir, and guesses.csv with every guess of every head over the answers. The tree is the one that
    `run.py tune` found, or the DrafterCheckpoint's, or a chain of all heads.
    """

    def __init__(self, prompts: int = 20, max_new_tokens: int = 128):
        self.prompts, self.max_new_tokens = prompts, max_new_tokens

    def measure(self, trainer: Trainer, module: LightningModule) -> dict[str, Any]:
        """One comparison over held-out prompts; keeps every guess."""
        assert isinstance(module, DraftModule)
        prompts = [prompt.ids for prompt in data_of(trainer).prompts("test", self.prompts)]
        if not prompts:
            raise UserError("the data has no test prompts to decode: give it more conversations")
        drafter, tree = for_decoding(module.drafter), tuned_tree(Path(trainer.default_root_dir))
        callbacks: list[Callback] = getattr(trainer, "callbacks", [])
        trained_for = [c.shape(drafter) for c in callbacks if isinstance(c, DrafterCheckpoint)]
        engine = Engine(module.backbone, drafter, tree or next(iter(trained_for), None))
        with bar() as progress:
            task = progress.add_task(f"decoding {len(prompts)} prompts, plain and with heads", total=len(prompts))
            figures, plain = race(
                {"": engine}, prompts, self.max_new_tokens, lambda done, _: progress.update(task, completed=done)
            )
        guesses = predict_all(drafter, prompts, [answer.token_ids for answer in plain])  # by all processes
        if trainer.is_global_zero:
            save_guesses(Path(trainer.default_root_dir) / GUESSES, guesses, module.tokenizer)
        example = example_round(engine, prompts[0], GREEDY) if engine.tree.nodes > 1 else None
        return {**figures[""], "example": example, "machine": machine(), "versions": versions()}

    def on_test_end(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, DraftModule)
        module.backbone.lay_out()
        figures = self.measure(trainer, module)
        logged = trainer.callback_metrics
        accuracy = [
            {kind: round(float(logged[f"test/head{head}_{kind}"]), 4) for kind in ("top1", "top5")}
            for head in range(module.drafter.draft_length)
        ]
        figures = {"drafter": type(module.drafter).__name__.lower(), **figures, "head_accuracy": accuracy}
        if trainer.is_global_zero:
            write_json(Path(trainer.default_root_dir) / RESULT, figures)
            show({figures["drafter"]: figures})
            if module.backbone.quantised:
                print(module.backbone.quantised)
            for logger in trainer.loggers:
                logger.log_metrics({f"test/{key}": figures[key] for key in ("tokens_per_step", "speedup")})


def show(drafters: dict[str, dict[str, Any]]) -> None:
    """A table with one row a drafter, 80 columns wide."""
    table = Table(title="held-out prompts, plain decoding against drafting", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("drafter", no_wrap=True)
    for heading in ("top-1 by head", "tok/step", "tok/s", "plain", "speedup", "same"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, figures in drafters.items():
        table.add_row(
            name,
            " ".join(f"{head['top1']:.2f}".lstrip("0") for head in figures["head_accuracy"]),
            f"{figures['tokens_per_step']:.2f}",
            f"{figures['tokens_per_second']:.0f}",
            f"{figures['plain_tokens_per_second']:.0f}",
            f"{figures['speedup']:.2f}x",
            f"{figures['identical']}/{figures['prompts']}",
        )
    Console().print(table)
