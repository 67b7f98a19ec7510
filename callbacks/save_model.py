"""Leaves a trained language model as a stock Hugging Face directory."""

from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer

from mhc.lm.module import LMModule


class SaveModel(Callback):
    """At the end of `fit`, writes model and tokenizer to <default_root_dir>/model; of a run that trained adapters the model
    with these merged in, and the adapters alone to <default_root_dir>/model-adapter.

    dtype: precision of the stored weights; bfloat16 halves the file and is what training computed in.
    """

    def __init__(self, dtype: str = "bfloat16"):
        self.dtype = getattr(torch, dtype)

    def on_fit_end(self, trainer: Trainer, module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "model"
        if trainer.is_global_zero:
            assert isinstance(module, LMModule)
            module.save_pretrained(folder, self.dtype)
        trainer.print(f"model and tokenizer written to {folder}")
