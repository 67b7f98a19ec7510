"""The tree cache: static key/value buffers that a stock Hugging Face model writes into.

    L layers   B rows (sequences decoded together)   H key/value heads   S slots   E head width
    N tree nodes of one round   P nodes of an accepted path, padded

Slot s of a row holds position s of its committed text; a round writes its N tree nodes after
the committed part, and `commit` moves the accepted ones into place with a single gather and a
single write over all layers. Rows may have different lengths. Nothing is ever reallocated.
"""

import math
from collections.abc import Sequence

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from mhc.errors import UserError

Shape = tuple[int, int]  # H, E


class TreeLayer(CacheLayerMixin):
    """One layer's view of the shared buffers; `update` is what the model's attention calls."""

    keys: torch.Tensor
    values: torch.Tensor
    is_sliding = False  # windows are part of the mask, the buffers always hold every position

    def __init__(self, cache: "TreeCache", keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.cache, self.keys, self.values, self.is_initialized = cache, keys, values, True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the buffers exist from the start."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write T new entries after each active row's committed part: (B,H,T,E) -> (B,H,extent,E)."""
        return (
            self.cache.write(self.keys, key_states),
            self.cache.write(self.values, value_states),
        )

    def get_seq_length(self) -> int:
        return self.cache.max_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.extent(query_length), 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class TreeCache(Cache):
    """Buffers for `rows` sequences of at most `capacity` slots each.

    shapes: of each layer that keeps keys and values of its own, their heads and head width, ((H,E),(H,E)).
    `lengths` (list of int, one a row) counts committed positions. `set_active` selects the rows that
    the next forward serves (prefill works on the newest rows; `move` overwrites a finished one).
    bucket: attention then reads a multiple of `bucket` slots and lengths are read from the device, so that
    one compiled program or CUDA graph serves many lengths; without, it reads exactly the slots in use.
    `buffers`: keys and values of one shape lie together, (K,rows,H,capacity,E), so that all move at once.
    """

    def __init__(
        self,
        shapes: Sequence[tuple[Shape, Shape]],
        rows: int,
        capacity: int,
        dtype: torch.dtype,
        device: torch.device,
        bucket: int | None = None,
    ):
        if bucket is not None:
            capacity = -(-capacity // bucket) * bucket
        flat = [shape for both in shapes for shape in both]
        sizes = {shape: (flat.count(shape), rows, shape[0], capacity, shape[1]) for shape in flat}
        try:
            buffers = {shape: torch.zeros(size, dtype=dtype, device=device) for shape, size in sizes.items()}
        except RuntimeError as error:  # a CPU or a GPU without that much memory
            size = sum(map(math.prod, sizes.values())) * dtype.itemsize / 2**30
            raise UserError(
                f"a cache of {rows} rows of {capacity} positions takes {size:.1f} GiB, more than is free: "
                "use fewer rows (--batch_size, --rows) or shorter ones (--max_new_tokens, --context)"
            ) from error
        self.buffers = list(buffers.values())
        parts = {shape: iter(buffer) for shape, buffer in buffers.items()}
        super().__init__(layers=[TreeLayer(self, next(parts[keys]), next(parts[values])) for keys, values in shapes])
        self.lengths = [0] * rows
        self.capacity, self.bucket = capacity, bucket
        self._active: tuple[int, int, list[int]] | None = None  # arguments of the last `set_active`
        self._starts = torch.zeros(rows, dtype=torch.long, device=device)
        self._heads = {heads: torch.arange(heads, device=device)[None, :, None] for heads, _ in flat}
        self.set_active(0, rows)

    def set_active(self, first: int, last: int) -> None:
        """Serve rows first..last-1 in the following forwards."""
        active = self.lengths[first:last]
        if (first, last, active) == self._active:
            return
        self._active = first, last, active
        self.first, self.last = first, last
        self.max_length = max(active)
        self.uniform = min(active) == self.max_length and (self.bucket is None or not self.max_length)
        if not self.uniform:
            self.starts = self._starts[first:last]  # (B,)
            self.starts.copy_(torch.tensor(active))

    def plan_forward(self, count: int) -> None:
        """Prepare a forward of `count` entries a row. (Done beforehand, so that a compiled forward depends on
        how far it reads, not on every length, and so that all layers share the indices they write to.)"""
        self.visible = self.extent(count)
        if not self.uniform:
            row, step = (torch.arange(size, device=self.starts.device) for size in (len(self.starts), count))
            self.slots = row[:, None, None], (self.starts[:, None] + step)[:, None]

    def extent(self, count: int) -> int:
        """Slots that attention reads in a forward of `count` new entries a row."""
        if self.uniform or self.bucket is None:
            return self.max_length + count
        return -(-(self.max_length + count) // self.bucket) * self.bucket

    @property
    def start(self) -> int | torch.Tensor:
        """Committed positions: one number for all active rows, or one each (B,)."""
        return self.max_length if self.uniform else self.starts

    def write(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Write (B,H,T,E) after the committed part and return all slots that may be attended to."""
        count = states.shape[2]
        rows = buffer[self.first : self.last]
        if self.uniform:
            rows[:, :, self.max_length : self.max_length + count] = states
        else:
            row, slot = self.slots
            # not scatter_, which copies the whole buffer once compiled
            rows.index_put_((row, self._heads[states.shape[1]], slot), states)
        return rows[:, :, : self.visible]

    def commit(self, path: torch.Tensor) -> None:
        """Move the nodes of path (B,P), written last round, to the end of the committed text.

        `advance` then decides how many of them count; the rest lies beyond the new length, where the
        next round overwrites it. Padded entries of `path` must name some node of the round.
        """
        depth = path.shape[1]
        if depth == 1:
            return  # the root is in place already
        for buffer in self.buffers:
            rows = buffer[:, self.first : self.last]
            shape = (*rows.shape[:3], depth, rows.shape[4])
            if self.uniform:
                start = self.max_length
                if rows.shape[1] == 1:
                    moved = rows.index_select(3, path[0] + start)
                else:
                    moved = rows.gather(3, (path + start)[None, :, None, :, None].expand(shape))
                rows[..., start : start + depth, :] = moved
            else:
                source = (path + self.starts[:, None])[None, :, None, :, None].expand(shape)
                steps = torch.arange(depth, device=path.device)
                target = (self.starts[:, None] + steps)[None, :, None, :, None].expand(shape)
                rows.scatter_(3, target, rows.gather(3, source))

    def advance(self, counts: list[int]) -> None:
        """Count the first counts[b] entries after row b's committed part as committed."""
        for row, count in enumerate(counts, self.first):
            self.lengths[row] += count
        self.set_active(self.first, self.last)

    def clear(self, row: int) -> None:
        """Empty a row, so that another prompt can use it."""
        self.lengths[row] = 0

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target` (a finished one), so that active rows stay contiguous."""
        filled = self.lengths[source]
        for buffer in self.buffers:
            buffer[:, target, :, :filled] = buffer[:, source, :, :filled]
        self.lengths[target] = filled
