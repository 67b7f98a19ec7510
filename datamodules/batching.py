"""The order of rows in batches, rows packed into full ones, and rows as tensors.

    B rows of a batch   T time   R rows   W processes

A *global batch* is what all processes train on in one step, B rows of each. The order of an epoch is a pure function of
its seed, its number and the size of a global batch, so W processes see the rows that one process with W times the batch
size would see, step by step.
"""

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, Dataset, Sampler

from mhc.backbone.packing import PADDING
from mhc.errors import UserError
from mhc.text.splits import SPLITS

DUMMY = 3  # tokens of the row that a process gets where the last global batch has none for it
OPEN = 48  # rows being filled at a time when packing
WINDOW = 64  # batches: rows are sorted by length inside a shuffled window of this many

Lengths = Sequence[int] | np.ndarray  # (R,) tokens of each row
Row = tuple[np.ndarray, ...]  # ids (T) int32, mask (T) bool; of packed rows the segments (T) int32 as well


def batch_order(lengths: Lengths, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Row numbers batch by batch, each row once; one batch may be short.

    A pure function of its arguments: rows are shuffled, sorted by length inside windows so that a batch holds
    rows of about one length, and the batches are shuffled again.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths))
    sizes = np.asarray(lengths)
    batches: list[list[int]] = []
    for start in range(0, len(shuffled), WINDOW * batch_size):
        window = shuffled[start : start + WINDOW * batch_size]
        window = window[np.argsort(sizes[window], kind="stable")]
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
    """Yields the row numbers of whole batches, in a new order every epoch unless it is `fixed`.

    `batch_size` rows make a global batch; of each this process, number `rank` of `world`, gets every world-th row, which
    in a short batch may be none. No process has more batches than another.
    """

    def __init__(
        self, lengths: Lengths, batch_size: int, seed: int, fixed: bool = False, rank: int = 0, world: int = 1
    ):
        self.lengths, self.batch_size, self.seed = lengths, batch_size, seed
        self.rank, self.world = rank, world
        self.fixed, self.epoch = fixed, 0
        self.skip = 0  # batches of the next pass that were trained on already

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of this epoch; Lightning calls it before every epoch."""
        self.epoch = 0 if self.fixed else epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        skipped, self.skip = self.skip, 0  # at the first batch: loaders with workers make two iterators and use one
        for batch in batch_order(self.lengths, self.batch_size, self.seed, self.epoch)[skipped:]:
            yield batch[self.rank :: self.world]

    def decided_by(self) -> dict[str, Any]:
        """What an epoch's batches depend on, for a run that resumes in the middle of one."""
        lengths = np.ascontiguousarray(self.lengths, np.int64)
        return {
            "rows": len(lengths),
            "their lengths": hashlib.sha256(lengths.data).hexdigest()[:16],
            "rows of a global batch": self.batch_size,
            "data.seed": self.seed,
        }


