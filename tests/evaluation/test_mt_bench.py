"""run.py answer: every question once, sorted, with fields that FastChat's judge and Spec-Bench's speed script can read."""

import glob
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mhc.commands import answer
from mhc.errors import UserError
from mhc.evaluation.answer_files import Question, read_answers, read_questions
from mhc.evaluation.mt_bench import AnswerSettings, answer_question

ROOT = Path(__file__).parents[2]
CATEGORIES = ["writing", "math", "stem", "generic"]
LIMIT = 12


def questions(folder: Path, count: int = 8) -> Path:
    """A question file whose ids fall, so that sorting shows."""
    rows = [
        {
            "question_id": 100 - number,
            "category": CATEGORIES[number % 4],
            "turns": [f"What is {number} plus 2?", "And twice that?"],
            "reference": ["", ""],
        }
        for number in range(count)
    ]
    path = folder / "question.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(heads: Path, path: Path, out: Path, *more: str) -> list[str]:
    chosen = ["--checkpoint", str(heads), "--questions", str(path), "--out", str(out)]
    return [*chosen, "--max_new_tokens", str(LIMIT), *more]


@pytest.fixture(scope="module")
def answered(heads, tmp_path_factory):
    """A folder with answers.jsonl and answers-plain.jsonl, two choices a question."""
    folder = tmp_path_factory.mktemp("answers")
    path = questions(tmp_path_factory.mktemp("questions"))
    assert answer.main(command(heads, path, folder / "answers.jsonl", "--both", "--choices", "2")) == 0
    return folder


FIELDS = {
    "question_id": int,
    "category": str,
    "answer_id": str,
    "model_id": str,
    "temperature": float,
    "choices": list,
    "tstamp": float,
}
BY_TURN = {
    "turns": str,
    "idxs": int,
    "decoding_steps": int,
    "new_tokens": int,
    "wall_time": float,
    "finish_reasons": str,
}


@pytest.mark.parametrize("name", ["answers", "answers-plain"])
def test_every_field_and_type(answered, name):
    rows = [json.loads(line) for line in (answered / f"{name}.jsonl").read_text().splitlines()]
    assert [row["question_id"] for row in rows] == list(range(93, 101))
    assert len({row["answer_id"] for row in rows}) == 8
    for row in rows:
        assert {field: type(value) for field, value in row.items()} == FIELDS
        assert row["model_id"] == name and [choice["index"] for choice in row["choices"]] == [0, 1]
        for choice in row["choices"]:
            assert set(choice) == {"index", "accept_lengths", *BY_TURN}
            for field, kind in BY_TURN.items():
                assert len(choice[field]) == 2 and {type(value) for value in choice[field]} == {kind}, field
            assert all(0 < count <= LIMIT for count in choice["new_tokens"]) and min(choice["wall_time"]) > 0
            lengths = choice["accept_lengths"]
            assert {type(length) for length in lengths} == {int} and min(lengths) >= 1
            assert sum(lengths) == sum(choice["new_tokens"]) and len(lengths) == sum(choice["decoding_steps"])
            assert choice["idxs"] == [steps - 1 for steps in choice["decoding_steps"]]
            assert name == "answers" or set(lengths) == {1}
            assert set(choice["finish_reasons"]) <= {"stop", "length"}


def test_heads_say_what_plain_decoding_says_and_choices_differ_where_drawn(answered):
    drafted, plain = (read_answers(answered / f"{name}.jsonl") for name in ("answers", "answers-plain"))
    texts = {number: [choice["turns"] for choice in row["choices"]] for number, row in drafted.items()}
    assert texts == {number: [choice["turns"] for choice in row["choices"]] for number, row in plain.items()}
    greedy = {number for number, row in drafted.items() if row["category"] == "math"}
    assert all(texts[number][0] == texts[number][1] for number in greedy)
    drawn = [number for number, row in drafted.items() if row["temperature"] == 0.7]
    assert len(drawn) == 4 and any(texts[number][0] != texts[number][1] for number in drawn)


def test_fastchat_finds_the_answers(answered):
    """Its rules: each *.jsonl of the folder is a model by its name, answers are kept by question_id, the judge takes
    turns 0 and 1 of the first choice."""
    models = {}
    for name in glob.glob(os.path.join(str(answered), "*.jsonl")):
        with open(name, encoding="utf-8") as file:
            models[os.path.basename(name)[: -len(".jsonl")]] = {
                (r := json.loads(line))["question_id"]: r for line in file
            }
    assert set(models) == {"answers", "answers-plain"}
    for answers in models.values():
        assert set(answers) == set(range(93, 101))
        assert all(isinstance(row["choices"][0]["turns"][turn], str) for row in answers.values() for turn in (0, 1))


def test_temperatures_are_fastchats():
    expected = {"writing": 0.7, "roleplay": 0.7, "extraction": 0.0, "math": 0.0, "coding": 0.0}
    expected |= {"reasoning": 0.0, "stem": 0.1, "humanities": 0.1, "generic": 0.7, "translation": 0.7}
    assert {name: AnswerSettings().temperature_of(Question(1, name, ("hi",))) for name in expected} == expected
    assert AnswerSettings(temperature=0.3).temperature_of(Question(1, "math", ("hi",))) == 0.3


class Noting:
    """An engine in which every prompt is noted, and every answer the same."""

    def __init__(self, engine):
        self.engine, self.backbone, self.asked = engine, engine.backbone, []

    def generate_ids(self, prompts, max_new_tokens, plain, sampling):
        self.asked.append((self.backbone.tokenizer.decode(prompts[0]), sampling.seed))
        return self.engine.generate_ids(prompts, max_new_tokens, plain=plain, sampling=sampling)


