"""The tree cache: static key/value buffers that a stock Hugging Face model writes into.

    L layers   B rows (sequences decoded together)   H key/value heads   S slots   E head width
    N tree nodes of one round   P nodes of an accepted path, padded

Slot s of a row holds position s of its committed text; a round writes its N tree nodes behind
the committed part, and `commit` moves the accepted ones together with a single gather and a
single scatter over all layers. Rows may have different lengths. Nothing is ever reallocated.
"""

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from mhc.errors import UserError


class TreeLayer(CacheLayerMixin):
    """One layer's view of the shared buffers; `update` is what the model's attention calls."""

    is_sliding = False  # windows are expressed in the mask, the buffers always hold every position

    def __init__(self, cache: "TreeCache", keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.cache, self.keys, self.values, self.is_initialized = cache, keys, values, True

    def lazy_initialization(self, key_states, value_states):
        """Nothing to do: the buffers exist from the start."""

    def update(self, key_states, value_states, *args, **kwargs):
        """Write T new entries behind each active row's committed part: (B,H,T,E) -> (B,H,extent,E)."""
        return (
            self.cache.write(self.keys, key_states),
            self.cache.write(self.values, value_states),
        )

    def get_seq_length(self) -> int:
        return self.cache.longest

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.cache.longest + query_length, 0

    def get_max_length(self) -> int:
        return self.keys.shape[2]


class TreeCache(Cache):
    """Buffers for `rows` sequences of at most `capacity` slots each.

    `lengths` (list of int, one a row) counts committed positions. `select` narrows the rows that
    the next forward serves (prefill works row by row; a finished row leaves by `move`).
    Memory: 2 * L * rows * H * capacity * E * bytes per element.
    """

    def __init__(self, config, rows: int, capacity: int, dtype: torch.dtype, device: torch.device):
        text = config.get_text_config(decoder=True)
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        self.buffer = torch.zeros(text.num_hidden_layers, 2, rows, heads, capacity, width, dtype=dtype, device=device)
        super().__init__(layers=[TreeLayer(self, layer[0], layer[1]) for layer in self.buffer])
        self.lengths = [0] * rows
        self.capacity = capacity
        self.select(0, rows)

    def select(self, first: int, last: int) -> None:
        """Serve rows first..last-1 in the following forwards."""
        self.first, self.last = first, last
        active = self.lengths[first:last]
        self.longest, self.even = max(active), min(active) == max(active)
        if not self.even:
            self.starts = torch.tensor(active, device=self.buffer.device)

    def slots(self, count: int) -> torch.Tensor:
        """Slot numbers of the next `count` entries of each active row: (B,count)."""
        steps = torch.arange(count, device=self.buffer.device)
        return self.starts[:, None] + steps

    def write(self, buffer: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
        """Write (B,H,T,E) behind the committed part and return all that may be attended to."""
        count = states.shape[2]
        rows = buffer[self.first : self.last]
        if self.even:
            rows[:, :, self.longest : self.longest + count] = states
        else:
            index = self.slots(count)[:, None, :, None].expand_as(states)
            rows.scatter_(2, index, states)
        return rows[:, :, : self.longest + count]

    def commit(self, path: torch.Tensor, counts: list[int]) -> None:
        """Keep the first counts[b] nodes of path[b] (B,P), written last round, as committed text.

        Padded entries of `path` must name some node of the round; what they copy lands behind
        the new length, where the next round overwrites it.
        """
        depth = path.shape[1]
        rows = self.buffer[:, :, self.first : self.last]
        if self.even:
            start = self.longest
            if rows.shape[2] == 1:
                if depth > 1:
                    rows[..., start : start + depth, :] = rows.index_select(4, path[0] + start)
            else:
                index = (path + start)[None, None, :, None, :, None]
                shape = (*rows.shape[:4], depth, rows.shape[5])
                rows[..., start : start + depth, :] = rows.gather(4, index.expand(shape))
        else:
            shape = (*rows.shape[:4], depth, rows.shape[5])
            source = (path + self.starts[:, None])[None, None, :, None, :, None].expand(shape)
            target = self.slots(depth)[None, None, :, None, :, None].expand(shape)
            rows.scatter_(4, target, rows.gather(4, source))
        self.extend(counts)

    def extend(self, counts: list[int]) -> None:
        """Count the first counts[b] entries written last as committed, in place."""
        for row, count in enumerate(counts, self.first):
            self.lengths[row] += count
        self.select(self.first, self.last)

    def clear(self, row: int) -> None:
        """Forget a row's text, so that another prompt can move in."""
        self.lengths[row] = 0

    def move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target` (a finished one), so that active rows stay together."""
        self.buffer[:, :, target] = self.buffer[:, :, source]
        self.lengths[target] = self.lengths[source]

    def require(self, slots: int) -> None:
        """Raise UserError where a row of `slots` entries would not fit."""
        if slots > self.capacity:
            raise UserError(
                f"{slots} positions do not fit into a cache of {self.capacity}: "
                "shorten the prompt or lower --max_new_tokens"
            )
