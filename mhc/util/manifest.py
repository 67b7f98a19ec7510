"""The settings that a file or folder of results was made with, so that a run resumes only what the same settings began."""

import json
from pathlib import Path
from typing import Any

from mhc.errors import UserError
from mhc.util.files import read_json, write_json


def require_same_settings(out: Path, earlier: dict[str, Any], settings: dict[str, Any]) -> None:
    """Raise UserError, naming each setting that differs with both its values, unless `out` was made with `settings`."""
    pairs = {name: (earlier.get(name), settings.get(name)) for name in [*settings, *earlier]}
    changed = [f"{name}: {before}, not {now}" for name, (before, now) in pairs.items() if before != now]
    if changed:
        raise UserError(
            f"'{out}' was made with other settings ({'; '.join(changed)}): choose another --out, or delete it"
        )


def open_settings(path: Path, out: Path, settings: dict[str, Any]) -> None:
    """Write the settings of a new folder `out` to the file `path` in it. Raises UserError where `out` was begun with
    others."""
    if path.exists():
        require_same_settings(out, read_json(path), settings)
    else:
        write_json(path, settings)


def open_manifest(path: Path, out: Path, partial: Path, settings: dict[str, Any], notes: dict[str, Any]) -> None:
    """Write the manifest of the file `out`, whose unfinished part is `partial`. notes: recorded too, may differ from run to
    run. Raises UserError where `out` was made with other settings or without a manifest, or cannot be written."""
    try:
        known = path.exists()
        begun = next((file for file in (out, partial) if file.exists() and file.stat().st_size), None)
    except OSError as problem:
        raise UserError(f"cannot use '{out}' ({problem.strerror}): choose another --out") from problem
    manifest: dict[str, Any] = {"settings": settings}
    if known:
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            earlier = dict(manifest["settings"])
        except (ValueError, KeyError, TypeError) as problem:
            raise UserError(
                f"'{path}' is damaged or was not written by this command: choose another --out"
            ) from problem
        require_same_settings(out, earlier, settings)
    elif begun is not None:
        raise UserError(f"'{begun}' has no {path.name} beside it, so its settings are not known: choose another --out")
    try:
        write_json(path, manifest | notes)
    except OSError as problem:
        raise UserError(f"cannot write '{path}' ({problem.strerror}): make room, or choose another --out") from problem
