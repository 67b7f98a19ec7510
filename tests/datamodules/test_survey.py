"""How much there is to train on: counted, or estimated from a part that is like the rest."""

import json

import numpy as np
import pytest

import datamodules.survey
from datamodules import ConversationData
from datamodules.survey import survey
from mhc.backbone.loading import load_tokenizer


@pytest.fixture
def data(tmp_path):
    """1,200 conversations of two to forty words."""
    generator = np.random.default_rng(0)
    path = tmp_path / "many.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number in range(1200):
            answer = " ".join(["word"] * int(generator.integers(2, 40)))
            turns = [{"role": "user", "content": f"Say {number}."}, {"role": "assistant", "content": answer}]
            file.write(json.dumps({"messages": turns}) + "\n")

    def build(**more) -> ConversationData:
        found = ConversationData(str(path), max_length=64, batch_size=8, **more)
        found.tokenizer = load_tokenizer("pocket")
        return found

    return build


def test_counted_is_what_there_is(data):
    built = data()
    found = survey(built, 4)
    rows = built.rows("train")
    assert found.counted and (found.rows, found.tokens) == (len(rows), int(rows.lengths.sum()))
    assert found.batches == -(-len(rows) // 8) and found.longest == rows.lengths.max() <= 64
    anchors = [int((mask[1:-1] & mask[2:]).sum()) for _, mask in rows]
    assert found.anchors == sum(anchors) and found.batch_anchors == sum(sorted(anchors)[-8:])
    assert found.prompt == max(len(prompt.ids) for prompt in built.prompts("validation", 4))


@pytest.mark.parametrize("more", [{}, {"limit": 800}, {"pack": True}])
def test_a_part_tells_about_the_rest(data, monkeypatch, more):
    counted = survey(data(**more), 4)
    monkeypatch.setattr(datamodules.survey, "QUICK", 1000)
    monkeypatch.setattr(datamodules.survey, "PART", 300)
    found = survey(data(**more), 4)
    assert not found.counted and counted.counted
    for name in ("rows", "tokens", "anchors", "batches"):
        assert getattr(found, name) == pytest.approx(getattr(counted, name), rel=0.15), name
