"""Every format is recognised, every kind of dirt is named with its place."""

import gzip
import json
import re

import pytest

from datamodules.readers import Report, iterate
from mhc.errors import UserError
from tests.helpers.conversations import read_conversations

USER, ASSISTANT = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
PAIR = [USER, ASSISTANT]
GOOD = {"messages": PAIR}


def jsonl(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def read_one(tmp_path, row):
    conversations, report = read_conversations(jsonl(tmp_path / "one.jsonl", [row]))
    return conversations[0].messages, report


@pytest.mark.parametrize(
    "form, row",
    [
        ("messages", {"messages": PAIR}),
        ("messages", {"conversations": PAIR}),
        ("messages", {"id": 7, "services": [], "turns": PAIR}),
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "hello"}]}]},
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "hi"}, {"from": "GPT", "value": "hello"}]},
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "user", "value": "hi"}, {"from": "bard", "value": "hello"}]},
        ),
        ("alpaca", {"instruction": "hi", "input": "", "output": "hello"}),
        ("question", {"question": "hi", "answer": "hello"}),
        ("question", {"prompt": "hi", "completion": "hello"}),
        ("question", {"query": "hi", "response": "hello", "text": "hi hello"}),
        ("question", {"question": "hi", "std_answer": "hello", "class": "chat"}),
        ("question", {"prompt": [USER], "completion": [ASSISTANT]}),
        ("alpaca", {"instruction": "hi", "input": "", "response": "hello"}),
        ("preference", {"prompt": "hi", "chosen": "hello", "rejected": "no"}),
        ("preference", {"question": "hi", "chosen": "hello", "rejected": "no"}),
        (
            "preference",
            {"conversations": [{"from": "human", "value": "hi"}], "chosen": {"from": "gpt", "value": "hello"}},
        ),
        ("preference", {"prompt": "hi", "chosen": PAIR, "rejected": [USER]}),
        ("preference", {"prompt": "hi", "chosen": [ASSISTANT], "rejected": [ASSISTANT]}),
        ("preference", {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT]}),
        ("preference", {"chosen": "\n\nHuman: hi\n\nAssistant: hello", "rejected": "\n\nHuman: hi\n\nAssistant: no"}),
        ("messages", {"messages": PAIR, "conversations": None, "text": None}),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "hi", "role": None}, {"from": "gpt", "value": "hello"}]},
        ),
    ],
)
def test_formats(tmp_path, form, row):
    messages, report = read_one(tmp_path, row)
    assert messages == PAIR and report.formats == {form: 1} and report.kept == 1


def contents(messages):
    return [(message["role"], message["content"]) for message in messages]


def test_text_and_tldr(tmp_path):
    assert read_one(tmp_path, {"text": "a document"})[0] == [{"role": "document", "content": "a document"}]
    examples = [{"task": "List files", "command": "ls"}, {"task": "With sizes", "command": "ls -l"}]
    messages, report = read_one(
        tmp_path, {"page": "common/ls", "command": "ls", "description": "", "examples": examples}
    )
    assert report.formats == {"tldr": 1} and contents(messages) == [
        ("user", "With `ls`: List files"),
        ("assistant", "ls"),
        ("user", "With `ls`: With sizes"),
        ("assistant", "ls -l"),
    ]


def test_tool_turns(tmp_path):
    turns = [("human", "sum?"), ("function_call", "add(1, 2)"), ("observation", "3"), ("gpt", "It is 3.")]
    rows = [{"from": name, "value": text} for name, text in [("tool", "lost"), *turns]]
    messages, report = read_one(tmp_path, {"conversations": rows})
    assert [m["role"] for m in messages] == ["user", "assistant", "tool", "assistant"]
    assert report.repaired == {"leading tool turn removed": (1, "one.jsonl:1")}


