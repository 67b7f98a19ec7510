"""Several conversations in one row: attention within each, their positions, and how to separate them again.

    B rows   T time   G groups   S conversations of a group   L their longest, in tokens   H heads   E their width

Packed rows are full, so a forward wastes nothing on padding. Each conversation attends to itself alone and its positions
start from 0: the model computes what it would for every conversation in a row of its own.
"""

import torch
from torch import Tensor

PADDING = -1  # the segment of padding positions
EVEN = 0.7  # no conversation of a group is shorter than this share of the longest


class Packing:
    """Where conversations lie in packed rows.

    segments (B,T): which conversation of its row a position belongs to, PADDING where none; each is contiguous.
    positions (B,T): of each token in its own conversation. groups: flat indices (S,L) into the rows, of conversations of
    about one length, padded by repeating the last position; `inside` (S,L) of each: which are not padding.
    """

    def __init__(self, segments: Tensor):
        self.segments = segments
        self.used = False  # whether any attention has asked
        rows, length = segments.shape
        flat = segments.cpu() + (torch.arange(rows) * (length + 1))[:, None]  # no two rows share a number
        real = (segments.cpu() != PADDING).flatten()
        _, lengths = flat.flatten().unique_consecutive(return_counts=True)
        starts = lengths.cumsum(0) - lengths
        positions = torch.arange(rows * length) - starts.repeat_interleave(lengths)
        self.positions = positions.reshape(rows, length).to(segments.device)
        starts, lengths = starts[real[starts]], lengths[real[starts]]
        self.longest = max(lengths.tolist(), default=0)
        order = lengths.argsort(descending=True)
        starts, lengths = starts[order], lengths[order]
        self.groups: list[tuple[Tensor, Tensor]] = []
        first = 0
        while first < len(lengths):
            longest = int(lengths[first])
            last = first + int((lengths[first:] >= EVEN * longest).sum())
            step = torch.arange(longest)
            index = starts[first:last, None] + torch.minimum(step, lengths[first:last, None] - 1)
            inside = step < lengths[first:last, None]
            self.groups.append((index.to(segments.device), inside.to(segments.device)))
            first = last

    def mask(self, window: int | None = None) -> Tensor:
        """Block-diagonal causal attention (B,1,T,T), True where allowed; with `window` w the w latest positions only.
        Padding attends to padding, so that no row of the mask is empty."""
        segments, place = self.segments, torch.arange(self.segments.shape[1], device=self.segments.device)
        distance = place[:, None] - place
        near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return ((segments[:, :, None] == segments[:, None]) & near)[:, None]

    def attend(self, query: Tensor, key: Tensor, value: Tensor, attend) -> Tensor:
        """`attend` (q, k, v of shape (S,H,L,E), causal, -> (S,H,L,E)) for each group, put back into packed rows:
        (B,H,T,E) -> (B,T,H,E). Padding gets zeros."""
        self.used = True
        rows, heads, length = query.shape[:3]
        flat = [part.transpose(1, 2).flatten(0, 1) for part in (query, key, value)]  # (B*T,H,E)
        mixed = torch.zeros(rows * length, heads, value.shape[-1], dtype=query.dtype, device=query.device)
        for index, inside in self.groups:
            attended = attend(*(part[index].transpose(1, 2) for part in flat)).transpose(1, 2)  # (S,L,H,E)
            mixed[index[inside]] = attended[inside]
        return mixed.reshape(rows, length, heads, -1)

    def split(self, rows: Tensor) -> list[Tensor]:
        """The conversations of packed rows (B,T,...), group by group (S,L,...)."""
        flat = rows.flatten(0, 1)
        return [flat[index] for index, _ in self.groups]


def real_positions(ids: Tensor, segments: Tensor | None, pad_id: int | None) -> Tensor:
    """Which positions (B,T) are not padding: all up to a row's last token other than pad_id (which may occur in text, too); of
    packed rows those of a segment."""
    if segments is not None:
        return segments != PADDING
    place = torch.arange(ids.shape[1], device=ids.device)
    last = ((ids != pad_id) * place).amax(dim=1) if pad_id is not None else place[-1:]
    return place <= last[:, None]
