"""What people's files are really like: named with file and line, the good rows kept, and nothing crashes."""

import gzip
import json
import os
import pickle
import random
import sys
import tracemalloc

import pytest

from datamodules.readers import Report, iterate
from datamodules.streams import LARGEST
from mhc.errors import UserError
from tests.helpers.conversations import read_conversations

GOOD = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
LINE = json.dumps(GOOD).encode() + b"\n"
MANY = 30
ROWS = json.dumps([GOOD] * MANY, indent=1).encode()
LONG = json.dumps({"messages": [{"role": "user", "content": "x" * (50 << 20)}]}).encode() + b"\n"
# Text that hardly compresses, so that a cut gzip stream loses a part of it only.
NOISE = [{"question": f"{random.Random(row).randbytes(200).hex()}?", "answer": "yes"} for row in range(400)]


def turns(*pairs) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content} for role, content in pairs]}).encode() + b"\n"


# name: (file name, content, where of the report it stands, what it says, at which place)
ROW_FAULTS = {
    "half a line": (b'{"messages": [{"role": "user"\n', "broken", "not valid JSON (Expecting ',' delimiter)"),
    "an empty object": (b"{}\n", "broken", "shape not recognised (keys: no keys)"),
    "NUL in a line": (LINE.replace(b"hi", b"h\0i"), "broken", "not valid JSON (Invalid control character)"),
    "not UTF-8": (LINE.replace(b"hi", b"h\xffi"), "broken", "not UTF-8 text"),
    "50 MB": (LONG, "broken", f"a row of 50 MB, more than {LARGEST >> 20}"),
    "deep nesting": (b"[" * 100_000 + b"\n", "broken", "not valid JSON (too deeply nested)"),
    "a huge integer": (
        b'{"question": ' + b"9" * 10_000 + b', "answer": "x"}\n',
        "broken",
        "not valid JSON (a number with",
    ),
    "null": (b"null\n", "broken", "a row is null, not an object"),
    "a number": (b"12\n", "broken", "a row is a int, not an object"),
    "an array": (b"[1]\n", "broken", "a row is a list, not an object"),
    "unknown shape": (b'{"title": "x"}\n', "broken", "shape not recognised (keys: title)"),
    "unknown role": (turns(("user", "a"), ("critic", "b")), "dropped", "unknown role 'critic'"),
    "role not a text": (turns(("user", "a"), (3, "b")), "dropped", "unknown role (int)"),
    "no turns": (b'{"messages": []}\n', "dropped", "no turns"),
    "an empty turn": (turns(("user", "a"), ("assistant", ""), ("user", "b")), "dropped", "no answer"),
    "an empty answer": (turns(("user", "a"), ("assistant", " ")), "dropped", "no answer"),
    "content a number": (turns(("user", 5), ("assistant", "x")), "dropped", "content is not text"),
    "content a list": (turns(("user", [1]), ("assistant", "x")), "dropped", "content is not text"),
    "content missing": (turns(("user", None), ("assistant", "x")), "dropped", "content is missing"),
    "NaN": (b'{"question": NaN, "answer": "x"}\n', "dropped", "content is not text"),
    "no answer": (turns(("user", "a")), "dropped", "no answer: a prompt without an assistant turn"),
    "no prompt": (turns(("user", " "), ("assistant", "b")), "dropped", "no prompt"),
    "a turn that is no object": (
        b'{"messages": [{"role": "user", "content": "x"}, 5]}\n',
        "dropped",
        "a turn is a int",
    ),
    "a text that is null": (b'{"text": null}\n', "dropped", "content is missing"),
    "keys no terminal shows": (
        b'{"a\\ud800\\u001b": 1}\n',
        "broken",
        "shape not recognised (keys: 'a\\ud800\\x1b')",
    ),
    "leading assistant": (
        turns(("assistant", "a"), ("user", "b"), ("assistant", "c")),
        "repaired",
        "leading assistant",
    ),
    "a turn twice": (turns(("user", "a"), ("user", "b"), ("assistant", "c")), "repaired", "two user turns in a row"),
    "open end": (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "repaired", "cut after the last assistant"),
}


@pytest.mark.parametrize("fault", ROW_FAULTS)
def test_a_bad_row_among_good_ones(tmp_path, fault):
    line, where, reason = ROW_FAULTS[fault]
    path = tmp_path / "x.jsonl"
    path.write_bytes(LINE * MANY + line + LINE)
    conversations, report = read_conversations(path)
    assert len(conversations) == report.kept == MANY + 1 + (where == "repaired") and report.read == MANY + 2
    ((told, (count, first)),) = getattr(report, where).items()
    assert told.startswith(reason) and (count, first) == (1, f"x.jsonl:{MANY + 1}")
    assert sum(map(len, (report.broken, report.dropped, report.repaired, report.noticed))) == 1
    assert any(reason.split(" (")[0] in text for text in report.lines())
    if where == "broken":
        with pytest.raises(UserError, match=rf"1 of {MANY + 2} rows are broken, the first at x\.jsonl:{MANY + 1}: "):
            read_conversations(path, max_bad_share=0.01)


