"""What several test files are given: backbones, heads, conversations, a tokenizer."""

import os

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.pop("PL_GLOBAL_SEED", None)

from types import SimpleNamespace

import pytest
import torch

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Cascade
from mhc.lm.tokenizer import train_tokenizer
from mhc.trees.shapes import FixedTree
from tests.helpers.backbones import tiny_backbone
from tests.helpers.language_models import TEXT
from tests.helpers.runs import sums

torch.set_num_threads(1)  # tiny models lose more to threads than they gain


@pytest.fixture(autouse=True)
def forgotten_seed():
    """run.py leaves its seed in the environment, where Lightning's strategies find it and start over from it: a later
    test would draw other weights in its processes than in its own."""
    yield
    os.environ.pop("PL_GLOBAL_SEED", None)


@pytest.fixture(scope="session")
def backbones():
    """Backbones by architecture name, each built once."""
    built = {}

    def get(name: str) -> Backbone:
        if name not in built:
            built[name] = tiny_backbone(name)
        return built[name]

    return get


@pytest.fixture(scope="module")
def tiny():
    """A random backbone deep enough to be tapped, with as much of a tokenizer as padding needs."""
    built = tiny_backbone("llama", num_hidden_layers=4)
    built.tokenizer = SimpleNamespace(pad_token_id=0)
    return built


@pytest.fixture(scope="module")
def heads(tmp_path_factory):
    """Untrained heads on the pocket, in a folder."""
    folder = tmp_path_factory.mktemp("heads")
    save_drafter(folder, Cascade(Backbone.load("pocket"), heads=4), FixedTree.chain(4))
    return folder


@pytest.fixture
def conversations(tmp_path):
    return sums(tmp_path)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The folder of a tokenizer that knows <think> and <answer>."""
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXT, 300).save_pretrained(folder)
    return str(folder)
