"""Files that are whole or not there."""

import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write) -> None:
    """Call write(temporary path) beside `path`, then rename: a reader sees the old file or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".writing")
    write(temporary)
    with open(temporary, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_atomically(path, lambda at: at.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n"))