@pytest.mark.parametrize(
    "content, kept",
    [
        (b"\xef\xbb\xbf" + LINE * 3, 3),
        (b"\xef\xbb\xbf" + ROWS, MANY),
        (LINE.replace(b"\n", b"\r\n") * 3, 3),
        (b"\n\n" + LINE + b"   \n" + LINE + b"\n", 2),
        (LINE + LINE.rstrip(), 2),
        (json.dumps(GOOD, indent=2).encode(), 1),
        (json.dumps(NOISE).encode().replace(b", ", b","), 400),
    ],
    ids=["BOM", "BOM and array", "CRLF", "blank lines", "no newline at the end", "one object", "one line array"],
)
def test_what_is_no_fault(tmp_path, content, kept):
    for name, written in (("x.json", content), ("y.json.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(written)
        conversations, report = read_conversations(tmp_path / name)
        assert len(conversations) == kept and not report.broken and not report.dropped


def test_lone_surrogates_and_duplicate_ids(tmp_path):
    row = {"id": "a\ud800", "question": "x\udc00?", "answer": "\ud83d\ude00 \ud800"}
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(r) + "\n" for r in [row, row, row | {"id": 7}]))
    conversations, report = read_conversations(tmp_path / "x.jsonl")
    assert [c.id for c in conversations] == ["a\ufffd", "a\ufffd", "7"]
    assert [m["content"] for m in conversations[0].messages] == ["x\ufffd?", "\U0001f600 \ufffd"]
    assert report.noticed == {"duplicate id": (1, "x.jsonl:2")}


