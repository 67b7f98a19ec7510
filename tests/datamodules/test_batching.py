"""The order of batches is a permutation, reproducible, and wastes little."""

import numpy as np
import pytest
import torch

from datamodules.batching import BatchDataset, BatchLoader, BatchOrder, PackedRows, batch_order, collate
from mhc.errors import UserError

LENGTHS = np.random.default_rng(0).integers(1, 400, size=1003).tolist()


def test_every_row_once_and_a_pure_function_of_seed_and_epoch():
    batches = batch_order(LENGTHS, 8, seed=1, epoch=2)
    assert sorted(row for batch in batches for row in batch) == list(range(1003))
    assert sorted(map(len, batches)) == [3] + [8] * 125
    assert batches == batch_order(LENGTHS, 8, seed=1, epoch=2)
    assert batches != batch_order(LENGTHS, 8, seed=1, epoch=3)
    assert batches != batch_order(LENGTHS, 8, seed=2, epoch=2)


def test_rows_of_a_batch_have_about_one_length():
    batches = batch_order(LENGTHS, 8, seed=0, epoch=0)
    padded = sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in batches)
    assert padded < 1.05 * sum(LENGTHS)
    longest = [max(LENGTHS[row] for row in batch) for batch in batches]
    assert np.corrcoef(longest[:-1], longest[1:])[0, 1] < 0.3  # and yet the batches are shuffled


def test_order_follows_the_epoch_unless_fixed():
    order, fixed = BatchOrder(LENGTHS, 8, 0), BatchOrder(LENGTHS, 8, 0, fixed=True)
    before, same = list(order), list(fixed)
    order.set_epoch(1)
    fixed.set_epoch(1)
    assert list(order) != before and list(fixed) == same and len(order) == len(before) == 126


def row(*ids):
    return np.array(ids, dtype=np.int32), np.array([i % 2 == 0 for i in ids])


def test_collate_pads_right_and_never_supervises_padding():
    batch = collate([row(1, 2), row(4, 5, 6)], pad_id=8)
    assert batch["ids"].tolist() == [[1, 2, 8], [4, 5, 6]] and batch["ids"].dtype == torch.int64
    assert batch["mask"].tolist() == [[False, True, False], [True, False, True]]


def packed(rows, length, pad_id=0):
    return PackedRows(rows, [len(ids) for ids, _ in rows], length, seed=0, pad_id=pad_id)


def test_packing_keeps_rows_whole_and_fills_up():
    rows = [row(*range(100 * i, 100 * i + 3 + i % 9)) for i in range(1, 2000)]
    joined = packed(rows, 64, pad_id=99_999)
    assert {len(ids) for ids, _, _ in joined} == {64}
    text = np.concatenate([ids for ids, _, _ in joined])
    mask = np.concatenate([mask for _, mask, _ in joined])
    segments = np.concatenate([segments for _, _, segments in joined])
    for ids, row_mask in rows:  # each row once, in one piece, inside one packed row, as a segment of its own
        (at,) = np.flatnonzero(text == ids[0])
        here = slice(at, at + len(ids))
        assert (text[here] == ids).all() and at // 64 == (at + len(ids) - 1) // 64
        assert not mask[at] and (mask[here][1:] == row_mask[1:]).all()  # the first token is predicted by nothing
        (segment,) = set(segments[here])
        assert (segments[at // 64 * 64 : at // 64 * 64 + 64] == segment).sum() == len(ids)
    assert ((segments == -1) == (text == 99_999)).all() and not mask[segments == -1].any()
    assert (text == 99_999).mean() == pytest.approx(1 - joined.real_share) and joined.real_share > 0.95


def test_packing_cuts_what_is_too_long_and_takes_nothing():
    ((ids, mask, segments),) = packed([row(*range(20))], 16)
    assert ids.tolist() == list(range(16)) and len(mask) == 16 and set(segments) == {0}
    assert len(packed([], 16)) == 0


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_batches_that_one_would_have(world):
    for epoch in (0, 1):
        orders = [BatchOrder(LENGTHS, 12, 5, rank=rank, world=world) for rank in range(world)]
        for order in orders:
            order.set_epoch(epoch)
        shares = list(zip(*orders, strict=True))  # none has more than another
        for batch, parts in zip(batch_order(LENGTHS, 12, 5, epoch), shares, strict=True):
            assert list(parts) == [batch[rank::world] for rank in range(world)]


def test_a_process_without_a_row_gets_a_dummy():
    rows = [row(1, 2, 3, 4)] * 9
    short = [list(BatchOrder([4] * 9, 4, 0, rank=rank, world=4)) for rank in range(4)]
    assert sorted(len(share[at]) for share in short for at in range(3)).count(0) == 3
    for parts in (rows, packed(rows, 8, pad_id=7)):
        batch = BatchDataset(parts, 7)[[]]
        assert batch["ids"].tolist() == [[7] * 3] and not batch["mask"].any()
        assert batch.keys() == BatchDataset(parts, 7)[[0]].keys()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_goes_on_behind_what_was_trained_on(workers):
    rows = [row(i, i + 1) for i in range(40)]

    def loader(seed=3):
        return BatchLoader(BatchDataset(rows, 0), BatchOrder([2] * 40, 4, seed), workers, trained=lambda: 3)

    whole = [batch["ids"].tolist() for batch in loader()]
    stopped = loader()
    handed_out = iter(stopped)
    for _ in range(5):  # of which three were trained on
        next(handed_out)
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert [batch["ids"].tolist() for batch in resumed] == whole[3:] and len(resumed) == 10
    assert [batch["ids"].tolist() for batch in resumed] == whole  # the next pass is a whole one
    with pytest.raises(UserError, match=r"data\.seed: 3, now 4"):
        loader(seed=4).load_state_dict(stopped.state_dict())
