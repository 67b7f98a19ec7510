"""One run at a time in a folder, and who has a file.

The lock is the kernel's: it ends with the process that holds it, however that dies, and processes that it forks (workers that
make batches) do not keep it.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mhc.errors import UserError

LOCK = "run.lock"  # in a run's folder


@contextmanager
def alone(path: Path, flag: str) -> Iterator[None]:
    """Hold the lock file `path`, which is gone afterwards, as are the folders that were made for it and stayed empty. flag:
    where the command got the place from.

    Raises UserError, naming the place and the process, where another one holds it; OSError where nothing can be written.
    """
    made = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        while True:
            with open(path, "ab") as file:
                _lock(file.fileno(), path, flag)
                if not _is(path, file.fileno()):
                    continue  # the one before has just removed it
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def beside(out: Path) -> Path:
    """The lock file of a file, or of a folder in which nothing else may lie."""
    return out.with_name(out.name + ".lock")


def _lock(file: int, path: Path, flag: str) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        if problem.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        place = path.parent if path.name == LOCK else path.with_suffix("")
        raise UserError(
            f"another run{holder(path)} is working in '{place}': wait for its end, or choose another {flag}"
        ) from problem


def _is(path: Path, file: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(path))
    except FileNotFoundError:
        return False


def holder(path: Path) -> str:
    """Which process holds a lock on the file: " (process 1234)", or nothing where the system does not tell."""
    with suppress(OSError, IndexError):
        inode = os.stat(path).st_ino
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            fields = line.split()  # 1: POSIX ADVISORY WRITE 1234 fe:00:2147878 0 EOF
            if fields[1] != "->" and fields[5].endswith(f":{inode}") and int(fields[4]) > 0:
                return f" (process {fields[4]})"
    return ""
