"""Perplexity and exams against slow references written from their definitions, and `run.py evaluate` with good and bad input."""

import json
import math
import random
import zipfile

import pytest
import torch
from torch.nn.functional import log_softmax

import run as cli
from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.lm import sitting
from mhc.lm.evaluation import perplexity, ratio, windows
from mhc.lm.exams import Exam, Question, Subject, read_exam
from mhc.lm.sitting import CHINESE, ENGLISH, sit
from mhc.text.encoding import encode
from tests.helpers.backbones import tiny_backbone
from tests.helpers.killed_runs import tiny_model

DOCUMENTS = [[{"role": "document", "content": text}] for text in ("What is 3 plus 4?", "7 is very surely 7. " * 5, "é")]
CHATS = [
    [{"role": "user", "content": f"What is {n} plus 1?"}, {"role": "assistant", "content": f"{n} plus 1 is {n + 1}."}]
    for n in range(5)
]
CEVAL_HEADER = "id,question,A,B,C,D,answer"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose choices are no ties, in a folder."""
    at = tmp_path_factory.mktemp("evaluated")
    torch.manual_seed(0)
    tiny_model(at)
    return at


@pytest.fixture(scope="module")
def backbone(folder):
    loaded = Backbone.load(str(folder / "backbone"))
    with torch.no_grad():
        for parameter in loaded.model.parameters():
            parameter.mul_(3 if parameter.ndim > 1 else 1)
    return loaded


def log_p(backbone, ids: list[int]) -> torch.Tensor:
    """log p of each token of a text but the first, by one plain forward."""
    with torch.no_grad():
        logits = backbone.unembed(backbone.features(torch.tensor([ids])).hidden)[0, :-1].double()
    return log_softmax(logits, dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_perplexity_of_conversations_is_its_definition(backbone):
    nats = count = spelt = 0
    for messages in CHATS:
        ids, mask = encode(backbone.tokenizer, messages)
        counted = torch.tensor(mask[1:])
        nats -= log_p(backbone, ids)[counted].sum().item()
        count += int(counted.sum())
        spelt += len(messages[1]["content"].encode())
    found = perplexity(backbone, CHATS, 128, batch_tokens=100)
    assert (found["rows"], found["tokens"], found["bytes"]) == (len(CHATS), count, spelt)
    assert found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(nats / math.log(2) / spelt, rel=1e-5)


def test_documents_are_read_behind_a_start_and_without_their_end(backbone):
    tokenizer, nats, count = backbone.tokenizer, 0.0, 0
    for (document,) in DOCUMENTS:
        ids = [tokenizer.eos_token_id, *tokenizer(document["content"])["input_ids"]]
        nats, count = nats - log_p(backbone, ids).sum().item(), count + len(ids) - 1
    found = perplexity(backbone, DOCUMENTS, 256)
    assert found["tokens"] == count and found["loss"] == pytest.approx(nats / count, rel=1e-5)
    assert found["bytes"] == sum(len(document["content"].encode()) for (document,) in DOCUMENTS)


@pytest.mark.parametrize("length, size", [(5, 8), (8, 8), (9, 8), (40, 8), (41, 7), (3, 2)])
def test_each_token_of_a_long_text_counts_once(length, size):
    seen = [0] * length
    for window in windows(0, length, size):
        assert window.stop - window.start <= size and window.start <= window.first
        assert window.first == 0 or window.first - window.start >= size // 2
        for place in range(window.first, window.stop):
            seen[place] += 1
    assert seen == [1] * length


def test_a_window_changes_what_is_seen_not_what_is_counted(backbone):
    whole, narrow = (perplexity(backbone, DOCUMENTS, size) for size in (256, 16))
    assert whole["tokens"] == narrow["tokens"] and whole["loss"] != pytest.approx(narrow["loss"], abs=1e-4)


def test_the_standard_error_of_a_ratio():
    dice = torch.Generator().manual_seed(0)
    trials = [ratio(torch.rand(400, generator=dice).double(), torch.ones(400).double()) for _ in range(200)]
    spread = torch.tensor([value for value, _ in trials]).std().item()
    assert trials[0][1] == pytest.approx(spread, rel=0.15)
    assert ratio(torch.ones(1).double(), torch.ones(1).double()) == (1.0, None)


def test_nothing_that_counts_is_refused(backbone):
    with pytest.raises(UserError, match="counts"):
        perplexity(backbone, [[{"role": "document", "content": ""}]], 64)


# ---- exams


@pytest.fixture(scope="module")
def exams(folder):
    """A small MMLU as a ZIP and a small C-Eval as a folder, with the quirks of the real ones."""
    sums = [f'"What is {a} plus {b}?",{a + b},{a},"{b}, surely",99,A' for a in range(3) for b in range(3)]
    with zipfile.ZipFile(folder / "mmlu.zip", "w") as archive:
        archive.writestr("data/dev/sums_dev.csv", "\n".join(sums[:3]))
        archive.writestr("data/test/sums_test.csv", "\n".join(sums[3:]) + "\n\n")
        archive.writestr("data/val/empty_val.csv", "")
        archive.writestr("__MACOSX/data/test/sums_test.csv", "rubbish")
    chinese = folder / "ceval"
    chinese.mkdir()
    rows = [f"{n},{n}加一等于几？,{n},{n + 1},{n + 2},{n + 3},B" for n in range(4)]
    (chinese / "maths_dev.csv").write_text("\n".join([CEVAL_HEADER, *rows[:2]]), encoding="utf-8-sig")
    (chinese / "maths_val.csv").write_text("\n".join([CEVAL_HEADER, *rows[2:]]), encoding="utf-8-sig")
    unanswered = [row[:-1] for row in rows]
    (chinese / "maths_test.csv").write_text("\n".join([CEVAL_HEADER, *unanswered]), encoding="utf-8-sig")
    return folder / "mmlu.zip", chinese


def test_exams_are_read_with_their_quirks(exams):
    english, chinese = (read_exam(path) for path in exams)
    assert list(english.subjects) == ["sums"] and not english.chinese and chinese.chinese
    sums, maths = english.subjects["sums"], chinese.subjects["maths"]
    assert (len(sums.examples), len(sums.questions), sums.split) == (3, 6, "test")
    assert sums.questions[0].choices[2] == "0, surely" and sums.questions[0].answer == 0
    assert (maths.split, len(maths.questions), maths.questions[0].answer) == ("val", 2, 1)  # test keeps its answers


def by_hand(backbone, exam, wording, shots: int) -> list[list[float]]:
    """log p of the whole text with each letter, of every question, one forward each. As many examples as the context holds,
    the letter itself apart, which is not read."""
    found = []
    for name, subject in exam.subjects.items():
        intro = wording.intro.format(subject=name.replace("_", " "))
        examples = [f"{wording.text(one, one.answer)}\n\n" for one in subject.examples[:shots]]
        for question in subject.questions:
            for count in range(len(examples), -1, -1):
                before = intro + "".join(examples[:count])
                texts = [before + wording.text(question, letter) for letter in range(len(question.choices))]
                ids = backbone.tokenizer(texts, split_special_tokens=True)["input_ids"]
                if max(map(len, ids)) - 1 <= backbone.context:
                    break
            found.append([log_p(backbone, each).sum().item() for each in ids])
    return found


def sat(backbone, exam, wording, shots: int, batch_tokens: int = 8192) -> dict:
    """What `sit` finds, once its log p of every letter is that by hand, but for what all letters of a question share."""
    every, subjects = [], []

    def noting(*arguments):
        subjects.append({})
        for asked, scores in scored(*arguments):
            subjects[-1][asked.place] = scores
            yield asked, scores

    scored = sitting._scored
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sitting, "_scored", noting)
        found = sit(backbone, exam, shots, batch_tokens=batch_tokens)
    for one in subjects:
        every += [one[place] for place in sorted(one)]
    expected = by_hand(backbone, exam, wording, shots)
    assert len(every) == len(expected) == found["questions"]
    for ours, theirs in zip(every, expected):
        assert [one - ours[0] for one in ours] == pytest.approx([one - theirs[0] for one in theirs], abs=2e-3)
    answers = [question.answer for subject in exam.subjects.values() for question in subject.questions]
    right = [max(range(len(scores)), key=scores.__getitem__) == answer for scores, answer in zip(expected, answers)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    return found


@pytest.mark.parametrize("shots", [0, 2])
@pytest.mark.parametrize("batch_tokens", [1, 100_000])
def test_exams_are_sat_as_by_hand(backbone, exams, shots, batch_tokens):
    for path, wording in zip(exams, (ENGLISH, CHINESE)):
        exam = read_exam(path)
        backbone.context = 4096
        found = sat(backbone, exam, wording, shots, batch_tokens)
        assert found["chance"] == 0.25 and found["cut"] == 0 and found["mean_shots"] == shots


def hard(subjects: int, questions: int) -> Exam:
    """Questions of all lengths that nobody can tell the answer of, with two to four choices."""
    dice, found = random.Random(0), {}
    for name in (f"subject_{number}" for number in range(subjects)):
        every = []
        for _ in range(questions + 2):
            choices = tuple(str(dice.randrange(1000)) for _ in range(dice.randrange(2, 5)))
            text = "".join(dice.choice("abcdefgh ") for _ in range(dice.randrange(1, 40))) + "?"
            every.append(Question(text, choices, dice.randrange(len(choices))))
        found[name] = Subject(name, every[:2], every[2:], "test")
    return Exam("hard", found)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt_neox", "qwen3_moe", "gpt_oss"])
def test_every_architecture_sits_as_by_hand(backbone, name):
    """Also with windows that are shorter than what stands before a question."""
    built = tiny_backbone(name, vocab_size=280, max_position_embeddings=2048)
    built.tokenizer, exam = backbone.tokenizer, hard(2, 12)
    found = sat(built, exam, ENGLISH, 2, 2500)
    every = [question for subject in exam.subjects.values() for question in subject.questions]
    assert found["chance"] == pytest.approx(sum(1 / len(one.choices) for one in every) / len(every))


def test_letters_of_several_tokens_count_whole(backbone, monkeypatch):
    """Two, two, three bytes and one, of which each is a token."""
    monkeypatch.setattr("mhc.lm.sitting.LETTERS", "éж中A")
    backbone.context, exam = 4096, hard(2, 12)
    lengths = [len(backbone.tokenizer(f"Answer: {letter}")["input_ids"]) for letter in "éж中A"]
    assert len(set(lengths)) > 1
    sat(backbone, exam, ENGLISH, 1, 3000)


def test_each_question_has_the_examples_that_fit(backbone):
    backbone.context, exam = 230, hard(1, 30)
    found = sat(backbone, exam, ENGLISH, 2)["subjects"]["subject_0"]
    assert found["shots"][0] < found["shots"][1] and found["cut"] == 0
    backbone.context = 4096
    assert sit(backbone, exam, 9)["mean_shots"] == 2  # the subject has no more


def test_a_broken_model_knows_nothing(folder, exams):
    broken = Backbone.load(str(folder / "backbone"))
    with torch.no_grad():
        next(broken.model.parameters()).fill_(float("nan"))
    broken.context = 4096
    for measure in (lambda: sit(broken, read_exam(exams[0]), 0), lambda: perplexity(broken, CHATS, 128)):
        with pytest.raises(UserError, match="not finite"):
            measure()


def test_a_model_that_knows_scores_all(backbone, exams, monkeypatch):
    """The answers of this exam are all A: a model that likes A knows everything, one that dislikes it nothing."""
    exam = read_exam(exams[0])
    (liked,) = backbone.tokenizer("A")["input_ids"]
    spaced = backbone.tokenizer("Answer: A")["input_ids"][-1]
    for bonus, expected in ((100.0, 1.0), (-100.0, 0.0)):
        shift = torch.zeros(backbone.vocabulary_size)
        shift[[liked, spaced]] = bonus
        monkeypatch.setattr(backbone, "unembed", lambda hidden, s=shift: Backbone.unembed(backbone, hidden) + s)
        assert sit(backbone, exam, 0)["accuracy"] == expected


def test_fewer_examples_where_the_context_is_short(backbone, exams):
    exam = read_exam(exams[0])
    backbone.context = 200
    found = sit(backbone, exam, 3)
    assert 0 < found["mean_shots"] < 3 and found["cut"] == 0
    backbone.context = 30
    with pytest.raises(UserError, match="context"):
        sit(backbone, exam, 3)


# ---- the command


def test_results_are_kept_beside_the_model(folder, exams, tmp_path, capsys):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"Number {n} is a number."}) + "\n" for n in range(80)))
    model = folder / "backbone"
    command = ["evaluate", "--model", str(model), "--perplexity", str(texts), "--exams", str(exams[0]), "--shots", "1"]
    assert cli.main(command) == 0
    told = capsys.readouterr().out
    assert "perplexity" in told and "sums" in told and "mean over questions" in told
    kept = json.loads((model / "evaluation.json").read_text())
    assert [one["kind"] for one in kept["results"]] == ["perplexity", "exam"] and kept["results"][0]["tokens"] > 10
    assert {"machine", "versions"} <= set(kept["results"][0])
    assert cli.main([*command[:5], "--split", "all"]) == 0  # other settings: added; the same: replaced
    assert cli.main(command[:5]) == 0
    assert len(json.loads((model / "evaluation.json").read_text())["results"]) == 3


@pytest.mark.parametrize(
    "flags, named",
    [
        ([], "nothing to measure"),
        (["--perplexity", "no.jsonl"], "no.jsonl"),
        (["--exams", "no.zip"], "no.zip"),
        (["--exams", "{texts}"], "not a readable ZIP"),
        (["--exams", "{empty}"], "no exam"),
        (["--exams", "{exam}", "--subjects", "sumz"], "sums"),
        (["--exams", "{exam}", "--shots", "-1"], "--shots"),
        (["--perplexity", "{texts}", "--max_length", "999999"], "--max_length"),
        (["--perplexity", "{texts}", "--out", "{texts}"], "not an evaluation"),
        (["--model", "/no/model", "--perplexity", "{texts}"], "/no/model"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(folder, exams, tmp_path, capsys, flags, named):
    texts, empty = tmp_path / "texts.jsonl", tmp_path / "empty"
    texts.write_text("".join(json.dumps({"text": f"Number {n}."}) + "\n" for n in range(80)))
    empty.mkdir()
    places = {"texts": texts, "empty": empty, "exam": exams[0]}
    before = texts.read_bytes()
    flags = [flag.format(**places) if "{" in flag else flag for flag in flags]
    model = [] if "--model" in flags else ["--model", str(folder / "backbone")]
    assert cli.main(["evaluate", *model, *flags]) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1 and told.strip().splitlines()[-1].startswith("error: ") and named in told
    assert texts.read_bytes() == before


def test_a_broken_question_is_named(tmp_path):
    (tmp_path / "x_test.csv").write_text("What?,one,two,three,four,A\nAnd?,one,two,three,four,Z\n")
    with pytest.raises(UserError, match=r"x_test\.csv, line 2: the answer is 'Z'"):
        read_exam(tmp_path)


def test_the_harness_says_what_to_install(monkeypatch, folder, capsys):
    monkeypatch.setattr("mhc.lm.harness.importlib.util.find_spec", lambda name: None)
    assert cli.main(["evaluate", "--model", str(folder / "backbone"), "--harness", "arc_easy"]) == 2
    assert "lm_eval[hf]" in capsys.readouterr().err
