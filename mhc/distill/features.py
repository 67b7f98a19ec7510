"""What `run.py collect` does: features of the data into a folder of shards; complete shards stay as they are.

B rows of a batch   T positions of a row   P positions of a shard   D width   n tapped layers
"""

import hashlib
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from mhc.backbone.model import Backbone
from mhc.distill.feature_pass import compute_features
from mhc.distill.shards import (
    FORMAT,
    MANIFEST,
    PROMPTS,
    STORES,
    bytes_of,
    bytes_per_position,
    check_shard,
    collection_of,
    read_manifest,
    write_shard,
)
from mhc.distill.windows import Shard, choose, most_heads, plan, windows_of
from mhc.errors import UserError
from mhc.text.splits import SPLITS
from mhc.util.files import write_json
from mhc.util.manifest import require_same_settings
from mhc.util.progress import bar, say
from mhc.util.provenance import versions

PROMPT_COUNT = 512  # of each held-out split, at most


def collect(backbone: Backbone, data: Any, out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Fill the folder `out` as `settings` say with every shard that is not there, whole, yet; returns the manifest.

    data: has rows(split) of (ids, mask) and prompts(split, count), as ConversationData. Raises UserError where the folder
    holds something else or was filled under other settings, and where the disk is too small; nothing is written then.
    """
    windows_by_split: dict[str, list[Any]] = {}
    digest = hashlib.sha256()
    for split in SPLITS:
        windows_by_split[split] = []
        for number, (ids, mask, *_) in enumerate(data.rows(split)):
            digest.update(split.encode() + ids.tobytes() + mask.tobytes())
            windows_by_split[split].append(windows_of(number, mask, settings["sample_size"], settings["stride"]))
    settings = settings | {"rows": digest.hexdigest()[:16]}
    per_position = bytes_per_position(settings["width"], len(settings["taps"]), settings["store"])

    def planned(most: int | None) -> list[Shard]:
        return plan(choose(windows_by_split, most), per_position, settings["shard_mib"] << 20)

    shards = planned(settings["max_samples"])
    manifest = _manifest(settings, shards, backbone)
    before = _previous(out, settings)
    notes = {} if before is None else _whole(out, manifest["collection"], shards)
    missing = [shard for shard in shards if shard.name not in notes]
    if missing:
        _require_room(out, missing, settings, per_position, planned)
    if before is None:
        write_json(out / MANIFEST, manifest)
    for shard in missing:
        for half in out.glob(f"{shard.name}.*"):
            half.unlink()
    if not (out / PROMPTS).exists():
        held_out = {split: data.prompts(split, PROMPT_COUNT) for split in SPLITS[1:]}
        write_json(out / PROMPTS, {split: [asdict(prompt) for prompt in some] for split, some in held_out.items()})
    filled = _fill(backbone, data, out, shards, notes, manifest)
    supervised, agreed, size = (sum(note[name] for note in filled) for name in ("supervised", "agreed", "bytes"))
    figures = {"supervised": supervised, "agreement": round(agreed / max(1, supervised), 6), "bytes": size}
    manifest = (before or manifest) | figures | {"complete": True}
    write_json(out / MANIFEST, manifest)
    return manifest


# -- the folder ------------------------------------------------------------------------------------


def _manifest(settings: dict[str, Any], shards: list[Shard], backbone: Backbone) -> dict[str, Any]:
    """What the folder says about itself before anything is in it."""
    splits = {}
    for split in SPLITS:
        windows = [window for shard in shards if shard.split == split for window in shard.windows]
        splits[split] = {
            "rows": len({window.row for window in windows}),
            "samples": len(windows),
            "positions": sum(window.stop - window.start for window in windows),
            "shards": sum(shard.split == split for shard in shards),
        }
    uncut = all(
        window.start == 0 == window.first and window.stop == window.last for s in shards for window in s.windows
    )
    return {
        "format": FORMAT,
        "collection": collection_of(settings),
        "settings": settings,
        "splits": splits,
        "most_heads": None if uncut else most_heads(settings["sample_size"], settings["stride"]),
        "pad_id": backbone.tokenizer.pad_token_id or 0,
        "versions": versions(),
        "complete": False,
    }


def _previous(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest that is there already. Raises UserError where it was made otherwise, or `out` is something else."""
    if not out.exists() or (out.is_dir() and all(path.suffix == ".writing" for path in out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise UserError(f"'{out}' exists and holds no collected features: choose another --out")
    before = read_manifest(out)
    require_same_settings(out, before["settings"], settings)
    return before


def _whole(out: Path, collection: str, shards: list[Shard]) -> dict[str, dict[str, Any]]:
    """By name, the notes (see `write_shard`) of the shards that are complete."""
    notes = {}
    with bar() as progress:
        for shard in progress.track(shards, description="verifying what is there"):
            try:
                notes[shard.name] = check_shard(out, shard.name, collection)
            except UserError:
                continue  # missing, half written or damaged: it is made again
    return notes


def _require_room(
    out: Path,
    missing: list[Shard],
    settings: dict[str, Any],
    per_position: int,
    planned: Callable[[int | None], list[Shard]],
) -> None:
    """Print what will be written and what there is room for; raise UserError where it is not enough."""
    folder = out.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    samples, positions = sum(len(shard.windows) for shard in missing), sum(shard.positions for shard in missing)
    needed = sum(bytes_of(shard, per_position) for shard in missing)
    states, numbers = 1 + len(settings["taps"]), STORES[settings["store"]].itemsize
    say(
        f"{samples:,} samples in {len(missing)} shards to be written: {positions:,} positions x {per_position:,} bytes "
        f"({states} x {settings['width']} numbers of {numbers} bytes, and 9) = {in_bytes(needed)}; {in_bytes(free)} free"
    )
    if needed <= free:
        return
    most = int(samples * free / needed)
    while most > 2 and sum(bytes_of(shard, per_position) for shard in planned(most)) > free:
        most = min(most - 1, int(0.98 * most))
    advice = f"--max_samples {most} would fit (in a folder of its own)" if most > 2 else "not even three samples fit"
    raise UserError(
        f"{in_bytes(needed)} are needed in '{folder}' and {in_bytes(free)} are free: {advice}, or choose another disk"
    )


def _fill(
    backbone: Backbone, data: Any, out: Path, shards: list[Shard], notes: dict[str, dict], manifest: dict[str, Any]
) -> list[dict[str, Any]]:
    """Make the shards that have no note yet, with a progress bar; the notes of all shards."""
    settings = manifest["settings"]
    rows = {split: data.rows(split) for split in SPLITS}
    missing = [shard for shard in shards if shard.name not in notes]
    total = sum(len(rows[shard.split][row][0]) for shard in missing for row in {window.row for window in shard.windows})
    done, started = 0, time.perf_counter()
    columns = TextColumn("collecting"), BarColumn(), TextColumn("{task.percentage:.0f}%  {task.fields[rate]}")
    with bar(*columns, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=total, rate="")

        def advance(count: int) -> None:
            nonlocal done
            done += count
            rate = f"{done / (time.perf_counter() - started):,.0f} positions/s"
            progress.update(task, completed=done, rate=rate)

        for shard in missing:
            tensors, figures = compute_features(backbone, rows[shard.split], shard.windows, settings, advance)
            about = {
                "collection": manifest["collection"],
                "split": shard.split,
                "rows": [shard.windows[0].row, shard.windows[-1].row],  # the first and the last
                "figures": figures,
                "settings": settings,
            }
            notes[shard.name] = write_shard(out, shard, tensors, about)
    return [notes[shard.name] for shard in shards]


# -- words -----------------------------------------------------------------------------------------


def in_bytes(count: float) -> str:
    """A number of bytes as people read it."""
    if count < 1024:
        return f"{count:.0f} bytes"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:,.1f} {unit}"
    return f"{count / 1024:,.1f} TiB"