# What is wrong with the whole file, or from some place on: (name, content, rows kept, message)
DAMAGED = ROWS[:-2] + b',{"messages": oops}' + b"," + ROWS[1:]
GZIPPED = gzip.compress("".join(json.dumps(row) + "\n" for row in NOISE).encode())
GZIPPED_ARRAY = gzip.compress(json.dumps(NOISE).encode())
FILE_FAULTS = {
    "array cut in a row": ("x.json", ROWS[:-30], MANY - 1, rf"x\.json:{MANY}: the array is cut off in the middle"),
    "array without ]": ("x.json", ROWS.rstrip(b"]\n "), MANY, rf"x\.json:{MANY + 1}: the array ends without \]"),
    "text behind the array": ("x.json", ROWS + b"!", MANY, rf"x\.json:{MANY + 1}: text behind the end"),
    "array damaged": ("x.json", ROWS[:-2] + b",{oops}]", MANY, rf"x\.json:{MANY + 1}: the array is cut off"),
    "array damaged inside": ("x.json", DAMAGED, MANY, rf"x\.json:{MANY + 1}: not valid JSON .*; what follows"),
    "array with a huge row": (
        "x.json",
        ROWS[:-2] + b"," + LONG + b"]",
        MANY,
        rf":{MANY + 1}: a row of more than 16 MB",
    ),
    "array too deep": ("x.json", ROWS[:-2] + b"," + b"[" * 99_999, MANY, rf":{MANY + 1}: not valid JSON \(too deep"),
    "array with a row not UTF-8": ("x.json", ROWS[:-2] + b',"\xff"]', MANY, rf"x\.json:{MANY + 1}: not UTF-8 text"),
    "array with a row that is null": ("x.json", ROWS[:-2] + b",null]", MANY, rf"x\.json:{MANY + 1}: a row is null"),
    "gzip cut": ("x.jsonl.gz", GZIPPED[: len(GZIPPED) // 2], (100, 300), r"x\.jsonl\.gz:\d+: the gzip file is cut off"),
    "gzip garbage": ("x.jsonl.gz", GZIPPED[:40_000] + b"garbage" * 99, (50, 300), r"x\.jsonl\.gz:\d+: not"),
    "gzip array cut": ("x.json.gz", GZIPPED_ARRAY[: len(GZIPPED) // 2], (100, 300), r"x\.json\.gz:\d+: .*cut off"),
    "gzip from the start": ("x.json.gz", b"\x1f\x8bnot really", 0, r"x\.json\.gz:1: a damaged gzip file"),
    "empty": ("x.json", b"", 0, r"x\.json: the file is empty"),
    "white space": ("x.json", b" \n\n", 0, r"x\.json: the file is empty"),
    "UTF-16": ("x.json", LINE.decode().encode("utf-16"), 0, r"x\.json: the file is UTF-16 text: convert"),
    "HTML": ("x.json", b"<!DOCTYPE html>\n<p>404</p>\n", 0, r"x\.json: the file is a web page, no data: download"),
    "LFS": ("x.json", b"version https://git-lfs.github.com/spec/v1\n", 0, r"x\.json: the file is a pointer of Git LFS"),
    "pickle": ("x.json", pickle.dumps(GOOD, protocol=4), 0, r"x\.json: the file is a pickle"),
    "zip": ("x.json", b"PK\x03\x04" + bytes(99), 0, r"x\.json: the file is a zip archive"),
    "picture": ("x.jsonl", b"\x89PNG\r\n\x1a\n" + bytes(99), 0, r"x\.jsonl: the file is a picture"),
    "old pickle": ("x.json", pickle.dumps(GOOD, protocol=2), 0, r"x\.json: the file is a pickle"),
    "any bytes": ("x.json", bytes(range(256)), 0, r"x\.json:1: not"),
    "damaged parquet": ("x.parquet", b"PAR1" + bytes(99), 0, r"x\.parquet:1: damaged parquet"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_damaged_file(tmp_path, fault):
    name, content, kept, message = FILE_FAULTS[fault]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        read_conversations(path, max_bad_share=0)
    assert "\n" not in str(caught.value)
    if kept:
        least, most = kept if isinstance(kept, tuple) else (kept, kept)
        conversations, report = read_conversations(path, max_bad_share=0.1)
        assert least <= len(conversations) <= most and 1 <= report.bad <= 5
    else:  # beside a good file it is one bad row
        (tmp_path / "a.jsonl").write_bytes(LINE * MANY)
        assert read_conversations(tmp_path)[1].kept == MANY


def test_no_rows_and_no_files(tmp_path):
    with pytest.raises(UserError, match="is a folder without data files"):
        read_conversations(tmp_path)
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(UserError, match="holds no rows"):
        read_conversations(tmp_path / "x.json")
    (tmp_path / "link.json").symlink_to(tmp_path / "gone.json")
    with pytest.raises(UserError, match="a link to what does not exist"):
        read_conversations(tmp_path / "link.json")
    (tmp_path / "good.jsonl").write_bytes(LINE * MANY)
    _, report = read_conversations(tmp_path)
    assert report.kept == MANY and report.broken.popitem()[1] == (1, "link.json")
    with pytest.raises(UserError, match="for a data set of the Hugging Face Hub write hf:tatsu-lab/alpaca"):
        read_conversations("tatsu-lab/alpaca")
    with pytest.raises(UserError, match="cannot be read"):
        read_conversations("a" * 300)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    (tmp_path / "x.json").write_bytes(LINE)
    (tmp_path / "x.json").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        read_conversations(tmp_path / "x.json")


def test_a_file_full_of_broken_rows_stops_early(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"oops\n" * 100_000)
    report = Report(str(path))
    with pytest.raises(UserError, match=r"1000 of 1000 rows are broken, the first at x\.jsonl:1"):
        list(iterate(path, report))


def test_mixed_formats(tmp_path):
    rows = [GOOD, {"text": "x"}, {"question": "a?", "answer": "b"}, {"instruction": "a", "output": "b"}]
    (tmp_path / "x.json").write_text(json.dumps(rows))
    _, report = read_conversations(tmp_path)
    assert report.formats == {"messages": 1, "text": 1, "question": 1, "alpaca": 1}


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(UserError, match=r"data set hf:x/y:en@test cannot be read \(Couldn't reach the Hub\).*network"):
        read_conversations("hf:x/y:en@test")


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "x.json"
    path.write_text(json.dumps([{"question": "x" * 2000, "answer": "y"}] * 20_000))
    tracemalloc.start()
    for number, _ in enumerate(iterate(path, Report("x"))):
        if number == 15_000:
            break
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20 < path.stat().st_size / 4


def test_parquet_text_and_hub_data(tmp_path, monkeypatch):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    pytest.importorskip("datasets")
    folder = tmp_path / "set"
    folder.mkdir()
    rows = [{"id": i, "question": f"what {i}?", "answer": "that"} for i in range(1500)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    conversations, report = read_conversations(folder / "train.parquet")
    assert len(conversations) == 1500 and report.formats == {"question": 1500}
    assert conversations[1200].where == "train.parquet:1201"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    streamed = list(iterate(f"hf:{folder}", Report("hf")))
    assert [c.messages for c in streamed] == [c.messages for c in conversations]
    with pytest.raises(UserError, match=r"data set hf:.* cannot be read"):
        read_conversations(f"hf:{folder}@nosuchsplit")
    parquet.write_table(pyarrow.Table.from_pylist([{"x": 1}] * 3), tmp_path / "y.parquet")
    with pytest.raises(UserError, match=r"3 of 3 rows are broken, the first at y\.parquet:1: shape not recognised"):
        read_conversations(tmp_path / "y.parquet")
    for missing, path in (("pyarrow", tmp_path / "y.parquet"), ("datasets", "hf:x/y")):
        monkeypatch.setitem(sys.modules, missing, None)
        with pytest.raises(UserError, match=r'needs .*: pip install "mhc\[data\]"'):
            read_conversations(path)
    (tmp_path / "lines.txt").write_text("one document\n\nanother one\n")
    documents, report = read_conversations(tmp_path / "lines.txt")
    assert [c.messages for c in documents] == [
        [{"role": "document", "content": text}] for text in ("one document", "another one")
    ]
    prompts = list(iterate(tmp_path / "lines.txt", Report("x"), answered=False))
    assert [m["role"] for m in prompts[0].messages] == ["user", "assistant"]
