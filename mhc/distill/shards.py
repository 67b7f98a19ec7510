"""Collected features on disk: samples side by side in safetensors shards, each with its sha256.

    S samples of a shard   P their positions, one sample after another   D width   n tapped layers

    manifest.json            what was collected, from what and how; `complete` once every shard is there
    train-00000.safetensors  hidden (P,D), taps (P,n*D) where layers were tapped, ids, greedy (P) int32, mask (P) bool,
                             offsets (S+1) int64: where samples begin; counted (S,2) int32: which of a sample's positions
                             count; rows (S,2) int32: its row of the split and where it starts in it
    train-00000.json         its sha256, written after it: a shard with this file is whole
    prompts.json             held-out prompts, for decoding while heads are trained

greedy[p] is the token that the backbone itself predicts after position p.
"""

import hashlib
import json
import struct
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mhc.distill.windows import Shard
from mhc.errors import UserError
from mhc.util.files import write_atomically, write_json

FORMAT = 1
MANIFEST, PROMPTS = "manifest.json", "prompts.json"
STORES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
NAMES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}  # as safetensors calls them
NAMES |= {torch.int32: "I32", torch.int64: "I64", torch.bool: "BOOL"}
AGAIN = "run the same `run.py collect` again: it makes only what is missing"
OPEN = 64  # shards held open at a time
HEADER = 4096  # bytes of a shard's header and of the file beside it, at most


def bytes_per_position(width: int, taps: int, store: str) -> int:
    """What one position takes: hidden state and taps, two ids, and whether it is supervised."""
    return width * (1 + taps) * STORES[store].itemsize + 4 + 4 + 1


def bytes_of(shard: Shard, per_position: int) -> int:
    """What a shard takes on disk, at most."""
    return shard.positions * per_position + 24 * len(shard.windows) + 8 + HEADER


