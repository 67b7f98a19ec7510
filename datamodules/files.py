"""Files to raw rows, one at a time, whatever is wrong with them.

| ending                                | a row is                                         |
|---------------------------------------|--------------------------------------------------|
| .json, .jsonl, .ndjson, and .gz of it | an element of a JSON array, or a line            |
| .parquet                              | a record (needs the extra `data`)                |
| .txt, and .gz of it                   | a line: {"text": line}                           |
| a folder                              | all of these in it, by name                      |
| hf:NAME[:CONFIG][@SPLIT]              | a record of a Hugging Face data set, streamed    |

Nothing of a file but a row or a block is in memory. What cannot be read comes as a Broken with its place, and the rows
before it stay good.
"""

import codecs
import difflib
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from mhc.errors import UserError

LARGEST = 16 << 20  # bytes of a row: a longer one is damage, or no row
BLOCK = 1 << 20  # bytes of a JSON array read at a time
JSON_SUFFIXES, TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson"), (".txt",)
SUFFIXES = (*JSON_SUFFIXES, ".parquet", *TEXT_SUFFIXES)
MAGIC = {
    b"PK\x03\x04": "a zip archive",
    b"\x89PNG": "a picture",
    b"\x80\x04": "a pickle",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"\xfd7zXZ": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"PAR1": "a parquet file without that ending",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
}
ESCAPED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no UTF-8
READING = (EOFError, gzip.BadGzipFile, zlib.error)


class Broken(Exception):
    """A row that does not parse or has no known shape; the reason is its text."""


def raw_rows(path: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row; place is "file.json:12" (line of a JSONL file, else number of the row, from 1). A row that
    cannot be read is a Broken. Raises UserError where there is nothing of that name."""
    if str(path).startswith("hf:"):
        yield from _hub_rows(str(path).removeprefix("hf:"))
        return
    for file in data_files(Path(path)):
        try:
            if file.name.endswith(".parquet"):
                yield from _parquet_rows(file)
            else:
                yield from _file_rows(file)
        except OSError as problem:
            yield file.name, Broken(f"the file cannot be read ({problem.strerror or problem})")


def data_files(path: Path) -> list[Path]:
    """The file, or all data files of the folder, by name."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if not file.is_dir() and _ending(file).endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{path} is a folder without data files: expected {', '.join(SUFFIXES)}, plain or .gz")
        return files
    if path.exists():
        return [path]
    if path.is_symlink():
        raise UserError(f"{path} is a link to what does not exist: mend the link")
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not near:
        hint = f"check the path; a data set of the Hugging Face Hub is hf:{path}"
    raise UserError(f"{path} does not exist: {hint}")


def source_state(path: str) -> list[Any]:
    """What tells whether a source is still the same: name, size and time of its files."""
    if str(path).startswith("hf:"):
        return [str(path)]
    states = [(file, file.stat()) for file in data_files(Path(path)) if file.exists()]
    return [[str(file.absolute()), state.st_size, state.st_mtime_ns] for file, state in states]


