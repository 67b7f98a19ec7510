"""The data module: splits that never meet, batches, prompts, and errors that say what to do."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.conversations import ConversationData
from mhc.errors import UserError
from mhc.text.splits import SPLITS, prompt_number, split_conversations, split_of


def rows(count, answer="fine"):
    return [{"question": f"question {i}", "answer": answer} for i in range(count)]


@pytest.fixture
def make(tmp_path, tokenizer):
    def build(data, **arguments):
        (tmp_path / "data.json").write_text(json.dumps(data))
        made = ConversationData(path=str(tmp_path / "data.json"), **arguments)
        made.tokenizer = tokenizer
        return made

    return build


def decoded(data, batch, row):
    return data.tokenizer.decode(batch["ids"][row][batch["mask"][row]])


def test_splits_follow_the_hash_and_batches_supervise_answers(make):
    data = make(rows(300), batch_size=4)
    data.setup()
    sizes = {name: len(data.conversations(name)) for name in ("train", "validation", "test")}
    assert sum(sizes.values()) == 300 and min(sizes.values()) > 0
    for name in sizes:
        assert {split_of(c.prompt) for c in data.conversations(name)} == {name}
    batches = list(data.val_dataloader())
    assert sum(len(batch["ids"]) for batch in batches) == sizes["validation"]
    for batch in batches:
        assert batch["ids"].shape == batch["mask"].shape and batch["mask"].dtype == torch.bool
        assert all(decoded(data, batch, i) == "fine<|im_end|>" for i in range(len(batch["ids"])))
    assert data.totals["train"].supervised == 5 * sizes["train"]


def test_small_data_still_has_three_splits_that_never_meet(make):
    data = make([*rows(20), *rows(20, answer="again")])
    data.setup()
    prompts = {n: {c.prompt for c in data.conversations(n)} for n in ("train", "validation", "test")}
    assert prompts["train"] and prompts["validation"] and prompts["test"]
    assert sum(map(len, prompts.values())) == 20
    alone = split_conversations([prompt_number("question 0")])
    assert sorted(map(len, alone.values())) == [0, 0, 1]


def test_epochs_differ_and_repeat(make):
    first, second = make(rows(40), batch_size=4), make(rows(40), batch_size=4)
    loader, again = first.train_dataloader(), second.train_dataloader()
    epochs = []
    for epoch in (0, 1):
        loader.sampler.set_epoch(epoch)
        again.sampler.set_epoch(epoch)
        epochs.append([batch["ids"].tolist() for batch in loader])
        assert epochs[-1] == [batch["ids"].tolist() for batch in again]
    assert epochs[0] != epochs[1] and len(loader) == len(epochs[0])


def test_truncation_cuts_the_end_and_drops_rows_without_a_target(make):
    prompt = len("<user\nquestion 7>\n<assistant\n")  # in tokens: a control token is one
    data = make(rows(300), max_length=prompt + 1)  # leaves one token of the answer if the number has one digit
    kept, totals = data.rows("train"), data.totals["train"]
    short = sum(len(c.prompt) == len("question 7") for c in data.conversations("train"))
    assert 0 < len(kept) == short == totals.supervised and {len(ids) for ids, _ in kept} == {prompt + 1}
    assert totals.dropped == totals.conversations - short and totals.truncated == totals.conversations
    with pytest.raises(UserError, match=rf"no token of the .* train conversations.*max_length \({prompt}\)"):
        make(rows(300), max_length=prompt).rows("train")


@pytest.mark.parametrize("limit", [1, 10, 100, 299, 1000])
def test_limit_is_a_stable_sample_of_all_splits_together(make, limit):
    whole, some = make(rows(300)), make(rows(300), limit=limit)
    chosen = [c.where for split in SPLITS for c in some.conversations(split)]
    everything = [c.where for c in sorted(whole.conversations("train"), key=lambda c: prompt_number(c.prompt))]
    assert len(chosen) == len(set(chosen)) == min(limit, 300)
    if limit >= 100:
        assert {split_of(c.prompt) for c in some.conversations("train")} == {"train"}
        train = [c.where for c in whole.conversations("train") if c.where in chosen]
        assert [c.where for c in some.conversations("train")] == train
    assert set(everything[: limit // 2]) <= set(chosen)  # by hash, not the first of the file


def test_pack_and_supervise_all(make):
    data = make(rows(40), pack=True, supervise="all", max_length=64, batch_size=2)
    batches = list(data.train_dataloader())
    assert {batch["ids"].shape[1] for batch in batches} == {64}
    plain = [len(ids) for ids, _ in make(rows(40)).rows("train")]
    real = sum(int((batch["segments"] >= 0).sum()) for batch in batches)
    assert real == sum(plain) == data.totals["train"].supervised
    learned = sum(int(batch["mask"].sum()) for batch in batches)
    assert learned == sum(plain) - len(plain)  # but the first tokens


@pytest.mark.parametrize("workers", [0, 2])
def test_the_cache_holds_the_same_and_is_used_again(make, tmp_path, monkeypatch, workers):
    data = rows(300)
    held, kept = make(data, limit=50), make(data, limit=50, cache=str(tmp_path / "cache"), workers=workers)
    for split in ("train", "validation", "test"):
        assert list(kept.conversations(split)) == list(held.conversations(split))
        pairs = list(zip(kept.rows(split), held.rows(split)))
        assert pairs and all((a[0] == b[0]).all() and (a[1] == b[1]).all() for a, b in pairs)
        assert kept.prompts(split, 5) == held.prompts(split, 5) and kept.totals[split] == held.totals[split]
    for one, other in zip(kept.train_dataloader(), held.train_dataloader(), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)
    monkeypatch.setattr("datamodules.conversations.iterate", None)  # nothing is read again
    monkeypatch.setattr("datamodules.conversations.encode_batch", None)
    again = ConversationData(path=str(tmp_path / "data.json"), limit=50, cache=str(tmp_path / "cache"))
    again.tokenizer = kept.tokenizer
    assert list(again.conversations("test")) == list(held.conversations("test")) and again.report.kept == 300
    assert all((a[0] == b[0]).all() for a, b in zip(again.rows("train"), held.rows("train"), strict=True))


def test_the_cache_sees_that_the_file_has_changed(make, tmp_path):
    assert len(make(rows(300), cache=str(tmp_path / "c")).rows("train")) > 250
    assert len(make(rows(30), cache=str(tmp_path / "c")).rows("train")) < 30


def test_prompts_are_a_stable_sample_that_opens_the_answer(make):
    turns = [
        ("system", "Be brief."),
        ("user", "hi"),
        ("assistant", "yes"),
        ("user", "and"),
        ("assistant", "no"),
    ]
    chat = [{"role": role, "content": content} for role, content in turns]
    many = [{"messages": [*chat[:1], {**chat[1], "content": f"hi {i}"}, *chat[2:]]} for i in range(300)]
    data, turned = make(many), make(many[::-1])
    few = data.prompts("test", 3)
    assert [p.ids for p in few] == [p.ids for p in turned.prompts("test", 300)][:3]
    assert len(data.prompts("test", 300)) == len(data.conversations("test"))
    opened = set()
    for prompt in data.prompts("test", 300):  # of two answers one is asked for, by hash
        text = data.tokenizer.decode(prompt.ids)
        second = "yes" in text
        assert text.endswith("<|im_start|>assistant\n") and "Be brief." in text and "no<|im_end|>" not in text
        roles = ["system", "user", "assistant", "user"] if second else ["system", "user"]
        assert [m["role"] for m in prompt.messages] == roles
        row = next(ids for ids, _ in data.rows("test") if ids.tolist()[: len(prompt.ids)] == prompt.ids)
        assert len(row) > len(prompt.ids)
        opened.add(second)
    assert opened == {False, True}


def test_vocabulary_is_checked_against_the_model(make, tokenizer):
    data = make(rows(40))
    data.tokenizer = None
    module = SimpleNamespace(tokenizer=tokenizer, vocabulary_size=257)
    data.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)
    with pytest.raises(UserError, match="gives id 257 but the model has 257 rows"):
        data.setup("fit")
    module.vocabulary_size = 258
    data.setup("fit")
    assert max(int(np.max(ids)) for ids, _ in data.rows("train")) == 257


def test_bad_arguments():
    with pytest.raises(UserError, match=r"data\.batch_size is 0"):
        ConversationData(batch_size=0)
    with pytest.raises(UserError, match=r"data\.supervise is 'user'"):
        ConversationData(supervise="user")
    with pytest.raises(UserError, match="no tokenizer"):
        ConversationData(path="x").train_dataloader()
