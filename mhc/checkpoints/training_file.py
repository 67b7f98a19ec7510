"""Checkpoints of a run as single files that are whole or recognised as broken, and that are read without running anything.

A file is what `torch.save` writes and, behind it, a trailer that is written last: a mark, the length and the sha256 of what
stands before. Saving never touches the file in place: `last.ckpt` is written beside it and renamed, and the one it takes
the place of becomes `last.previous.ckpt`. So after a kill, a full disk or a flipped bit there is one that loads, the one
before at worst. Whatever the strategy and the number of processes, one process writes one such file.
"""

import hashlib
import io
import struct
import sys
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mhc.errors import UserError
from mhc.util.files import write_atomically

MARK = b"mhc checkpoint 1"
TRAILER = struct.Struct(f"<{len(MARK)}sQ32s")  # mark, bytes before the trailer, their sha256


class CheckpointFiles(CheckpointIO):
    """What every strategy writes checkpoints with and reads them by."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Put `checkpoint` in the place of the file at `path`, which is kept as the previous one if it looks whole. Raises
        UserError where it cannot be written; what was there stays."""
        path = Path(path)
        keep = previous(path) if _claimed_length(path) is not None else None
        try:
            write_atomically(path, lambda at: _write(checkpoint, at), keep)
        except OSError as problem:
            raise UserError(
                f"cannot write the checkpoint '{path}' ({problem.strerror}); what was there before is untouched: mend that, then "
                "resume with --ckpt_path last"
            ) from problem

    def load_checkpoint(
        self, path: str | Path, map_location: Any = "cpu", weights_only: bool | None = True
    ) -> dict[str, Any]:
        """The checkpoint at `path`, tensors in main memory. Nothing in the file is executed, and nothing is looked at
        before its sha256 was. Raises UserError for a file that is damaged or was not written by `fit`."""
        payload = _verified(Path(path))
        try:
            checkpoint = torch.load(io.BytesIO(payload), map_location=map_location, weights_only=True)
        except Exception as problem:  # made to harm, or by a version of torch that writes something else
            raise UserError(f"checkpoint '{path}' holds more than tensors and plain values: not loaded") from problem
        if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
            raise UserError(f"checkpoint '{path}' holds no training state: use one that `run.py fit` wrote")
        return checkpoint

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def previous(path: Path) -> Path:
    """Where the file goes that a new one at `path` takes the place of."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def newest_whole(path: Path) -> Path:
    """The checkpoint at `path`, or the one before it, with a warning, where that is damaged or missing.

    Raises UserError where neither is whole, or where a link leads out of the folder.
    """
    problems = []
    for candidate in (path, previous(path)):
        if candidate.resolve().parent != path.parent.resolve():
            raise UserError(
                f"'{candidate}' leads to '{candidate.resolve()}', out of its folder: name that file if you mean it"
            )
        try:
            require_whole(candidate)
        except UserError as problem:
            problems.append(str(problem))
        else:
            if problems:
                _warn(f"{problems[0].partition(':')[0]}; going on from the one before it, '{candidate}'")
            return candidate
    raise UserError(problems[0])


@rank_zero_only
def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def require_whole(path: Path) -> None:
    """Raise UserError unless the file is as it was written."""
    _verified(path)


def _verified(path: Path) -> bytes:
    """What stands before the trailer, if it is what was written."""
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise UserError(f"checkpoint '{path}' cannot be read ({problem.strerror}): use another") from problem
    payload, trailer = data[: -TRAILER.size], data[-TRAILER.size :]
    if len(trailer) == TRAILER.size:
        mark, length, digest = TRAILER.unpack(trailer)
        if mark == MARK and length == len(payload) and digest == hashlib.sha256(payload).digest():
            return payload
    raise UserError(f"checkpoint '{path}' is damaged or was not written by `run.py fit`: use another, or train again")


def _claimed_length(path: Path) -> int | None:
    """The length of a file that ends in a trailer for that length; None for any other, and where there is none."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(max(0, size - TRAILER.size))
            mark, length, _ = TRAILER.unpack(file.read())
    except (OSError, struct.error):
        return None
    return length if mark == MARK and length == size - TRAILER.size else None


def _write(checkpoint: dict[str, Any], path: Path) -> None:
    with open(path, "wb") as file:
        hashed = _Hashed(file)
        try:
            torch.save(checkpoint, cast(IO[bytes], hashed))  # of a file torch wants `write` and `flush` alone
        except RuntimeError as problem:  # torch's own words for a write that failed
            raise hashed.problem or problem from None
        file.write(TRAILER.pack(MARK, hashed.length, hashed.sha256.digest()))


class _Hashed:
    """A file to be written to, whose bytes are counted and hashed on their way."""

    def __init__(self, file: IO[bytes]):
        self.file, self.length, self.sha256 = file, 0, hashlib.sha256()
        self.problem: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            self.file.write(data)
        except OSError as problem:
            self.problem = problem
            raise
        self.length += len(data)
        self.sha256.update(data)
        return len(data)

    def flush(self) -> None:
        self.file.flush()
