"""Attention over a tree mask without copying keys and values per query group; and over packed rows.

The stock SDPA path repeats K and V for every query head of a group when a mask is given. This one puts the
queries of a group along the time axis instead, which is the same arithmetic on views:
(B,Hq,N,E) -> (B,Hkv,G*N,E). Registered with transformers as "mhc"; no modelling file is touched.
"""

from functools import partial

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask


def tree_attention(module, query, key, value, attention_mask, dropout=0.0, scaling=None, packing=None, **kwargs):
    """Grouped attention under a (B,1,N,S) bool mask, or within each conversation of packed rows; otherwise stock SDPA.

    query (B,Hq,N,E), key and value (B,Hkv,S,E) -> (B,N,Hq,E), None. packing: a Packing of the rows, used in place
    of the mask.
    """
    groups = query.shape[1] // key.shape[1]
    if packing is not None:
        causal = partial(scaled_dot_product_attention, is_causal=True, scale=scaling, enable_gqa=groups > 1)
        return packing.attend(query, key, value, causal), None
    if attention_mask is None or module.training or groups == 1:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    rows, heads, nodes, width = query.shape
    query = query.reshape(rows, key.shape[1], groups * nodes, width)
    mask = attention_mask.repeat(1, 1, groups, 1)
    mixed = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling)
    return mixed.reshape(rows, heads, nodes, -1).transpose(1, 2).contiguous(), None


AttentionInterface.register("mhc", tree_attention)
AttentionMaskInterface.register("mhc", sdpa_mask)


def tree_mask(
    ancestors: torch.Tensor, depth: torch.Tensor, start: int | torch.Tensor, extent: int, window: int | None = None
) -> torch.Tensor:
    """The attention mask of one round: (B,1,N,extent) bool, True where attention is allowed.

    ancestors (1|B,N,N) bool (a node sees itself), depth (1|B,N); start: committed positions, one number for all rows
    or one each (B,). Node j of row b is in slot start[b]+j, at position start[b]+depth[j];
    with `window` w a query sees the w latest positions, its own included. Slots up to `extent` are read.
    """
    nodes, device = ancestors.shape[1], ancestors.device
    if isinstance(start, int):
        if window is None and extent == start + nodes:
            before = ancestors.new_ones((1, 1, 1)).expand(len(ancestors), nodes, start)
            return torch.cat([before, ancestors], dim=2)[:, None]
        start = torch.full((1,), start, device=device)
    rows = max(len(start), len(ancestors))
    start = start[:, None]  # (1|B,1)
    slot = torch.arange(extent, device=device)[None]  # (1,S)
    node = (slot - start).clamp(0, nodes - 1).expand(rows, -1)  # (B,S) the node in a slot, where there is one
    seen = ancestors.expand(rows, -1, -1).gather(2, node[:, None].expand(-1, nodes, -1))
    mask = torch.where((slot < start)[:, None], True, seen & (slot < start + nodes)[:, None])
    if window is not None:
        depth = depth.expand(rows, -1)
        key = torch.where(slot < start, slot, start + depth.gather(1, node))  # (B,S) positions
        query = start + depth  # (B,N)
        mask = mask & (query[:, :, None] - key[:, None] < window)
    return mask[:, None]
