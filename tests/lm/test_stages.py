"""The stages' corpora: reproducible, readable as they are, right, and faulty where they say so."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from mhc.corpus.faults import FAULTS
from mhc.corpus.identity import identity
from mhc.corpus.reasoning import PROBLEMS
from mhc.corpus.stages import chats, documents, preferences, reasoning, write
from mhc.errors import UserError
from mhc.text.splits import split_of
from tests.helpers.conversations import read_conversations

ROOT = Path(__file__).parents[2]
SMALL = {"pretrain": 60, "chats": 50, "preferences": 40, "reasoning": 30}
MAKERS = {"pretrain": documents, "chats": chats, "preferences": preferences, "reasoning": reasoning}


def _prompt(row: dict) -> str:
    return row.get("text") or row.get("prompt") or row["messages"][0]["content"]


@pytest.mark.parametrize("stage", list(MAKERS))
def test_so_many_different_rows_decided_by_the_seed(stage):
    rows = list(MAKERS[stage](300, seed=1))
    assert len({_prompt(row) for row in rows}) == len(rows) == 300
    assert rows == list(MAKERS[stage](300, seed=1))
    assert rows[:40] == list(MAKERS[stage](40, seed=1))
    other = {_prompt(row) for row in MAKERS[stage](300, seed=2)}
    assert len(other & {_prompt(row) for row in rows}) < 150


def test_the_files_are_the_same_in_any_process(tmp_path):
    paths = write(tmp_path / "here", SMALL, seed=3)
    code = f"from mhc.corpus.stages import write; from pathlib import Path; write(Path('{tmp_path}/there'), {SMALL}, 3)"
    environment = os.environ | {"PYTHONHASHSEED": "5", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == sorted(path.name for path in paths.values())
    for path in paths.values():
        assert path.read_bytes() == (tmp_path / "there" / path.name).read_bytes()
        assert path.read_bytes().endswith(b"}\n")


def test_the_readers_take_them_as_they_are(tmp_path):
    paths = write(tmp_path, SMALL, seed=3, name="Ada", author="Bo")
    forms = {"pretrain": "text", "preferences": "preference"}
    for stage, path in paths.items():
        conversations, report = read_conversations(str(path))
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert report.kept == len(rows) == SMALL.get(stage, len(rows))
        assert report.formats == {forms.get(stage, "messages"): len(rows)}
        assert not (report.broken or report.dropped or report.repaired or report.noticed)
        assert [each.prompt for each in conversations] == [_prompt(row) for row in rows]
        if stage == "preferences":
            assert [each.messages[-1]["content"] for each in conversations] == [row["chosen"] for row in rows]


def test_texts_hold_no_prompt_that_is_held_out():
    rows = list(chats(1500, seed=1))
    held_out = [prompt for row in rows if split_of(prompt := row["messages"][0]["content"]) != "train"]
    assert len(held_out) > 40
    text = "\n".join(row["text"] for row in documents(4000, seed=1)) + "\n"
    lines = set(text.splitlines())
    assert not lines.intersection(held_out)
    assert sum(row["messages"][0]["content"] in lines for row in rows) > 20  # what is trained on may be read


def test_chats_are_short_and_end():
    for row in chats(500, seed=1):
        prompt, answer = (message["content"] for message in row["messages"])
        assert len(prompt) + len(answer) <= 240 and answer == answer.strip()


def test_rejected_answers_have_the_fault_they_name():
    rows = list(preferences(1200, seed=1))
    assert set(Counter(row["fault"] for row in rows)) == set(FAULTS)
    assert min(Counter(row["fault"] for row in rows).values()) > 50
    answers = {row["chosen"] for row in rows}
    for row in rows:
        chosen, rejected, fault = row["chosen"], row["rejected"], row["fault"]
        assert chosen != rejected and chosen.strip() and rejected.strip()
        if fault == "wrong":
            assert rejected in answers
        elif fault == "number":
            assert re.sub(r"\d+", "#", chosen) == re.sub(r"\d+", "#", rejected)
        elif fault == "repeated":
            assert len(rejected) > len(chosen) and set(rejected.split()) == set(chosen.split())
        elif fault == "cut":
            assert chosen.startswith(rejected + " ") and rejected[-1].isalpha()
        else:
            assert rejected.endswith(" " + chosen)


def test_good_answers_are_those_of_the_chats():
    """A preference is for the right answer, so nothing is learned twice in two ways."""
    right = {row["messages"][0]["content"]: row["messages"][1]["content"] for row in chats(6000, seed=1)}
    same = [right[row["prompt"]] == row["chosen"] for row in preferences(1500, seed=1) if row["prompt"] in right]
    assert len(same) > 50 and sum(same) > 0.8 * len(same)


ANSWER = re.compile(r"<think>\n(.+?)\n</think>\n<answer>\n([^\n]+)\n</answer>", re.DOTALL)
STEP = re.compile(r"(\d+ [-+*] \d+) = (\d+)")


def test_reasoning_is_well_formed_and_right():
    rows = list(reasoning(1500, seed=1))
    assert set(Counter(row["topic"] for row in rows)) == {problem.__name__ for problem in PROBLEMS}
    for row in rows:
        prompt, answer = (message["content"] for message in row["messages"])
        steps, result = ANSWER.fullmatch(answer).groups()
        assert not re.search(r"</?(?:think|answer)>", prompt + steps + result)
        for step, value in STEP.findall(steps):
            assert eval(step) == int(value), row
        if row["topic"] in ("chain", "product"):
            assert eval(re.search(r"\d[\d +*-]*\d", prompt)[0]) == int(result), row
        elif row["topic"] in ("keeping", "bill", "measure", "ages"):
            assert STEP.findall(steps)[-1][1] == result.split()[0], row
        else:
            assert steps.endswith(result) or str(int(result.split()[0])) == STEP.findall(steps)[-1][1], row


def test_identity_names_the_model():
    rows = identity("Ada", "Bo & Co.")
    assert 60 <= len(rows) <= 90
    assert len({row["messages"][0]["content"].lower() for row in rows}) == len(rows)
    for row in rows:
        assert "Ada" in row["messages"][1]["content"] or "Bo & Co." in row["messages"][1]["content"]
        assert "<" not in row["messages"][1]["content"]
    with pytest.raises(UserError, match="author is empty"):
        identity("Ada", " ")


def test_a_stopped_write_leaves_whole_files(tmp_path, monkeypatch):
    write(tmp_path, SMALL, seed=3)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}

    def broken(count, seed):
        yield {"text": "half"}
        raise KeyboardInterrupt

    monkeypatch.setattr("mhc.corpus.stages.documents", broken)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, SMALL, seed=4)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_more_than_there_is_ends(monkeypatch):
    monkeypatch.setattr("mhc.corpus.stages.PROBLEMS", [lambda pen: (pen.pick("abc"), ["1"], "1")])
    with pytest.raises(UserError, match="about 3 different"):
        list(reasoning(4))
