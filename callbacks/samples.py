"""What a language model says while it learns: the same prompts answered with every validation."""

import json
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from transformers import GenerationConfig, GenerationMixin, PreTrainedTokenizerBase

from mhc.errors import UserError
from mhc.lm.module import LMModule
from mhc.text.encoding import end_token_ids
from mhc.training.data import TrainingData, data_of
from mhc.util.files import write_atomically, write_json

RESULT, TABLE = "samples.json", "samples.md"
BEGINNING = 12  # tokens of a document that the model continues
COLUMNS = ["step", "prompt", "answer"]
# Every setting that a model's own generation_config could change: what is absent here would be taken from it.
GREEDY = {"do_sample": False, "num_beams": 1, "temperature": 1.0, "top_p": 1.0, "top_k": 50, "repetition_penalty": 1.0}


class Samples(Callback):
    """With every validation of `fit` answers the same `prompts` validation prompts greedily, and adds a table to samples.md in
    default_root_dir (samples.json for programs; a table of Weights & Biases where it logs). Where the data are documents, the
    model continues their first words. A resumed run writes no step twice, one that starts over none of the run before;
    training is not disturbed. Answers end where the model's context does.
    """

    def __init__(self, prompts: int = 8, max_new_tokens: int = 64):
        if prompts < 1 or max_new_tokens < 1:
            raise UserError(f"Samples of {prompts} prompts and {max_new_tokens} tokens show nothing")
        self.prompts, self.max_new_tokens = prompts, max_new_tokens
        self._prompts: list[tuple[str, list[int]]] | None = None

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Drop the samples of steps beyond the one that the run begins at or resumes from."""
        path = Path(trainer.default_root_dir) / RESULT
        if trainer.is_global_zero and path.exists():
            samples = json.loads(path.read_text(encoding="utf-8"))
            self._write(path, {step: rows for step, rows in samples.items() if int(step) <= trainer.global_step})

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit" or not trainer.is_global_zero:
            return
        step = trainer.global_step
        assert isinstance(module, LMModule)
        if self._prompts is None:
            self._prompts = prompts_of(data_of(trainer), module.tokenizer, self.prompts)
        table = [(prompt, self.answer(module, ids)) for prompt, ids in self._prompts]
        path = Path(trainer.default_root_dir) / RESULT
        before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        earlier = {number: rows for number, rows in before.items() if int(number) < step}
        self._write(path, earlier | {str(step): table})
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_table("samples", columns=COLUMNS, data=[[step, *row] for row in table], step=step)

    def _write(self, path: Path, samples: dict[str, list]) -> None:
        write_json(path, samples)
        write_atomically(path.with_name(TABLE), lambda file: file.write_text(as_markdown(samples), encoding="utf-8"))

    @torch.no_grad()
    def answer(self, module: LMModule, ids: list[int]) -> str:
        """What the model says next, greedily, without what ends it."""
        model, training = module.model, module.training
        assert isinstance(model, GenerationMixin)
        model.eval()
        prompt = torch.tensor([ids], device=module.device)
        ends = end_token_ids(module.tokenizer)
        context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 30
        settings = GenerationConfig(
            max_new_tokens=max(1, min(self.max_new_tokens, context - len(ids))),
            eos_token_id=ends,
            pad_token_id=ends[0],
            **GREEDY,
        )
        output = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=settings)  # type: ignore[misc]  # its self type exists for checkers only
        assert isinstance(output, torch.Tensor)
        model.train(training)
        return str(module.tokenizer.decode([token for token in output[0, len(ids) :].tolist() if token not in ends]))


def prompts_of(data: TrainingData, tokenizer: PreTrainedTokenizerBase, count: int) -> list[tuple[str, list[int]]]:
    """Text and token ids of each prompt; of documents their first words."""
    prompts = data.prompts("validation", count)
    if prompts:
        return [(prompt.messages[-1]["content"], prompt.ids) for prompt in prompts]
    rows = data.rows("validation")
    starts = [rows[number][0][:BEGINNING].tolist() for number in range(min(count, len(rows)))]
    return [(str(tokenizer.decode(ids)), ids) for ids in starts]


def as_markdown(samples: dict[str, list]) -> str:
    """A table for each step, the newest first."""
    lines = ["# What the model says", ""]
    for step in sorted(samples, key=int, reverse=True):
        lines += [f"## Step {step}", "", "| prompt | answer |", "|---|---|"]
        lines += [f"| {_cell(prompt)} | {_cell(answer)} |" for prompt, answer in samples[step]] + [""]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that stays in its cell of a Markdown table, whatever it is."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")
    return "<br>".join(text.splitlines())
