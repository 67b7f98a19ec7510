"""The order of batches is a permutation, reproducible, and wastes little."""

import numpy as np
import torch

from datamodules.batching import BatchOrder, batch_order, collate, packed

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


def test_packing_keeps_rows_whole_and_fills_up():
    rows = [row(*range(100 * i, 100 * i + 3 + i % 9)) for i in range(1, 2000)]
    joined = packed(rows, 64, seed=0, pad_id=99_999)
    assert {len(ids) for ids, _ in joined} == {64}
    text = np.concatenate([ids for ids, _ in joined])
    mask = np.concatenate([mask for _, mask in joined])
    for ids, _ in rows:  # each row once, in one piece, inside one packed row
        (at,) = np.flatnonzero(text == ids[0])
        assert (text[at : at + len(ids)] == ids).all() and at // 64 == (at + len(ids) - 1) // 64
    assert (mask == (text % 2 == 0) & (text != 99_999)).all()
    assert (text == 99_999).mean() < 0.05


def test_packing_cuts_what_is_too_long_and_takes_nothing():
    ((ids, mask),) = packed([row(*range(20))], 16, seed=0)
    assert ids.tolist() == list(range(16)) and len(mask) == 16
    assert packed([], 16, seed=0) == []
