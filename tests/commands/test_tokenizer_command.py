"""`run.py tokenizer`: the folder it leaves, its report, and one line for every mistake."""

import gzip
import json

import pytest
from transformers import AutoTokenizer

import run
from mhc.corpus import dialogues
from mhc.text.splits import split_of

HAN = "今天天气很好，我们去公园散步。"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Dialogues as JSONL, lines of Chinese text, and unanswered questions, gzipped."""
    folder = tmp_path_factory.mktemp("data")
    rows = [{"messages": dialogue["messages"]} for dialogue in dialogues(400, seed=4)]
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "zh.txt").write_text("".join(f"{HAN[number % 7 :]}第{chr(0x4E00 + number)}次\n" for number in range(200)))
    with gzip.open(folder / "questions.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"question": f"Why is it {number}?"}) + "\n" for number in range(40))
    return folder


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("made") / "deep" / "tokenizer"
    assert run.main(["tokenizer", "--data", str(data), "--size", "700", "--out", str(out)]) == 0
    return out


def test_a_stock_tokenizer_of_that_size(made):
    tokenizer = AutoTokenizer.from_pretrained(made)
    assert len(tokenizer) == 700 and sorted(tokenizer.get_vocab().values()) == list(range(700))
    text = "Say 12 + 30 again: naïve, " + HAN
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert "<think>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=True, enable_thinking=True
    )


def test_the_report_is_about_held_out_documents(made, data):
    told = json.loads((made / "report.json").read_text())
    chats = (data / "chats.jsonl").read_text().splitlines()
    prompts = [json.loads(line)["messages"][0]["content"] for line in chats]
    prompts += (data / "zh.txt").read_text().splitlines() + [f"Why is it {number}?" for number in range(40)]
    held_out = [prompt for prompt in prompts if split_of(prompt) != "train"]
    assert told["vocabulary"] == 700 and told["trained_on"]["documents"] == len(prompts) - len(held_out)
    assert told["held_out"]["documents"] == told["held_out"]["exact_round_trips"] == len(held_out)
    scripts = told["held_out"]["scripts"]
    assert {"Latin", "Han", "all"} <= set(scripts) and scripts["all"]["documents"] == len(held_out)
    assert scripts["Han"]["bytes"] == sum(len(prompt.encode()) for prompt in held_out if "第" in prompt)
    assert scripts["Han"]["this"]["bytes_per_token"] > 2 * scripts["Han"]["pocket"]["bytes_per_token"]
    assert list(scripts)[-1] == "all"


def test_it_learns_from_training_documents_alone(tmp_path):
    rows = [f"some words to learn, number {number}" for number in range(300)]
    secret = next(row for row in rows if split_of(row) != "train")
    (tmp_path / "a.txt").write_text("\n".join(rows))
    (tmp_path / "b.jsonl").write_text(json.dumps({"prompt": secret, "completion": "zqxzqxzqx " * 50}))
    sources = ["--data", str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")]
    assert run.main(["tokenizer", *sources, "--size", "264", "--out", str(tmp_path / "out")]) == 0
    assert not any("zq" in token for token in AutoTokenizer.from_pretrained(tmp_path / "out").get_vocab())


def test_the_same_twice_and_no_second_run(made, data, tmp_path, capsys):
    arguments = ["tokenizer", "--data", str(data), "--size", "700", "--out"]
    (tmp_path / "again").mkdir()  # an empty folder is as good as none
    assert run.main([*arguments, str(tmp_path / "again")]) == 0
    for file in made.iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    times = {file: file.stat().st_mtime_ns for file in made.iterdir()}
    capsys.readouterr()
    assert run.main([*arguments, str(made)]) == 0
    shown = capsys.readouterr()
    assert "is complete" in shown.err and "Han" in shown.out
    assert times == {file: file.stat().st_mtime_ns for file in made.iterdir()}


def test_one_document_leaves_nothing_to_measure(tmp_path, capsys):
    (tmp_path / "one.txt").write_text("some words to learn " * 20)
    assert run.main(["tokenizer", "--data", str(tmp_path), "--size", "265", "--out", str(tmp_path / "out")]) == 0
    assert "none is held out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["--size", "258"], "--size is 258"),
        (["--size", "2000000"], "between 259 (every byte, three control tokens) and 1,000,000"),
        (["--size", "many"], "invalid int value"),
        (["--size", "60000"], "ask for --size"),
        (["--data", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--data", "EMPTY"], "empty"),
        (["--data"], "expected at least one argument"),
        (["--out", "FILE"], "is a file"),
        (["--out", "FULL"], "is not a tokenizer of this command"),
        (["--out", "MADE"], "other settings (data: "),
        (["--out", "/proc/nobody/may"], "cannot write --out"),
    ],
)
def test_mistakes_are_one_line(made, data, tmp_path, capsys, arguments, complaint):
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "report.json").write_text('{"mine": 1}')
    places = {"EMPTY": tmp_path / "empty.jsonl", "FILE": tmp_path / "empty.jsonl", "FULL": tmp_path / "full", "MADE": made}  # fmt: skip
    arguments = [str(places.get(argument, argument)) for argument in arguments]
    before = {file: file.read_bytes() for folder in (made, tmp_path) for file in folder.rglob("*") if file.is_file()}
    usual = ["--data", str(data / "chats.jsonl"), "--size", "700", "--out", str(tmp_path / "out")]
    assert run.main(["tokenizer", *usual, *arguments]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: ") and complaint in last
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("*.writing"))
    assert before == {f: f.read_bytes() for folder in (made, tmp_path) for f in folder.rglob("*") if f.is_file()}
