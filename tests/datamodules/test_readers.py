"""Every format is recognised, every kind of dirt is named with its place."""

import gzip
import json

import pytest

from datamodules.readers import read_conversations
from mhc.errors import UserError

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
    ],
)
def test_formats(tmp_path, form, row):
    messages, report = read_one(tmp_path, row)
    assert messages == PAIR and report.formats == {form: 1} and report.kept == 1


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
        ([USER], "no assistant turn"),
        ([ASSISTANT], "no assistant turn"),
        ([{"role": "system", "content": "x"}, ASSISTANT], "no assistant turn"),
        ([USER, {"role": "assistant", "content": ""}], "a turn without content"),
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
    with pytest.raises(UserError, match=r"none of 1 rows.*x\.jsonl:1: " + reason):
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
