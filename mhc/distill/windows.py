"""Long rows cut into overlapping windows (the samples of a shard), of which each position counts in exactly one.

A window holds at most `size` positions and starts `stride` after the one before. It counts those from start + lead to
start + lead + stride, lead = (size - stride) // 2: so everything that counts sees at least `lead` positions to its left,
and the tokens that heads there are asked for lie in the window as well. The first window of a row counts from the row's
start, the last one to its end.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Window(NamedTuple):
    """Positions start to stop of row `row`, of which first to last count (all in the row's own numbering)."""

    row: int
    start: int
    stop: int
    first: int
    last: int


@dataclass(frozen=True)
class Shard:
    """Windows that are kept in one file; all of a row's lie in one."""

    split: str
    number: int
    windows: list[Window]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    @property
    def positions(self) -> int:
        return sum(window.stop - window.start for window in self.windows)


def lead_of(size: int, stride: int) -> int:
    """Positions to the left that a counted one sees at least."""
    return (size - stride) // 2


def most_heads(size: int, stride: int) -> int:
    """How many heads find all their targets (t+2 to t+1+K) in the window, from any position that counts."""
    return size - stride - lead_of(size, stride) - 1


def cut(row: int, length: int, size: int, stride: int) -> list[Window]:
    """The windows of one row. The last one ends with the row; it may be shorter than `size`, but starts early enough to
    have half of it."""
    if length <= size:
        return [Window(row, 0, length, 0, length)]
    lead, windows = lead_of(size, stride), []
    for start in range(0, length - size + stride, stride):
        first = start + lead if start else 0
        windows.append(Window(row, start, start + size, first, start + lead + stride))
    start = min(windows[-1].start, length - (size + 1) // 2)
    windows[-1] = windows[-1]._replace(start=start, stop=length, last=length)
    return windows


def windows_of(row: int, mask: np.ndarray, size: int, stride: int) -> list[Window]:
    """The windows of a row with mask (T) that hold something to learn where they count."""
    windows = cut(row, len(mask), size, stride)
    return [window for window in windows if mask[window.first : window.last + 2].any()]


def choose(splits: dict[str, list[list[Window]]], most: int | None) -> dict[str, list[list[Window]]]:
    """At most `most` windows in all, each split keeping its share: whole rows in a drawn (but always the same) order, in
    their old order again; the last row drawn may lose some. splits: by name, the windows of each row."""
    counts = {name: sum(map(len, rows)) for name, rows in splits.items()}
    total = sum(counts.values())
    if most is None or total <= most:
        return splits
    held_out = [name for name in splits if name != "train"]
    shares = {name: min(counts[name], max(1, most * counts[name] // total)) for name in held_out}
    shares["train"] = most - sum(shares.values())
    return {name: _some(rows, shares[name]) for name, rows in splits.items()}


def _some(rows: list[list[Window]], most: int) -> list[list[Window]]:
    chosen = []
    for number in np.random.default_rng(0).permutation(len(rows)).tolist():
        if most <= 0:
            break
        chosen.append((number, rows[number][:most]))
        most -= len(rows[number])
    return [windows for _, windows in sorted(chosen)]


def plan(splits: dict[str, list[list[Window]]], per_position: int, shard_bytes: int) -> list[Shard]:
    """Rows dealt out to shards in order, each shard at most `shard_bytes` (or a single row)."""
    shards: list[Shard] = []
    for split, rows in splits.items():
        first = len(shards)
        windows: list[Window] = []
        size = 0
        for row in rows:
            more = per_position * sum(window.stop - window.start for window in row)
            if windows and size + more > shard_bytes:
                shards.append(Shard(split, len(shards) - first, windows))
                windows, size = [], 0
            windows.extend(row)
            size += more
        if windows:
            shards.append(Shard(split, len(shards) - first, windows))
    return shards
