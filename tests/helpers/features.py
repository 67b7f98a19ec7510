"""Collecting features, and training on them, in small."""

import numpy as np
import torch

from mhc.backbone.model import Backbone
from mhc.training.draft_module import DraftModule
from tests.helpers.backbones import VOCABULARY
from tests.helpers.drafters import randomised

HEADS = 3


class Rows:
    """Data made of rows: the part of ConversationData that collecting reads."""

    def __init__(self, lengths: list[int], seed: int = 0):
        random = np.random.default_rng(seed)
        made = [(random.integers(0, VOCABULARY, n).astype(np.int32), random.random(n) < 0.8) for n in lengths]
        self.by_split = {"train": made[2:], "validation": made[:1], "test": made[1:2]}

    def rows(self, split):
        return self.by_split[split]

    def prompts(self, split, count):
        return []


def settings_for(backbone, **changes) -> dict:
    """Settings as the command makes them, small."""
    made = {
        **{"sample_size": 24, "stride": 8, "max_samples": None, "store": "float32", "shard_mib": 1},
        **{"batch_tokens": 128, "taps": [0, 1], "width": backbone.width, "backbone": backbone.name},
        "fingerprint": backbone.fingerprint(),
    }
    return made | changes


def module_on(backbone, family, monkeypatch, **arguments) -> DraftModule:
    """A DraftModule whose heads are not at their start, where most families are the identity."""
    monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, name, **_: backbone))
    torch.manual_seed(0)
    module = DraftModule(lambda backbone: family(backbone, HEADS), "tiny", **arguments)
    randomised(module.drafter, 0.05)
    return module