class BatchLoader(DataLoader):
    """Batches in the order of a BatchOrder, from any number of worker processes.

    Its state, which Lightning keeps in checkpoints, is how many batches of the epoch were trained on, not how many were
    handed out: a run that resumes from it gets the very next one. trained: returns that number.
    """

    def __init__(self, dataset: Dataset, sampler: BatchOrder, num_workers: int = 0, trained: Callable[[], int] = int):
        super().__init__(
            dataset,
            sampler=sampler,
            batch_size=None,  # the sampler yields whole batches
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
        )
        self.order, self.trained = sampler, trained

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:  # type: ignore[override]  # torch names a private class
        yield from super().__iter__()  # not before the first batch is asked for: then epoch and place are known

    def state_dict(self) -> dict[str, Any]:
        return {"trained": self.trained(), **self.order.decided_by()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume where `state` was taken. Raises UserError where the batches would not be the same ones."""
        for what, current in self.order.decided_by().items():
            if state[what] != current:
                raise UserError(
                    f"the checkpoint was trained on other batches ({what}: {state[what]}, now {current}): resume with the same "
                    "data and data.seed, and with a data.batch_size that times the processes makes the same global batch"
                )
        self.order.skip = state["trained"]


class BatchData(LightningDataModule):
    """A data module with one loader for each of "train", "validation" and "test", shared out over the processes.

    `batch_size` is rows per process and step; `seed` decides the order; `workers` processes make the batches.
    """

    batch_size: int
    seed: int
    workers: int

    @abstractmethod
    def batches(self, split: str) -> tuple[Dataset, Lengths]:
        """A dataset that is indexed with a list of row numbers ([] gives a dummy row), and the rows' lengths."""

    @abstractmethod
    def nothing_to_train_on(self) -> str:
        """What a UserError says where the training split is empty."""

    def setup(self, stage: str | None = None) -> None:
        """Read, split and encode what `stage` (fit, validate, test; None is all) needs; once."""
        for split in {"fit": SPLITS[:2], "validate": SPLITS[1:2], "test": SPLITS[2:]}.get(stage or "", SPLITS):
            self.batches(split)

    def train_dataloader(self) -> BatchLoader:
        """Batches in an order that is a pure function of (seed, epoch, size of a global batch)."""
        if not len(self.batches("train")[1]):
            raise UserError(self.nothing_to_train_on())
        return self.loader("train")

    def val_dataloader(self) -> BatchLoader:
        """The validation split in a fixed order."""
        return self.loader("validation")

    def test_dataloader(self) -> BatchLoader:
        """The test split in a fixed order."""
        return self.loader("test")

    def loader(self, split: str) -> BatchLoader:
        """This process's share of the batches, of the training split in a new order every epoch."""
        dataset, lengths = self.batches(split)
        rank, world = (0, 1) if self.trainer is None else (self.trainer.global_rank, self.trainer.world_size)
        order = BatchOrder(lengths, self.batch_size * world, self.seed, split != "train", rank, world)
        return BatchLoader(dataset, order, self.workers, self._trained)

    def _trained(self) -> int:
        """Batches of the epoch that are trained on; 0 at its end, for then a whole one follows."""
        assert self.trainer is not None  # which saves the loader's state
        progress: Any = self.trainer.fit_loop.epoch_loop.batch_progress
        return progress.current.processed % self.trainer.num_training_batches

    def train_batches(self) -> int:
        """The number of global batches of a training epoch."""
        world = 1 if self.trainer is None else self.trainer.world_size
        return -(-len(self.batches("train")[1]) // (self.batch_size * world))


class BatchDataset(Dataset):
    """Indexed with a list of row numbers, gives the collated batch (for a loader with batch_size=None). Where there is none,
    a dummy row that nothing is learned from: every process takes part in every step."""

    def __init__(self, rows: Sequence[Row], pad_id: int):
        self.rows, self.pad_id = rows, pad_id

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, numbers: list[int]) -> dict[str, torch.Tensor]:
        return collate([self.rows[i] for i in numbers] or [self._dummy()], self.pad_id)

    def _dummy(self) -> Row:
        parts = len(self.rows[0])
        return (np.full(DUMMY, self.pad_id, np.int32), np.zeros(DUMMY, bool), np.zeros(DUMMY, np.int32))[:parts]


class PackedRows(Sequence[Row]):
    """Whole rows side by side in new rows of exactly `length` tokens, padded (unsupervised) at the end.

    Each row, in a shuffled order, goes into the fullest open row that still has room for it; of rows longer than `length`
    the end is cut. Less than a percent of the tokens is padding where rows are short. The first token of each is
    predicted by nothing, so it is no target.
    """

    def __init__(self, rows: Sequence[Row], lengths: Lengths, length: int, seed: int, pad_id: int = 0):
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

    def __getitem__(self, number: int) -> Row:  # type: ignore[override]  # no slices
        ids, mask = np.full(self.length, self.pad_id, np.int32), np.zeros(self.length, bool)
        segments, start = np.full(self.length, PADDING, np.int32), 0
        for segment, row in enumerate(self.bins[number]):
            row_ids, row_mask = (values[: self.length] for values in self.rows[row])
            part = slice(start, start + len(row_ids))
            ids[part], mask[part], segments[part] = row_ids, row_mask, segment
            mask[start] = False
            start += len(row_ids)
        return ids, mask, segments
