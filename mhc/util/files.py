"""Files that are whole or not there."""

import json
import os
from pathlib import Path
from typing import Any

from mhc.errors import UserError


def write_atomically(path: Path, write, keep: Path | None = None) -> None:
    """Call write(temporary path) beside `path`, then rename: a reader sees the old file or the new, even if the process is
    killed or the disk fills up. keep: where the old file goes, if there is one; it is always there under one of the two names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    temporary.unlink(missing_ok=True)  # what was half written, or a link to elsewhere
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if keep is not None and path.exists():
            os.replace(path, keep)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name, too, outlives a power failure
    finally:
        os.close(folder)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(
        path, lambda at: at.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object that a run wrote, empty where there is no such file. Raises UserError for a damaged one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' is damaged ({error}): delete it or make it again") from error
    if not isinstance(value, dict):
        raise UserError(f"'{path}' is damaged (no object): delete it or make it again")
    return value
