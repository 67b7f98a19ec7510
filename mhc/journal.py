"""Append-only files of records that survive being killed at any moment.

A record is a line of JSON whose `check` is a hash of the rest. On opening, a torn last line is cut off and a damaged line
is taken out; both are told with their place. Only one process may write to a journal.
"""

import fcntl
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mhc.errors import UserError


def digest(value: Any) -> str:
    """16 hex digits that stand for a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]


class Journal:
    """The records of a file, to be appended to. Use it as a context: the file is locked until it is closed.

    tell: called with a line about what was mended. Raises UserError where another process has the file, or where it cannot
    be written (a full disk): what stands in it stays whole.
    """

    def __init__(self, path: Path, tell: Callable[[str], None]):
        self.path, self.tell = path, tell

    def __enter__(self) -> "Journal":
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._file = open(self.path, "ab", buffering=0)
        except OSError as problem:
            raise UserError(f"cannot write '{self.path}' ({problem.strerror}): choose another --out") from problem
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            self._file.close()
            raise UserError(
                f"another process is writing '{self.path}': wait for it, or choose another --out"
            ) from problem
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def records(self) -> Iterator[dict[str, Any]]:
        """The whole records, first to last; what is not whole is taken out of the file behind the last one."""
        whole, damaged = 0, []  # where the last whole line ends; what stands between
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                record = _checked(line)
                if record is None:
                    damaged.append((number, whole, whole + len(line), line.endswith(b"\n")))
                else:
                    yield record
                whole += len(line)
        if not damaged:
            return
        for number, _, _, ended in damaged:
            what = "damaged line, which is made again" if ended else "half-written line at the end"
            self.tell(f"{self.path}:{number}: took out a {what}")
        data, kept, at = self.path.read_bytes(), b"", 0
        for _, start, end, _ in damaged:
            kept, at = kept + data[at:start], end
        kept += data[at:]
        copy = self.path.with_name(self.path.name + ".mended")
        copy.write_bytes(kept)
        self._file.truncate(0)  # the same file, so that it stays locked; `copy` is there should this be killed here
        self._write(kept)
        copy.unlink()

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, with its check."""
        line = json.dumps({**record, "check": digest(record)}, ensure_ascii=False) + "\n"
        self._write(line.encode())

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self._file.write(data) :]
        except OSError as problem:
            raise UserError(
                f"cannot write '{self.path}' ({problem.strerror}): make room, then run the same command again to go on"
            ) from problem


def _checked(line: bytes) -> dict[str, Any] | None:
    """The record of a line, or None unless it is whole."""
    try:
        record = json.loads(line)
        return record if line.endswith(b"\n") and record.pop("check") == digest(record) else None
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