def collection_of(settings: dict[str, Any]) -> str:
    """A name for what these settings make: shards of another collection do not belong beside them."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def write_shard(folder: Path, shard: Shard, tensors: dict[str, Tensor], about: dict[str, Any]) -> dict[str, Any]:
    """Write a shard, then the file beside it: the figures in `about`, the collection, size and sha256.

    Raises UserError where the disk is full; what was half written is gone then.
    """
    path, digest = folder / f"{shard.name}.safetensors", hashlib.sha256()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for part in _parts(tensors, {"collected": json.dumps(about, sort_keys=True)}):
                digest.update(part)
                file.write(part)

    try:
        write_atomically(path, write)
        figures = {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}
        note = about["figures"] | {"collection": about["collection"]} | figures
        write_json(path.with_suffix(".json"), note)
    except OSError as error:
        for half in folder.glob(f"{shard.name}.*.writing"):
            half.unlink()
        raise UserError(f"cannot write '{path}' ({error.strerror}): make room, then {AGAIN}") from error
    return note


def _parts(tensors: dict[str, Tensor], metadata: dict[str, str]) -> Iterator[Any]:
    """A safetensors file piece by piece. (Its own writer leaves a file of unknown name behind when it is killed, and
    writes metadata in any order.)"""
    names = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so that all are aligned
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name in names:
        tensor = tensors[name]
        header[name] = {
            "dtype": NAMES[tensor.dtype],
            "shape": [*tensor.shape],
            "data_offsets": [start, start + tensor.nbytes],
        }
        start += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    yield struct.pack("<Q", len(text)) + text
    for name in names:
        yield tensors[name].contiguous().flatten().view(torch.uint8).numpy().data


def check_shard(folder: Path, name: str, collection: str) -> dict[str, Any]:
    """What the file beside a shard says, if the shard is that very file and of this collection; else raises UserError."""
    path = folder / f"{name}.safetensors"
    try:
        note = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if note["collection"] != collection:
            raise UserError(f"'{path}' belongs to another collection: {AGAIN}")
        size, sha256 = note["bytes"], note["sha256"]
        with open(path, "rb") as file:
            if path.stat().st_size != size or hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise UserError(f"'{path}' is damaged (its sha256 is not the recorded one): {AGAIN}")
    except FileNotFoundError as error:
        raise UserError(f"'{error.filename}' is missing: {AGAIN}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"'{path.with_suffix('.json')}' or its shard cannot be read ({error!r}): {AGAIN}") from error
    return note


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder; raises UserError where `run.py collect` wrote none."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            raise UserError(
                f"'{path}' has format {manifest['format']}, but this version reads {FORMAT}: collect into another folder"
            )
        if collection_of(manifest["settings"]) != manifest["collection"]:
            raise UserError(f"'{path}' was changed by hand: restore it, or collect into another folder")
        return manifest
    except FileNotFoundError as error:
        raise UserError(
            f"no collected features in '{folder}' ({MANIFEST} is missing): `run.py collect` makes them"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"'{path}' is damaged ({error!r}): restore it, or delete the folder and collect again"
        ) from error


class FeatureShards:
    """The samples of one split, memory-mapped: `read` copies one of them, nothing else is held but where they lie.

    lengths (S,) in positions; counted (S,2). Any process may read; shards are opened when they are needed.
    """

    def __init__(self, folder: Path, names: list[str]):
        self.folder, self.names = folder, names
        self._handles: OrderedDict[int, Any] = OrderedDict()
        starts, lengths, counted, self._firsts = [], [], [], [0]
        for number in range(len(names)):
            handle = self._open(number)
            offsets = handle.get_tensor("offsets").numpy()
            starts.append(offsets[:-1])
            lengths.append(np.diff(offsets))
            counted.append(handle.get_tensor("counted").numpy())
            self._firsts.append(self._firsts[-1] + len(offsets) - 1)
        self._starts = np.concatenate(starts) if starts else np.zeros(0, np.int64)
        self.lengths = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
        self.counted = np.concatenate(counted) if counted else np.zeros((0, 2), np.int32)

    def __len__(self) -> int:
        return len(self.lengths)

    def read(self, sample: int, tensor: str) -> Tensor:
        """hidden, taps, ids, greedy or mask of one sample: (T, ...)"""
        shard = bisect_right(self._firsts, sample) - 1
        start = int(self._starts[sample])
        return self._open(shard).get_slice(tensor)[start : start + int(self.lengths[sample])]

    def row(self, sample: int) -> int:
        """Which row of the split a sample is, or is a part of."""
        shard = bisect_right(self._firsts, sample) - 1
        return int(self._open(shard).get_slice("rows")[sample - self._firsts[shard]][0])

    def each(self, *tensors: str) -> Iterator[tuple[Tensor, ...]]:
        """These tensors of every sample in turn, shard by shard."""
        for shard in range(len(self.names)):
            whole = [self._open(shard).get_tensor(name) for name in tensors]
            for sample in range(self._firsts[shard], self._firsts[shard + 1]):
                start = int(self._starts[sample])
                yield tuple(tensor[start : start + int(self.lengths[sample])] for tensor in whole)

    def _open(self, shard: int):
        handles = self._handles
        if shard not in handles:
            if len(handles) >= OPEN:
                handles.popitem(last=False)
            path = self.folder / f"{self.names[shard]}.safetensors"
            try:
                handles[shard] = safe_open(path, "pt")
            except (OSError, SafetensorError) as error:
                raise UserError(f"'{path}' cannot be read ({error}): {AGAIN}") from error
        handles.move_to_end(shard)
        return handles[shard]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_handles": OrderedDict()}


def open_shards(folder: Path, split: str, progress: Callable[[], None] = lambda: None) -> FeatureShards:
    """The samples of a split, every shard of it checked first (progress() is called after each)."""
    manifest = read_manifest(folder)
    if not manifest["complete"]:
        raise UserError(f"'{folder}' is not complete: {AGAIN}")
    names = [f"{split}-{number:05d}" for number in range(manifest["splits"][split]["shards"])]
    for name in names:
        check_shard(folder, name, manifest["collection"])
        progress()
    return FeatureShards(folder, names)
