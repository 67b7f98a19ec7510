"""The model card says what the run's files say, and nothing that was not measured."""

import json
import os

import pytest
import yaml

from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Medusa
from mhc.errors import UserError
from mhc.export.card import card
from mhc.trees.shapes import FixedTree

MACHINE = {"machine": {"threads": 1, "processor": "Abacus", "gpu": None}, "versions": {"torch": "2.13.0"}}
DECODED = {
    **{"tokens_per_step": 2.468, "speedup": 1.357, "speedup_q1": 1.1, "speedup_q3": 1.579, "prompts": 17},
    **{"identical": 16, "max_new_tokens": 99, "tree_nodes": 7, **MACHINE},
}


@pytest.fixture
def heads(backbones, tmp_path):
    """A folder of heads, and the heads."""
    drafter = Medusa(backbones("llama"), heads=2)
    save_drafter(
        tmp_path, drafter, FixedTree.chain(2), {"val/head0_top1": 0.514, "val/head1_top1": 0.327, "val/loss": 9}
    )
    return tmp_path, drafter


def test_figures_are_those_of_the_files(heads):
    folder, drafter = heads
    (folder / "decode_benchmark.json").write_text(json.dumps(DECODED))
    (folder / "tree.json").write_text(json.dumps({"speedup": 1.777, "tokens_per_step": 3.111, "prompts": 5, **MACHINE}))
    (folder / "training.json").write_text(
        json.dumps({"steps": 1234, "tokens": 5678901, "seconds": 90, "parameters": 4321, **MACHINE})
    )
    text = card(folder, drafter, "hf", "use them")
    for figure in (
        "2.47 |",
        "1.36x (quartiles 1.10 - 1.58)",
        "16 of 17",
        "at most 99 tokens",
        "0.51 0.33",
        "3.11 tokens per step",
    ):
        assert figure in text, figure
    for figure in (
        "1.78x over 5 other prompts",
        "1,234 steps on 5,678,901 tokens",
        "1.5 minutes",
        "1 thread of Abacus",
    ):
        assert figure in text, figure


def test_what_was_not_measured_is_said_not_to_be(heads):
    folder, drafter = heads
    text = card(folder, drafter, "hf", "use them")
    assert "Decoding was not measured" in text and "speedup" not in text and "Trained" not in text
    (folder / "decode_benchmark.json").write_text(json.dumps(DECODED))
    os.utime(folder / "decode_benchmark.json", (1, 1))  # before the heads were written
    text = card(folder, drafter, "hf", "use them")
    assert "earlier heads only" in text and "2.47" not in text


@pytest.mark.parametrize("content", ["{", "[1]", json.dumps({"tokens_per_step": 2.0})])
def test_a_damaged_file_is_one_clear_line(heads, content):
    folder, drafter = heads
    (folder / "decode_benchmark.json").write_text(content)
    with pytest.raises(UserError, match=r"damaged .*(make it|measure) again"):
        card(folder, drafter, "hf", "use them")


@pytest.mark.parametrize(
    "name, license, base",
    [
        ("pocket", "apache-2.0", None),
        ("some-lab/Model-7B", None, "some-lab/Model-7B"),
        ("/tmp", None, None),
    ],
)
def test_base_model_and_licence(heads, monkeypatch, name, license, base):
    folder, drafter = heads
    monkeypatch.setattr(drafter.backbone, "name", name)
    front = front_matter(card(folder, drafter, "hf", "use them"))
    assert front.get("license") == license and front.get("base_model") == base
    assert front_matter(card(folder, drafter, "hf", "use them", "mit"))["license"] == "mit"


def test_the_licence_is_that_of_the_backbones_own_card(heads, monkeypatch, tmp_path_factory):
    folder, drafter = heads
    model = tmp_path_factory.mktemp("model")
    (model / "README.md").write_text("---\nlicense: llama3.1\n---\n# A model\n")
    monkeypatch.setattr(drafter.backbone, "name", str(model))
    text = card(folder, drafter, "hf", f"serve {model}")
    assert front_matter(text)["license"] == "llama3.1"
    assert str(model) not in text, "a card is public, and where the model lies here is not"


def front_matter(text: str) -> dict:
    return yaml.safe_load(text.split("---")[1])