@pytest.mark.parametrize(
    "row, texts",
    [
        ({"question_id": 81, "turns": ["a?", "b?"]}, ["a?", "", "b?", ""]),
        ({"question": "a?", "std_answer": ""}, ["a?", ""]),
        ({"prompt": "a?"}, ["a?", ""]),
        ({"instruction": "Add.", "input": "1 2"}, ["Add.\n\n1 2", ""]),
        ({"messages": [USER, ASSISTANT, USER]}, ["hi", "hello", "hi", ""]),
        ({"messages": [USER, USER]}, ["hi", "", "hi", ""]),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, ["hi", ""]),
        ({"text": "a document"}, ["a document", ""]),
    ],
)
def test_prompts_without_answers_are_kept_for_distillation(tmp_path, row, texts):
    report = Report("x")
    (conversation,) = iterate(jsonl(tmp_path / "x.jsonl", [row]), report, answered=False)
    assert contents(conversation.messages) == list(zip(["user", "assistant"] * 2, texts))
    assert not report.dropped and report.kept == 1


def test_prompts_alone_are_for_distill(tmp_path):
    answers = {"question_id": 101, "answer_id": "x", "choices": [{"index": 0, "turns": ["a"]}]}
    path = jsonl(tmp_path / "x.jsonl", [answers, *[{"question_id": i, "turns": ["a?"]} for i in range(3)]])
    with pytest.raises(UserError, match=r"none of 4 rows.*x\.jsonl:2: no answer.*run\.py distill"):
        read_conversations(path)


def test_places_in_folders_of_folders(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name / "x.jsonl", [GOOD])
    assert [c.where for c in read_conversations(tmp_path)[0]] == ["a/x.jsonl:1", "b/x.jsonl:1"]


def test_alpaca_input_and_system(tmp_path):
    row = {"instruction": "Add.", "input": "1 2", "output": "3", "system": "Be brief."}
    messages, _ = read_one(tmp_path, row)
    assert [message["content"] for message in messages] == ["Be brief.", "Add.\n\n1 2", "3"]


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
@pytest.mark.parametrize("indent", [None, 1])
def test_array_lines_gzip_and_places(tmp_path, pack, indent):
    rows = [{"id": "first", **GOOD}, GOOD]
    array, lines = tmp_path / "a.json", tmp_path / "b.jsonl"
    array.write_bytes(pack(b"\xef\xbb\xbf" + json.dumps(rows, indent=indent).encode()))
    lines.write_bytes(pack("\n".join(map(json.dumps, [rows[0], rows[1]])).replace("\n", "\r\n\n").encode()))
    conversations, report = read_conversations(tmp_path)
    assert [c.where for c in conversations] == ["a.json:1", "a.json:2", "b.jsonl:1", "b.jsonl:3"]
    assert [c.id for c in conversations] == ["first", "a.json:2", "first", "b.jsonl:3"]
    assert report.read == report.kept == 4


def test_one_object_over_several_lines(tmp_path):
    path = tmp_path / "one.json"
    path.write_text(json.dumps(GOOD, indent=2))
    assert read_conversations(path)[0][0].messages == PAIR


@pytest.mark.parametrize(
    "turns, kept, repair",
    [
        ([ASSISTANT, *PAIR], PAIR, "leading assistant turn removed"),
        ([*PAIR, USER], PAIR, "cut after the last assistant turn"),
        ([*PAIR, {"role": "user", "content": " "}, ASSISTANT], PAIR, "cut before a turn without content"),
        (
            [USER, USER, ASSISTANT],
            [{"role": "user", "content": "hi\n\nhi"}, ASSISTANT],
            "two user turns in a row",
        ),
        ([{"role": "system", "content": ""}, *PAIR], PAIR, None),
        (
            [USER, {"role": "assistant", "content": "a\ud800"}],
            [USER, {**ASSISTANT, "content": "a\ufffd"}],
            None,
        ),
    ],
)
def test_repairs(tmp_path, turns, kept, repair):
    messages, report = read_one(tmp_path, {"messages": turns})
    assert messages == kept
    assert bool(report.repaired) == bool(repair)
    assert all(reason.startswith(repair) and found == (1, "one.jsonl:1") for reason, found in report.repaired.items())


