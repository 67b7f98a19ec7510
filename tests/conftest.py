"""What several test files are given: backbones, heads, conversations, a tokenizer."""

import os
import re

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

# What starts processes, trains or decodes at length: `make test-quick` leaves it out (measured: --durations=0).
SLOW = re.compile(
    r"tests/(distributed|sweeps|chat|callbacks|commands|benchmarks|estimate)/|test_(page|abuse|notebooks|logging|run_page|collect"
    r"|report|training|models|distill\w*|mt_bench|teacher_forced|launchers|packing|lm_dry_run|resumed_batches)\.py"
    r"|test_(drawn_text|rounds_over|in_bf16|end_of_text|a_compiled|known_guesses)|test_engine.py.*\[(?!.*(llama|gemma3_text))"
    r"|test_model_types.py|test_chat_template.py.*(gemma|mistral|phi|zephyr|vicuna)|test_(full_disk|it_needs_torch)"
)


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW.search(item.nodeid):
            item.add_marker(pytest.mark.slow)


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
