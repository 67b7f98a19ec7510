"""Streams of bytes to raw rows, whatever is wrong with them: lines of text, lines of JSON, the elements of a JSON array.

Nothing of a stream but a row or a block is in memory. What cannot be read comes as a Broken with its place, and the rows
before it stay good.
"""

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

Buffered = io.BufferedReader | gzip.GzipFile  # a file of bytes, read ahead

LARGEST = 16 << 20  # bytes of a row: a longer one is damage, or no row
BLOCK = 1 << 20  # bytes of a JSON array read at a time
BLANKS = re.compile(r"[ \t\r\n]*"), re.compile(r"[, \t\r\n]*")
ESCAPED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bytes that are no UTF-8
READING = (EOFError, gzip.BadGzipFile, zlib.error)


class Broken(Exception):
    """A row that does not parse or has no known shape; the reason is its text."""


# -- lines -----------------------------------------------------------------------------------------


def lines(name: str, stream: Buffered) -> Iterator[tuple[str, bytes | Broken]]:
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


def text_rows(name: str, stream: Buffered) -> Iterator[tuple[str, Any]]:
    """Every line that is not blank, as a text row."""
    for where, line in lines(name, stream):
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
    except (ValueError, RecursionError) as problem:
        return Broken(_why(problem))


def _why(problem: Exception) -> str:
    if isinstance(problem, json.JSONDecodeError):
        return f"not valid JSON ({problem.msg.removesuffix(' at').removesuffix(' starting')})"
    reason = "too deeply nested" if isinstance(problem, RecursionError) else "a number with too many digits"
    return f"not valid JSON ({reason})"


# -- arrays ----------------------------------------------------------------------------------------


def array_rows(name: str, stream: Buffered) -> Iterator[tuple[str, Any]]:
    """The elements of a JSON array, parsed one by one from blocks of the file."""
    decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
    parse = json.JSONDecoder().raw_decode
    number, at, buffer, ended, damage, dirty = 1, 0, "", False, "", False
    blanks = BLANKS[0]  # before the first element; from then on commas
    while True:
        at = _behind(blanks, buffer, at)
        if blanks is BLANKS[0] and at < len(buffer):
            blanks, at = BLANKS[1], _behind(BLANKS[1], buffer, at + 1)  # the [ itself
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
                    wrong = dirty and ESCAPED.search(buffer, at, end)
                    yield where, Broken("not UTF-8 text") if wrong else row
                    number, at = number + 1, end
                    continue
            except (ValueError, RecursionError) as problem:
                reason = _why(problem)
                if not _cut(problem, len(buffer)):
                    yield where, Broken(f"{reason}; what follows in this file cannot be read")
                    return
                if ended:
                    reason = "the array is cut off in the middle of a row"
            if len(buffer) - at > LARGEST:
                reason, ended = f"a row of more than {LARGEST >> 20} MB", True
        if ended:
            yield where, Broken(f"{damage or reason}; what follows in this file cannot be read")
            return
        block, damage = _block(stream, max(BLOCK, len(buffer) - at))
        ended = not block
        buffer, at = buffer[at:] + decode(block, ended), 0
        dirty = not buffer.isascii() and ESCAPED.search(buffer) is not None


def _behind(blanks: re.Pattern[str], buffer: str, at: int) -> int:
    """The place behind the blanks that begin at `at`."""
    match = blanks.match(buffer, at)
    return match.end() if match else at


def _cut(problem: Exception, size: int) -> bool:
    """Whether more text could mend this: the parser stopped within a string or at the end."""
    if not isinstance(problem, json.JSONDecodeError):
        return False
    return problem.msg.startswith("Unterminated") or problem.pos > size - 16


def _block(stream: Buffered, size: int) -> tuple[bytes, str]:
    """About so many bytes, fewer before the end or before damage, which is reported when nothing is left before it."""
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
