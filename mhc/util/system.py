"""What the system around a command may do to it: another locale, streams that take few characters, places that cannot be
written."""

import codecs
import errno
import locale
import os
import re
import sys
from collections.abc import Sequence

from mhc.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ADVICE = {
    **dict.fromkeys(FULL, "make room, then run the same command again (`fit` resumes with --ckpt_path last)"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "choose a place that this user may use"),
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), "a file stands where a folder should be: choose another path"),
    errno.EISDIR: "a folder stands where a file should be: choose another path",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter path",
}
RUST = re.compile(r"\(os error (\d+)\)")  # how tokenizers and safetensors name what the system refused


def restart_in_utf8() -> None:
    """Start this process over in Python's UTF-8 mode where the locale has another encoding: files, their names and the
    processes that are started are UTF-8 then, in every library. What is printed keeps the locale's encoding."""
    names = (locale.getencoding(), sys.getfilesystemencoding())
    if sys.flags.utf8_mode or all(codecs.lookup(name).name == "utf-8" for name in names):
        return
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding if sys.stdout else 'ascii'}:surrogateescape")
    os.environ["PYTHONUTF8"] = "1"  # for processes that this one starts
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def print_everything() -> None:
    """Let the standard streams write characters that their encoding lacks as escapes, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="backslashreplace")


def require_utf8(arguments: Sequence[str]) -> None:
    """Raise UserError for an argument that is not UTF-8: it could be opened, but neither written down nor printed."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError as problem:
            raise UserError(f"the argument {argument!a} is not UTF-8: rename the file, or correct it") from problem


def refusal(error: BaseException) -> str | None:
    """In one line what the system refused and what to do; None for an error of another kind."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (found := RUST.search(str(error))):
        number = int(found[1])
    if number is None:
        number = next((full for full in FULL if os.strerror(full) in str(error)), None)
    name = getattr(error, "filename", None)
    if number is None or (name is None and number not in ADVICE):
        return None
    advice = ADVICE.get(number, "check the path")
    return f"{'' if name is None else f'{str(name)!r}: '}{os.strerror(number)}: {advice}"