@pytest.fixture(scope="module")
def engine():
    from mhc.backbone.model import Backbone
    from mhc.engine import Engine

    return Engine(Backbone.load("pocket"))


def test_a_later_turn_sees_the_answer_and_has_a_seed_of_its_own(engine):
    noting = Noting(engine)
    found = [
        answer_question(
            noting, Question(number, "writing", ("Hello!", "More.")), 0, True, AnswerSettings(max_new_tokens=8)
        )
        for number in (1, 2)
    ]
    (first, _), (second, _), _, _ = noting.asked
    assert "Hello!" in second and found[0]["turns"][0] in second and found[0]["turns"][0] not in first
    assert len({seed for _, seed in noting.asked}) == 4


def test_a_full_context_ends_answers_and_no_room_gives_empty_ones(engine, monkeypatch):
    monkeypatch.setattr(engine.backbone, "context", 60)
    hot = AnswerSettings(max_new_tokens=2000, temperature=9.0)  # so hot that no answer ends by itself
    found = answer_question(engine, Question(1, "math", ("Hello!", "word " * 60, "again")), 0, True, hot)
    assert found["finish_reasons"] == ["context", "no room", "no room"]
    assert found["turns"][0] and found["turns"][1:] == ["", ""] and found["new_tokens"][1:] == [0, 0]
    assert 0 < found["new_tokens"][0] == len(found["accept_lengths"]) < 60
    none = answer_question(engine, Question(2, "math", ("word " * 60, "more")), 0, True, hot)
    assert none["turns"] == ["", ""] and none["finish_reasons"] == ["no room"] * 2 and none["accept_lengths"] == []
    assert sum(none["wall_time"]) > 0  # Spec-Bench divides by it


def test_killed_and_resumed_is_what_an_undisturbed_run_says(heads, tmp_path):
    path, whole, out = questions(tmp_path), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    program = "import sys; from mhc.commands import answer; sys.exit(answer.main(sys.argv[1:]))"
    flags = command(heads, path, out, "--both")
    for least in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", program, *flags], stderr=subprocess.DEVNULL, cwd=ROOT)
        partial = out.with_suffix(".partial")
        while process.poll() is None and not (partial.exists() and partial.read_bytes().count(b"\n") >= least):
            time.sleep(0.01)
        process.kill()
        process.wait()
    partial.write_bytes(partial.read_bytes() + b'{"records": [{"questi')  # as a kill within a write leaves it
    before = partial.read_bytes().count(b"\n")
    assert before >= 3 and not out.exists()
    assert answer.main(flags) == 0 and not partial.exists()
    assert answer.main(command(heads, path, whole, "--both")) == 0
    for name in ("", "-plain"):
        one, other = (read_answers(tmp_path / f"{stem}{name}.jsonl") for stem in ("out", "whole"))
        assert list(one) == list(other) == sorted(one) and len(one) == 8
        said = [{number: row["choices"][0]["turns"] for number, row in rows.items()} for rows in (one, other)]
        assert said[0] == said[1]


def test_a_complete_file_stays_and_grows_by_category(heads, tmp_path, capsys):
    path, out = questions(tmp_path), tmp_path / "out.jsonl"
    flags = command(heads, path, out, "--plain")
    assert answer.main([*flags, "--per_category", "1"]) == 0
    four = read_answers(out)
    assert sorted(four) == [97, 98, 99, 100]
    assert answer.main(flags) == 0
    eight = read_answers(out)
    assert len(eight) == 8 and all(eight[number] == row for number, row in four.items())
    content = out.read_bytes()
    capsys.readouterr()
    assert answer.main(flags) == 0 and out.read_bytes() == content and "complete" in capsys.readouterr().err
    for more in (["--seed", "1"], ["--temperature", "0"], ["--choices", "2"]):
        with pytest.raises(UserError, match="other settings"):
            answer.main([*flags, *more])
    with pytest.raises(UserError, match="other settings"):
        answer.main(command(heads, path, out))  # with the heads
    assert out.read_bytes() == content


@pytest.mark.parametrize(
    "text, named",
    [
        ('{"question_id": 1, "category": "a", "turns": ["x"]}\n{"question', ":2: damaged"),
        ('{"question_id": "1", "category": "a", "turns": ["x"]}', ":1: question_id"),
        ('{"question_id": 1, "category": "a", "turns": "x"}', "turns"),
        ('{"question_id": 1, "category": "a", "turns": []}', "turns"),
        ('{"question_id": 1, "turns": ["x"]}', "category"),
        ('{"question_id": 1, "category": "a", "turns": ["x"]}\n' * 2, ":2: question 1 occurs twice"),
        ("[1, 2]", "not an object"),
        ("", "empty"),
        ("\xff", "damaged"),
    ],
)
def test_bad_questions_are_named(tmp_path, text, named):
    path = tmp_path / "q.jsonl"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=named):
        read_questions(path)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--choices", "0"], "choices"),
        (["--temperature", "nan"], "temperature"),
        (["--plain", "--both"], "--both"),
        (["--out", "answers.json"], "MODEL.jsonl"),
        (["--questions", "nowhere.jsonl"], "nowhere.jsonl"),
    ],
)
def test_bad_flags_are_named(heads, tmp_path, flags, named):
    with pytest.raises(UserError, match=named):
        answer.main(command(heads, questions(tmp_path), tmp_path / "o.jsonl", *flags))
    with pytest.raises(UserError, match="--checkpoint"):
        answer.main(["--questions", "q.jsonl", "--out", "o.jsonl"])
