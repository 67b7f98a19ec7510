"""The order of rows in batches, rows packed into full ones, and rows as tensors.

B rows of a batch   T time   R rows
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from mhc.packing import PADDING

OPEN = 48  # rows being filled at a time when packing
WINDOW = 64  # batches: rows are sorted by length inside a shuffled window of this many

Row = tuple[np.ndarray, ...]  # ids (T) int32, mask (T) bool; of packed rows the segments (T) int32 as well


def batch_order(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers batch by batch, each row once; one batch may be short.

    A pure function of its arguments: rows are shuffled, sorted by length inside windows so that a batch holds
    rows of about one length, and the batches are shuffled again.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths))
    lengths = np.asarray(lengths)
    batches = []
    for start in range(0, len(shuffled), WINDOW * batch_size):
        window = shuffled[start : start + WINDOW * batch_size]
        window = window[np.argsort(lengths[window], kind="stable")]
        batches += [window[i : i + batch_size].tolist() for i in range(0, len(window), batch_size)]
    return [batches[i] for i in generator.permutation(len(batches))]


def collate(rows: list[Row], pad_id: int) -> dict[str, torch.Tensor]:
    """{"ids": (B,T) int64, "mask": (B,T) bool} and, of packed rows, "segments" (B,T); right padded to the longest row,
    padding unsupervised."""
    shape = len(rows), max(len(row[0]) for row in rows)
    batch = {
        "ids": torch.full(shape, pad_id, dtype=torch.int64),
        "mask": torch.zeros(shape, dtype=torch.bool),
        "segments": torch.full(shape, PADDING, dtype=torch.int64),
    }
    batch = dict(list(batch.items())[: len(rows[0])])
    for i, row in enumerate(rows):
        for whole, part in zip(batch.values(), row):
            whole[i, : len(part)] = torch.from_numpy(np.array(part))  # a copy: what is mapped cannot be written
    return batch


class BatchOrder(Sampler[list[int]]):
    """Yields whole batches of row numbers, in a new order every epoch unless it is `fixed`."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, fixed: bool = False):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.fixed, self.epoch = fixed, 0
        self.skip = 0  # batches of the next pass that were had already

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it before every epoch."""
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        skipped, self.skip = self.skip, 0  # at the first batch: loaders with workers make two iterators and use one
        yield from batch_order(self.lengths, self.batch_size, self.seed, self.epoch)[skipped:]


class BatchLoader(DataLoader):
    """Batches in the order of a BatchOrder, from any number of worker processes.

    Its state is how many batches of the epoch it has handed out; a loader that goes on from it gives the very next one.
    (Workers read ahead; what they read and nobody was handed is read again.)
    """

    def __init__(self, dataset: Dataset, sampler: BatchOrder, num_workers: int = 0):
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        self.handed_out = 0

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        self.handed_out = self.sampler.skip
        for batch in super().__iter__():
            self.handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"handed_out": self.handed_out}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sampler.skip = state["handed_out"] % max(1, len(self))  # after the last one comes a whole pass


class ResumableData(LightningDataModule):
    """A data module whose place in the training data is saved with a checkpoint.

    (Lightning saves the state of loaders itself, but restores it too late where a schedule asked for the number of steps.)
    """

    def __init__(self) -> None:
        super().__init__()
        self._train: BatchLoader | None = None
        self._place: dict[str, Any] | None = None

    def from_its_place(self, loader: BatchLoader) -> BatchLoader:
        """The loader of the training split, going on where the checkpoint was saved."""
        if self._place is not None:
            loader.load_state_dict(self._place)
            self._place = None
        self._train = loader
        return loader

    def state_dict(self) -> dict[str, Any]:
        return {} if self._train is None else self._train.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place = state or None


class BatchDataset(Dataset):
    """Indexed with a list of row numbers, gives the collated batch (for a loader with batch_size=None)."""

    def __init__(self, rows: Sequence[Row], pad_id: int):
        self.rows, self.pad_id = rows, pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        return collate([self.rows[i] for i in numbers], self.pad_id)


class PackedRows(Sequence[Row]):
    """Whole rows side by side in new rows of exactly `length` tokens, padded (unsupervised) at the end.

    Each row, in a shuffled order, goes into the fullest open row that still has room for it; of rows longer than `length`
    the end is cut. Less than a percent of the tokens is padding where rows are short. The first token of each is
    predicted by nothing, so it is no target.
    """

    def __init__(self, rows: Sequence[Row], lengths: Sequence[int], length: int, seed: int, pad_id: int = 0):
        self.rows, self.length, self.pad_id = rows, length, pad_id
        self.bins: list[list[int]] = []
        room: list[int] = []  # of the last OPEN bins
        for number in np.random.default_rng(seed).permutation(len(rows)).tolist():
            size = min(int(lengths[number]), length)
            fitting = [place for place in range(max(0, len(room) - OPEN), len(room)) if room[place] >= size]
            if fitting:
                place = min(fitting, key=room.__getitem__)
            else:
                place = len(room)
                self.bins.append([])
                room.append(length)
            self.bins[place].append(number)
            room[place] -= size
        self.real_share = 1 - sum(room) / max(1, len(room) * length)

    def __len__(self) -> int:
        return len(self.bins)

    def __getitem__(self, number: int) -> Row:
        ids, mask = np.full(self.length, self.pad_id, np.int32), np.zeros(self.length, bool)
        segments, at = np.full(self.length, PADDING, np.int32), 0
        for segment, row in enumerate(self.bins[number]):
            row_ids, row_mask = (part[: self.length] for part in self.rows[row])
            here = slice(at, at + len(row_ids))
            ids[here], mask[here], segments[here] = row_ids, row_mask, segment
            mask[at] = False
            at += len(row_ids)
        return ids, mask, segments
