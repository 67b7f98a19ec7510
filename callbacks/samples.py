"""What a language model says while it learns: the same prompts answered with every validation."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from transformers import GenerationConfig

from mhc.errors import UserError
from mhc.text.encoding import end_token_ids
from mhc.util.files import write_atomically, write_json

RESULT, TABLE = "samples.json", "samples.md"
BEGINNING = 12  # tokens of a document that the model is to go on with
COLUMNS = ["step", "prompt", "answer"]
# All that a model's own generation_config could want otherwise: what is not said here it would be asked for.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}


class Samples(Callback):
    """With every validation of `fit` answers the same `prompts` validation prompts greedily, and adds a table to samples.md in
    default_root_dir (samples.json for programs; a table of Weights & Biases where it logs). Where the data are documents, the
    model goes on with their first words. A run that goes on writes no step twice, one that starts over none of the run before;
    training is not disturbed. Answers end where the model's context does.
    """

    def __init__(self, prompts: int = 8, max_new_tokens: int = 64):
        if prompts < 1 or max_new_tokens < 1:
            raise UserError(f"Samples of {prompts} prompts and {max_new_tokens} tokens show nothing")
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self._asked: list[tuple[str, list[int]]] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Forget what was said beyond the step that the run begins at, or goes on from."""
        path = Path(trainer.default_root_dir) / RESULT
        if trainer.is_global_zero and path.exists():
            told = json.loads(path.read_text())
            self._write(path, {step: rows for step, rows in told.items() if int(step) <= trainer.global_step})

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        step = trainer.global_step
        if self._asked is None:
            self._asked = asked(trainer.datamodule, module.tokenizer, self.prompts)
        table = [(prompt, self.answer(module, ids)) for prompt, ids in self._asked]
        path = Path(trainer.default_root_dir) / RESULT
        told = json.loads(path.read_text()) if path.exists() else {}
        told = {before: rows for before, rows in told.items() if int(before) < step} | {str(step): table}
        self._write(path, told)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_text("samples", columns=COLUMNS, data=[[step, *row] for row in table], step=step)

    def _write(self, path: Path, told: dict[str, list]) -> None:
        write_json(path, told)
        write_atomically(path.with_name(TABLE), lambda at: at.write_text(as_markdown(told), encoding="utf-8"))

    @torch.no_grad()
    def answer(self, module: LightningModule, ids: list[int]) -> str:
        """What the model says next, greedily, without what ends it."""
        model, training = module.model, module.training
        model.eval()
        prompt = torch.tensor([ids], device=module.device)
        ends = end_token_ids(module.tokenizer)
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 30
        chosen = GenerationConfig(
            max_new_tokens=max(1, min(self.max_new_tokens, context - len(ids))),
            eos_token_id=ends,
            pad_token_id=ends[0],
            **GREEDY,
        )
        found = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=chosen)
        model.train(training)
        return module.tokenizer.decode([token for token in found[0, len(ids) :].tolist() if token not in ends])


def asked(data: Any, tokenizer: Any, count: int) -> list[tuple[str, list[int]]]:
    """What is asked: text and token ids of each prompt."""
    prompts = data.prompts("validation", count)
    if prompts:
        return [(prompt.messages[-1]["content"], prompt.ids) for prompt in prompts]
    rows = data.rows("validation")
    starts = [rows[number][0][:BEGINNING].tolist() for number in range(min(count, len(rows)))]
    return [(tokenizer.decode(ids), ids) for ids in starts]


def as_markdown(told: dict[str, list]) -> str:
    """A table for each step, the newest first."""
    lines = ["# What the model says", ""]
    for step in sorted(told, key=int, reverse=True):
        lines += [f"## Step {step}", "", "| prompt | answer |", "|---|---|"]
        lines += [f"| {_cell(prompt)} | {_cell(answer)} |" for prompt, answer in told[step]] + [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table, whatever it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return "<br>".join(text.splitlines())
