"""Append-only files of records that survive being killed at any moment.

A record is a line of JSON whose `check` is a hash of the rest. On opening, a torn last line is cut off and a damaged line
is taken out; both are told with their place. Only one process may write to a journal.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mhc.errors import UserError
from mhc.util.locks import holder


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
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._locked(self.path)
            while not os.path.samestat(os.fstat(self._file.fileno()), os.stat(self.path)):  # it was being mended
                self._file.close()
                self._file = self._locked(self.path)
        except OSError as problem:
            raise UserError(f"cannot write '{self.path}' ({problem.strerror}): choose another --out") from problem
        return self

    def _locked(self, path: Path) -> Any:
        """The file at `path`, to be appended to by this process alone."""
        file = open(path, "ab", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            file.close()
            raise UserError(
                f"another process is writing '{self.path}'{holder(self.path)}: wait for it, or choose another --out"
            ) from problem
        return file

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def records(self) -> Iterator[dict[str, Any]]:
        """The whole records, first to last; what is not whole is taken out of the file behind the last one."""
        at, damaged = 0, set()  # where the line starts; numbers of lines
        with open(self.path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    self.tell(f"{self.path}:{number}: took out a half-written line at the end")
                    with self._writing():
                        self._file.truncate(at)
                elif (record := _checked(line)) is None:
                    self.tell(f"{self.path}:{number}: took out a damaged line, which is made again")
                    damaged.add(number)
                else:
                    yield record
                at += len(line)
        if damaged:
            with self._writing():
                self._take_out(damaged)

    def _take_out(self, damaged: set[int]) -> None:
        """Put a copy without these lines in the file's place: whoever is killed here leaves the one or the other."""
        copy = self.path.with_name(self.path.name + ".mended")
        with open(self.path, "rb") as old, open(copy, "wb") as new:
            new.writelines(line for number, line in enumerate(old, start=1) if number not in damaged)
            new.flush()
            os.fsync(new.fileno())
        locked = self._locked(copy)
        os.replace(copy, self.path)
        self._file.close()
        self._file = locked

    def append(self, record: dict[str, Any]) -> None:
        """Write one record, with its check."""
        data = (json.dumps({**record, "check": digest(record)}, ensure_ascii=False) + "\n").encode()
        with self._writing():
            while data:
                data = data[self._file.write(data) :]

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
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