@pytest.mark.parametrize(
    "turns, reason",
    [
        ([], "no turns"),
        ([USER], "no answer: a prompt without an assistant turn"),
        ([ASSISTANT], "no prompt"),
        ([{"role": "system", "content": "x"}, ASSISTANT], "no prompt"),
        ([{"role": "user", "content": " "}, ASSISTANT], "no prompt"),
        ([USER, None], "a turn is null, not an object"),
        ([USER, {"content": "x"}], "unknown role (NoneType)"),
        ([USER, {"role": "assistant", "content": ""}], "no answer"),
        ([USER, {"role": "critic", "content": "x"}, ASSISTANT], "unknown role 'critic'"),
        ([USER, {"role": ["user"], "content": "x"}, ASSISTANT], "unknown role"),
        ([*PAIR, {"role": "system", "content": "x"}, *PAIR], "a system turn in the middle"),
        ([USER, {"role": "assistant", "content": None}], "content is missing"),
        ([USER, {"role": "assistant", "content": 3}], "content is not text"),
        ([USER, {"role": "assistant", "content": [{"type": "image"}]}], "content is not text"),
    ],
)
def test_dropped_rows_are_counted(tmp_path, turns, reason):
    path = jsonl(tmp_path / "x.jsonl", [GOOD, {"messages": turns}])
    conversations, report = read_conversations(path)
    assert len(conversations) == report.kept == 1 and report.read == 2
    ((found, counted),) = report.dropped.items()
    assert found.startswith(reason) and counted == (1, "x.jsonl:2")
    with pytest.raises(UserError, match=r"none of 1 rows.*x\.jsonl:1: " + re.escape(reason)):
        read_conversations(jsonl(path, [{"messages": turns}]))


BROKEN = [
    '{"messages": [',
    "[" * 100_000,
    json.dumps([1]),
    json.dumps("text"),
    json.dumps({"words": "x"}),
    "null",
]


@pytest.mark.parametrize("line", BROKEN)
def test_broken_lines_are_skipped_up_to_a_share(tmp_path, line):
    path = jsonl(tmp_path / "x.jsonl", [GOOD] * 9 + [line])
    conversations, report = read_conversations(path)
    assert len(conversations) == 9 and [found for _, found in report.broken.values()] == ["x.jsonl:10"]
    with pytest.raises(UserError, match=r"1 of 10 rows are broken, the first at x\.jsonl:10"):
        read_conversations(path, max_bad_share=0.09)


def test_first_line_broken_and_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"mess\n\xff\xfe\n' + json.dumps(GOOD).encode() * 1)
    assert len(read_conversations(path, max_bad_share=0.7)[0]) == 1
    with pytest.raises(UserError, match=r"2 of 3 rows are broken, the first at x\.jsonl:1: not valid JSON"):
        read_conversations(path)


def test_missing_file_and_empty_folder(tmp_path):
    with pytest.raises(UserError, match="without data files"):
        read_conversations(tmp_path)
    jsonl(tmp_path / "conversations.jsonl", [GOOD])
    with pytest.raises(UserError, match=r"does not exist: did you mean .*conversations\.jsonl"):
        read_conversations(tmp_path / "conversation.json")
    with pytest.raises(UserError, match="does not exist"):
        read_conversations(tmp_path / "no" / "where" / "x.json")


def test_report_is_a_few_lines(tmp_path):
    roles = [{"messages": [USER, {"role": f"[r{i}]", "content": "x"}]} for i in range(50)]
    _, report = read_conversations(jsonl(tmp_path / "x.jsonl", [GOOD, GOOD, *roles]))
    lines = report.lines()
    assert "messages (2)" in lines[0] and "52 rows read, 2 kept" in lines[1] and len(lines) == 9
    assert "44 for other reasons" in lines[-1]
