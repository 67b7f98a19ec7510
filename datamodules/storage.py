"""Conversations and encoded rows as sequences, in memory or in files that are memory-mapped.

    R rows   N tokens of all rows

Data larger than memory is read once, row by row, into a folder; from then on a row costs one read, in any order and from any
process. What stands in the folder is whole: the offsets are written last, under another name first.
"""

import json
import os
import shutil
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from datamodules.batching import Row
from datamodules.readers import Conversation
from mhc.errors import UserError
from mhc.util.files import write_atomically


class EncodedRows(Sequence[Row]):
    """Row i is ids[offsets[i]:offsets[i+1]] (int32) and the same part of mask (bool); offsets (R+1) int64."""

    def __init__(self, ids: np.ndarray, mask: np.ndarray, offsets: np.ndarray):
        self.ids, self.mask, self.offsets = ids, mask, offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]  # no slices
        if not 0 <= number < len(self):
            raise IndexError(number)
        part = slice(self.offsets[number], self.offsets[number + 1])
        return np.asarray(self.ids[part]), np.asarray(self.mask[part])

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each row (R,)."""
        return np.diff(self.offsets)

    @classmethod
    def in_memory(cls, rows: Iterable[Row]) -> "EncodedRows":
        """All rows, end to end."""
        ids, mask, offsets = array("i"), bytearray(), array("q", [0])
        for row_ids, row_mask in rows:
            ids.frombytes(row_ids.astype(np.int32).tobytes())
            mask += row_mask.tobytes()
            offsets.append(len(ids))
        return cls(np.frombuffer(ids, np.int32), np.frombuffer(mask, bool), np.frombuffer(offsets, np.int64))

    @classmethod
    def on_disk(cls, path: Path, rows: Iterable[Row]) -> "EncodedRows":
        """Write all rows to <path>.ids, .mask and .offsets.npy, and map them."""
        offsets = array("q", [0])
        with _writing(path, "ids") as ids, _writing(path, "mask") as mask:
            for row_ids, row_mask in rows:
                ids.write(row_ids.astype(np.int32).tobytes())
                mask.write(row_mask.tobytes())
                offsets.append(offsets[-1] + len(row_ids))
        _finish(path, offsets, "ids", "mask")
        return cls._map(path, _load_offsets(path))

    @classmethod
    def mapped(cls, path: Path) -> "EncodedRows | None":
        """The rows in these files, or None where they were never finished."""
        return cls._map(path, _load_offsets(path)) if _is_finished(path) else None

    @classmethod
    def _map(cls, path: Path, offsets: np.ndarray) -> "EncodedRows":
        return cls(_map(path, "ids", np.int32), _map(path, "mask", bool), offsets)


class StoredConversations(Sequence[Conversation]):
    """Conversations in a file of JSON lines, of which only the places are in memory; `chosen` of them, in this order."""

    def __init__(self, path: Path, offsets: np.ndarray, chosen: np.ndarray | None = None):
        self.path, self.offsets = path, offsets
        self.chosen = np.arange(len(offsets) - 1) if chosen is None else chosen
        self.lines = _map(path, "jsonl", np.uint8)

    def __len__(self) -> int:
        return len(self.chosen)

    @overload
    def __getitem__(self, number: int) -> Conversation: ...
    @overload
    def __getitem__(self, number: slice) -> "StoredConversations": ...
    def __getitem__(self, number: int | slice) -> "Conversation | StoredConversations":
        if isinstance(number, slice):
            return self.only(self.chosen[number])
        if not 0 <= number < len(self):
            raise IndexError(number)
        place = self.chosen[number]
        return Conversation(**json.loads(bytes(self.lines[self.offsets[place] : self.offsets[place + 1]])))

    def only(self, chosen: Sequence[int] | np.ndarray) -> "StoredConversations":
        """Some of the conversations of the file, by their place in it."""
        return StoredConversations(self.path, self.offsets, np.asarray(chosen, dtype=np.int64))

    @classmethod
    def on_disk(cls, path: Path, conversations: Iterable[Conversation]) -> "StoredConversations":
        """Write them to <path>.jsonl and .offsets.npy, and map them."""
        offsets = array("q", [0])
        with _writing(path, "jsonl") as file:
            for conversation in conversations:
                line = json.dumps(vars(conversation), ensure_ascii=False).encode() + b"\n"
                file.write(line)
                offsets.append(offsets[-1] + len(line))
        _finish(path, offsets, "jsonl")
        return cls(path, _load_offsets(path))

    @classmethod
    def mapped(cls, path: Path) -> "StoredConversations | None":
        """The conversations in these files, or None where they were never finished."""
        return cls(path, _load_offsets(path)) if _is_finished(path) else None


class _writing:
    """<path>.<name>, under the name of this process until it is finished; a full disk is one clear line."""

    def __init__(self, path: Path, name: str):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = open(_temporary(path, name), "wb")  # noqa: SIM115

    def __enter__(self) -> "_writing":
        return self

    def write(self, data: bytes) -> None:
        try:
            self.file.write(data)
        except OSError as problem:
            raise _unwritable(self.file.name, problem) from problem

    def __exit__(self, *error: object) -> None:
        try:
            self.file.close()
        except OSError as problem:
            raise _unwritable(self.file.name, problem) from problem
        finally:
            if error[0] is not None:
                os.unlink(self.file.name)


def _finish(path: Path, offsets: array, *names: str) -> None:
    for name in names:
        os.replace(_temporary(path, name), path.with_name(f"{path.name}.{name}"))
    try:
        write_atomically(path.with_name(f"{path.name}.offsets.npy"), lambda temporary: _save(temporary, offsets))
    except OSError as problem:
        raise _unwritable(path, problem) from problem


def _save(path: Path, offsets: array) -> None:
    with open(path, "wb") as file:
        np.save(file, np.frombuffer(offsets, np.int64))


def _is_finished(path: Path) -> bool:
    return path.with_name(f"{path.name}.offsets.npy").exists()


def _load_offsets(path: Path) -> np.ndarray:
    return np.load(path.with_name(f"{path.name}.offsets.npy"))


def _map(path: Path, name: str, kind: type) -> np.ndarray:
    file = path.with_name(f"{path.name}.{name}")
    return np.memmap(file, kind, "r") if file.stat().st_size else np.zeros(0, kind)


def _temporary(path: Path, name: str) -> Path:
    return path.with_name(f"{path.name}.{name}.{os.getpid()}.writing")


def _unwritable(path: object, problem: OSError) -> UserError:
    free = shutil.disk_usage(Path(str(path)).parent).free / 2**30
    return UserError(f"cannot write '{path}' ({problem.strerror}, {free:.1f} GiB free): choose another --data.cache")
