"""A run that goes on from the middle of an epoch gets the very next batch, and ends with the same heads."""

import json

import pytest
import torch
from lightning import Callback, Trainer

from datamodules import ConversationData
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade
from mhc.training.draft_module import DraftModule
from tests.helpers.backbones import tiny_backbone

QUIET = dict(
    accelerator="cpu",
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    num_sanity_val_steps=0,
    max_epochs=2,
)


class Watch(Callback):
    """What was trained on, step by step; a checkpoint after every validation."""

    def __init__(self, folder):
        self.folder, self.seen = folder, {}

    def on_train_batch_start(self, trainer, module, batch, index):
        self.seen[trainer.global_step] = batch["ids"].tolist()

    def on_validation_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize(
    "options", [{}, {"pack": True}, {"workers": 2}, {"cache": "cache"}], ids=["plain", "packed", "workers", "cache"]
)
def test_it_goes_on_with_the_very_next_batch(tmp_path, tokenizer, monkeypatch, options):
    rows = [{"question": f"what is {i}?", "answer": f"{i} is {'very ' * (i % 4)}odd"} for i in range(60)]
    (tmp_path / "data.json").write_text(json.dumps(rows))
    monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, name, **_: tiny_backbone("llama", vocab_size=258)))
    options = {name: str(tmp_path / value) if name == "cache" else value for name, value in options.items()}

    def fit(resume=None):
        torch.manual_seed(0)
        module = DraftModule(lambda backbone: Cascade(backbone, heads=2), "tiny", learning_rate=0.01)
        module.tokenizer = tokenizer
        data = ConversationData(str(tmp_path / "data.json"), max_length=96, batch_size=4, **options)
        watch = Watch(tmp_path)
        trainer = Trainer(callbacks=[watch], val_check_interval=3, limit_val_batches=1, **QUIET)
        trainer.fit(module, data, ckpt_path=resume, weights_only=True)
        return watch.seen, module.state_dict()

    seen, heads = fit()
    steps = len(seen)
    saved = sorted(int(path.stem) for path in tmp_path.glob("*.ckpt"))
    assert len(saved) >= 3 and any(step % (steps // 2) for step in saved)  # also in the middle of an epoch
    for step in saved[:3]:
        resumed, same = fit(tmp_path / f"{step}.ckpt")
        assert resumed == {number: ids for number, ids in seen.items() if number >= step}
        assert all(torch.equal(heads[name], same[name]) for name in heads)