def _ending(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _file_rows(file: Path) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        try:
            start = stream.peek(8192)
        except READING as problem:
            yield f"{file.name}:1", Broken(f"a damaged gzip file ({problem})")
            return
        if kind := next((kind for magic, kind in MAGIC.items() if start.startswith(magic)), None):
            yield file.name, Broken(f"the file is {kind}: convert it to JSON or JSONL in UTF-8")
            return
        if start.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
            start = start[len(codecs.BOM_UTF8) :]
        if not start.strip() and len(start) < 4096:
            yield file.name, Broken("the file is empty")
        elif _ending(file).endswith(TEXT_SUFFIXES):
            yield from _text_rows(file.name, stream)
        elif start.lstrip()[:1] == b"[":
            yield from _array_rows(file.name, stream)
        else:
            yield from _line_rows(file, stream)


@contextmanager
def _opened(file: Path) -> Iterator[BinaryIO]:
    with open(file, "rb") as stream:
        if stream.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield unzipped
        else:
            yield stream


# -- lines -----------------------------------------------------------------------------------------


def _lines(name: str, stream: BinaryIO) -> Iterator[tuple[str, bytes | Broken]]:
    """Every line that is not blank, with its place; too long a one is passed over without holding it."""
    number = 0
    while True:
        number += 1
        try:
            line = stream.readline(LARGEST + 1)
            size = len(line)
            while len(line) > LARGEST and not line.endswith(b"\n"):
                line = stream.readline(LARGEST + 1)
                size += len(line)
                if not line or line.endswith(b"\n"):
                    break
        except READING as problem:
            yield f"{name}:{number}", Broken(f"the gzip file is cut off or damaged here ({problem})")
            return
        if size > LARGEST:
            yield f"{name}:{number}", Broken(f"a row of {size >> 20} MB, more than {LARGEST >> 20}")
        elif not line:
            return
        elif line.strip():
            yield f"{name}:{number}", line


def _line_rows(file: Path, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    for number, (where, line) in enumerate(_lines(file.name, stream)):
        row = line if isinstance(line, Broken) else parsed(line)
        if number == 0 and isinstance(row, Broken) and isinstance(whole := _whole(file), dict):
            yield where, whole  # one object, written over several lines
            return
        yield where, row


def _whole(file: Path) -> Any:
    with _opened(file) as stream:
        try:
            return parsed(stream.read(LARGEST).removeprefix(codecs.BOM_UTF8))
        except READING:
            return None


def _text_rows(name: str, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    for where, line in _lines(name, stream):
        if isinstance(line, bytes):
            try:
                yield where, {"text": line.decode().rstrip("\r\n")}
            except UnicodeDecodeError:
                yield where, Broken("not UTF-8 text")
        else:
            yield where, line


def parsed(line: bytes) -> Any:
    """The JSON of a line, or why there is none."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError:
        return Broken("not UTF-8 text")
    except (ValueError, RecursionError):
        return Broken("not valid JSON")


# -- arrays ----------------------------------------------------------------------------------------


def _array_rows(name: str, stream: BinaryIO) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array, parsed one by one from blocks of the file."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    number, at, buffer, ended, damage = 1, 0, "", False, ""
    separators = "[ \t\r\n"  # before the first element; from then on commas
    while True:
        while at < len(buffer) and buffer[at] in separators:
            separators = ", \t\r\n" if buffer[at] == "[" else separators
            at += 1
        where = f"{name}:{number}"
        if buffer[at : at + 1] == "]":
            if buffer[at + 1 :].strip():
                yield where, Broken("text behind the end of the array")
            return
        reason = "the array ends without ]"
        if at < len(buffer):
            try:
                row, end = parse(buffer, at)
                if end < len(buffer) or ended:
                    text = buffer[at:end]
                    yield where, Broken("not UTF-8 text") if ESCAPED.search(text) else row
                    number, at = number + 1, end
                    continue
            except (ValueError, RecursionError) as problem:
                reason = "the array is cut off in the middle of a row" if ended else "not valid JSON"
                if isinstance(problem, RecursionError) or "digit" in str(problem):
                    reason, ended = "not valid JSON", True
        if ended or len(buffer) - at > LARGEST:
            yield where, Broken(f"{damage or reason}; what follows in this file cannot be read")
            return
        block, damage = _block(stream, max(BLOCK, len(buffer) - at))
        ended = not block
        buffer, at = buffer[at:] + decode(block, ended), 0


def _block(stream: BinaryIO, size: int) -> tuple[bytes, str]:
    """About so many bytes, fewer before the end or before damage, which is told when nothing is left before it."""
    parts: list[bytes] = []
    while sum(map(len, parts)) < size:
        try:
            part = stream.read1(size)
        except READING as problem:
            return b"".join(parts), f"the gzip file is cut off or damaged here ({problem})"
        if not part:
            break
        parts.append(part)
    return b"".join(parts), ""


# -- parquet and the hub ---------------------------------------------------------------------------


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as problem:
        raise UserError(f'{file} needs pyarrow: pip install "mhc[data]"') from problem
    number = 1
    try:
        for batch in ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{file.name}:{number}", row
                number += 1
    except (ArrowException, OSError) as problem:
        reason = " ".join(str(problem).split())[:120]
        yield f"{file.name}:{number}", Broken(f"damaged parquet ({reason}); what follows in this file cannot be read")


def _hub_rows(name: str) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
    except ImportError as problem:
        raise UserError(f'hf:{name} needs the datasets library: pip install "mhc[data]"') from problem
    name, _, split = name.partition("@")
    name, _, config = name.partition(":")
    try:
        for number, row in enumerate(load_dataset(name, config or None, split=split or "train", streaming=True), 1):
            yield f"{name}:{number}", row
    except Exception as problem:  # the library raises anything from OSError to its own kinds
        reason = " ".join(str(problem).split())[:200]
        raise UserError(f"data set hf:{name} cannot be read ({reason}): check its name, config and split") from problem
