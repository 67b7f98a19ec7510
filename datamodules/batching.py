"""The order of rows in batches, and rows as tensors (B batch, T time)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

OPEN = 48  # rows being filled at a time when packing
WINDOW = 64  # batches: rows are sorted by length inside a shuffled window of this many

Row = tuple[np.ndarray, np.ndarray]  # ids (T) int32, mask (T) bool


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
    """{"ids": (B,T) int64, "mask": (B,T) bool}, right padded to the longest row, padding unsupervised."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (row_ids, row_mask) in enumerate(rows):
        ids[i, : len(row_ids)] = torch.from_numpy(row_ids)
        mask[i, : len(row_mask)] = torch.from_numpy(row_mask)
    return {"ids": ids, "mask": mask}


class BatchOrder(Sampler[list[int]]):
    """Yields whole batches of row numbers, in a new order every epoch unless it is `fixed`."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int, fixed: bool = False):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.fixed, self.epoch = fixed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it before every epoch."""
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(batch_order(self.lengths, self.batch_size, self.seed, self.epoch))


class BatchDataset(Dataset):
    """Indexed with a list of row numbers, gives the collated batch (for a loader with batch_size=None)."""

    def __init__(self, rows: list[Row], pad_id: int):
        self.rows, self.pad_id = rows, pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        return collate([self.rows[i] for i in numbers], self.pad_id)


def packed(rows: list[Row], length: int, seed: int, pad_id: int = 0) -> list[Row]:
    """Whole rows side by side in new rows of exactly `length` tokens, padded (unsupervised) at the end.

    Each row, in a shuffled order, goes into the fullest open row that still has room for it; of rows
    longer than `length` the end is cut. A few percent of the tokens are padding.
    """
    bins: list[list[int]] = []
    room: list[int] = []  # of the last OPEN bins
    for number in np.random.default_rng(seed).permutation(len(rows)).tolist():
        size = min(len(rows[number][0]), length)
        fitting = [place for place in range(max(0, len(bins) - OPEN), len(bins)) if room[place] >= size]
        if fitting:
            place = min(fitting, key=room.__getitem__)
        else:
            place = len(bins)
            bins.append([])
            room.append(length)
        bins[place].append(number)
        room[place] -= size
    joined = []
    for numbers, rest in zip(bins, room):
        ids = np.concatenate([*(rows[n][0][:length] for n in numbers), np.full(rest, pad_id, np.int32)])
        mask = np.concatenate([*(rows[n][1][:length] for n in numbers), np.zeros(rest, bool)])
        joined.append((ids, mask))
    return joined
