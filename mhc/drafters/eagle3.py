"""EAGLE-3: one decoder layer over fused features of the backbone, run on its own outputs (arXiv 2503.01840).

    B rows   T time   A anchors   K heads (unrolled steps)   R nodes   M nodes of the tree so far
    D width   H heads of attention   E their width   S slots of its cache   V_d draft vocabulary

Position t joins the features g_t = fc([three tapped layers]) with the known next token t+1. The layer's output there
predicts token t+2 and is, in place of g, the input of the step that follows: with token t+2, at position t+1. So a
draft token attends to all real positions up to t and to its ancestors in the tree. Training unrolls the same K steps with the true
tokens (training-time test): at step k the mask is step 0's causal block and one diagonal for each later step.

Modules carry the names of published EAGLE-3 checkpoints.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mhc.backbone.model import Backbone, Features
from mhc.drafters.base import Drafter, Guess, inherit
from mhc.drafters.layers import Attention, FeedForward, sizes, turned, turns
from mhc.errors import UserError

BLOCK = 256  # queries attended for at a time in training
# the recomputed part uses no randomness
recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)


@dataclass
class Memory:
    """keys and values (rows,H,S,E) of the real positions, rotated; length (rows,): how many; last (rows,D): the layer's
    output at the latest one."""

    keys: Tensor
    values: Tensor
    length: Tensor
    last: Tensor


@dataclass
class Nodes:
    """keys and values (B,H,M,E) of a tree's nodes so far, without the root; seen (B,R,M): which of them each of the
    last R attends to."""

    keys: Tensor
    values: Tensor
    seen: Tensor


@dataclass
class Growth:
    """The state of one tree: output (B,R,D) of the nodes that may be expanded; memory of the tree's rows; its nodes besides
    the root, if any."""

    level: int
    output: Tensor
    memory: Memory
    nodes: Nodes | None = None


class MidLayer(nn.Module):
    """A Llama layer whose queries, keys and values come from [embedding; state], with the state as residual."""

    def __init__(self, width: int, heads: int, inner: int, head_width: int | None, theta: float, epsilon: float):
        super().__init__()
        self.theta = theta
        self.input_layernorm, self.hidden_norm = nn.RMSNorm(width, eps=epsilon), nn.RMSNorm(width, eps=epsilon)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=epsilon)
        self.self_attn, self.mlp = Attention(2 * width, width, heads, head_width), FeedForward(width, inner)

    def join(self, embedded: Tensor, state: Tensor) -> Tensor:
        """(...,D), (...,D) -> (...,2D)"""
        return torch.cat([self.input_layernorm(embedded), self.hidden_norm(state)], dim=-1)

    def turns(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The rotary cosines and sines at these positions (B,T)."""
        return turns(positions, self.self_attn.width, self.theta)

    def queries(self, joined: Tensor, by: tuple[Tensor, Tensor]) -> Tensor:
        """(B,T,2D) -> (B,H,T,E)"""
        attention = self.self_attn
        return turned(attention.split(attention.q_proj(joined)), by)

    def keys_values(self, joined: Tensor, by: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """(B,T,2D) -> two of (B,H,T,E)"""
        attention = self.self_attn
        return turned(attention.split(attention.k_proj(joined)), by), attention.split(attention.v_proj(joined))

    def finish(self, mixed: Tensor, state: Tensor) -> Tensor:
        """Attention's output (B,H,T,E) and the state (B,T,D) -> the layer's output (B,T,D)."""
        state = state + self.self_attn.join(mixed)
        return state + self.mlp(self.post_attention_layernorm(state))


class Eagle3(Drafter):
    """EAGLE-3 draft layer.

    draft_length: K, steps unrolled in training and levels of a tree. taps: the three layers whose inputs are fused; default
    2, N/2 and N-3 of N, or N/4, N/2 and N-1 where those collide. draft_vocabulary: draft only this many tokens, the
    most frequent ones of the training answers (default: all). context: how many positions the layer attends to, so
    that relative positions never get larger than in training, whose rows are at most data.max_length long.
    checkpointing: store only each step's state, keys and values in training and recompute the rest in the
    backward pass: less memory, a third more time, the same gradients.
    attention_heads, head_width, inner_width (default: to match the backbone), theta of the rotary embedding and epsilon
    of the norms are for checkpoints that were trained elsewhere (mhc/export/eagle3_import.py).
    """

    free_arguments = frozenset({"checkpointing"})
    d2t: Tensor  # (V_d,) id of draft token j, less j
    t2d: Tensor  # (V,) bool: whether a token is among the draft tokens

    def __init__(
        self,
        backbone: Backbone,
        draft_length: int = 7,
        taps: list[int] | None = None,
        draft_vocabulary: int | None = None,
        context: int = 2048,
        checkpointing: bool = False,
        attention_heads: int | None = None,
        head_width: int | None = None,
        inner_width: int | None = None,
        theta: float = 10_000.0,
        epsilon: float = 1e-6,
    ):
        named: dict[str, Any] = {"draft_length": draft_length, "taps": taps, "context": context}
        named |= {"draft_vocabulary": draft_vocabulary}
        shape: dict[str, float | None] = {
            "attention_heads": attention_heads,
            "head_width": head_width,
            "inner_width": inner_width,
        }
        shape |= {"theta": theta, "epsilon": epsilon}
        super().__init__(backbone, draft_length, **named, checkpointing=checkpointing, **shape)
        if context < draft_length:
            raise UserError(f"EAGLE-3's context is {context}: it must be at least its draft_length, {draft_length}")
        if draft_vocabulary is not None and not 1 <= draft_vocabulary <= backbone.vocabulary_size:
            raise UserError(
                f"draft_vocabulary is {draft_vocabulary}: it must be between 1 and the backbone's {backbone.vocabulary_size}"
            )
        self.taps = tuple(taps) if taps is not None else default_taps(backbone.layers)
        if len(self.taps) != 3 or not all(0 <= layer < backbone.layers for layer in self.taps):
            raise UserError(f"EAGLE-3's taps are {list(self.taps)}: give three layers of 0 to {backbone.layers - 1}")
        self.context, self.checkpointing, width = context, checkpointing, backbone.width
        self.fc = nn.Linear(3 * backbone.layer_width, width, bias=False)
        usual_heads, usual_inner = sizes(backbone)
        widths = attention_heads or usual_heads, inner_width or usual_inner, head_width
        self.midlayer = MidLayer(width, *widths, theta, epsilon)
        self.norm = nn.RMSNorm(width, eps=epsilon)
        size = draft_vocabulary or backbone.vocabulary_size
        self.lm_head = nn.Linear(width, size, bias=False)
        self.register_buffer("d2t", torch.zeros(size, dtype=torch.long))
        self.register_buffer("t2d", torch.zeros(backbone.vocabulary_size, dtype=torch.bool))
        self._choose(torch.arange(size))

    # ---- the draft vocabulary

    @property
    def vocabulary(self) -> Tensor | None:
        if len(self.d2t) == len(self.t2d):
            return None
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def choose_vocabulary(self, frequencies: Tensor) -> str | None:
        """Take the most frequent tokens as the draft vocabulary and report how much of the text they cover."""
        if self.vocabulary is None:
            return None
        # ties go to the lower id, so that the same data give the same vocabulary
        order = torch.argsort(frequencies, descending=True, stable=True)
        chosen = order[: len(self.d2t)].sort().values
        self._choose(chosen.to(self.d2t.device))
        coverage = float(frequencies[chosen].sum() / frequencies.sum().clamp(min=1))
        return f"draft vocabulary: {len(chosen):,} of {len(frequencies):,} tokens cover {coverage:.2%} of the training text"

    def _choose(self, ids: Tensor) -> None:
        """Draft these tokens (ascending), starting from the backbone's own rows for them."""
        self.d2t.copy_(ids - torch.arange(len(ids), device=ids.device))
        self.t2d.zero_()[ids] = True
        with torch.no_grad():
            rows = self.backbone.unembedding.detach().float().to(ids.device)[ids]
            self.lm_head.weight.copy_(rows)

    def unembed(self, head: int, hidden: Tensor) -> Tensor:
        logits = self.backbone.around_lm_head.behind(self.lm_head(hidden))
        ids = self.vocabulary
        if ids is None:
            return logits
        whole = logits.new_full((*logits.shape[:-1], len(self.t2d)), float("-inf"))
        return whole.index_copy_(-1, ids, logits)

    def unembedding(self, head: int) -> tuple[Tensor, ...]:
        return (self.lm_head.weight,)

    # ---- training

    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Guess]:
        """Training-time test: K steps over whole rows, each on the previous step's outputs."""
        (rows, length), dtype = ids.shape, self.norm.weight.dtype
        place = torch.arange(length, device=ids.device)
        state = self.fc(features.tapped.to(dtype))  # (B,T,D)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        for head in range(self.draft_length):
            next_ids = ids[:, (place + 1 + head).clamp(max=length - 1)]
            arguments = next_ids, (place + head).expand(rows, -1), state, keys, values
            if self.checkpointing and torch.is_grad_enabled():
                state, key, value = recomputed(self.unroll, *arguments)
            else:
                state, key, value = self.unroll(*arguments)
            keys, values = [*keys, key], [*values, value]
            yield Guess(self.norm(state[anchors]))

    def unroll(
        self, next_ids: Tensor, positions: Tensor, state: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One step over whole rows: tokens and positions (B,T), the previous state (B,T,D), keys and values of the
        previous steps (B,H,T,E) each -> the state and this step's key and value."""
        layer = self.midlayer
        joined = layer.join(self.backbone.embed(next_ids), state)
        by = layer.turns(positions)
        query, (key, value) = layer.queries(joined, by), layer.keys_values(joined, by)
        return layer.finish(self.unrolled_attention(query, [*keys, key], [*values, value]), state), key, value

    def unrolled_attention(self, query: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """Step k = len(keys)-1: queries (B,H,T,E) see step 0's keys causally and, of each later step, their own position.

        Done for BLOCK queries at a time, each over the keys it may see; the backward pass recomputes the attention
        weights, so that all (B,H,T,T) are never in memory at once."""
        parts = []
        for start in range(0, query.shape[2], BLOCK):
            arguments = query[:, :, start : start + BLOCK], start, keys, values
            if torch.is_grad_enabled() and query.requires_grad:
                parts.append(recomputed(self._attend_unrolled, *arguments))
            else:
                parts.append(self._attend_unrolled(*arguments))
        return torch.cat(parts, dim=2)

    def _attend_unrolled(self, query: Tensor, start: int, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """The queries (B,H,C,E) at start, start+1, ..."""
        step, end = len(keys) - 1, start + query.shape[2]
        first = max(0, start + step - self.context + 1)  # of step 0's positions within the context
        place = torch.arange(first, end, device=query.device)
        distance = place[start - first :, None] + step - place  # from the query's position t+k to those of step 0
        causal = (distance >= step) & (distance < self.context)
        near = keys[0][:, :, first:end], values[0][:, :, first:end]
        own = [(key[:, :, start:end], value[:, :, start:end]) for key, value in zip(keys[1:], values[1:])]
        scores = [(query @ near[0].transpose(-1, -2)).masked_fill(~causal, float("-inf"))]  # (B,H,C,S)
        scores += [(query * key).sum(dim=-1, keepdim=True) for key, _ in own]  # (B,H,C,1) each
        weight = (torch.cat(scores, dim=-1) * query.shape[-1] ** -0.5).softmax(dim=-1)
        mixed = weight[..., : end - first] @ near[1]
        for number, (_, value) in enumerate(own):
            mixed = mixed + weight[..., end - first + number, None] * value
        return mixed

    # ---- decoding

    def allocate(self, rows: int, capacity: int) -> Memory:
        dtype, device = self.backbone.dtype, self.backbone.device
        attention = self.midlayer.self_attn
        shape = rows, attention.heads, capacity, attention.width
        keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
        length = torch.zeros(rows, dtype=torch.long, device=device)
        return Memory(keys, values, length, torch.zeros(rows, self.backbone.width, dtype=dtype, device=device))

    def observe(
        self, memory: Memory, rows: slice, accepted: Features, next_ids: Tensor, start: int | Tensor, counts: Tensor
    ) -> None:
        """Keys and values of all new positions, and the layer's output at the last, from which the root's children are
        drafted."""
        layer, served = self.midlayer, _rows_of(memory, rows)
        state = self.fc(accepted.tapped)  # (B,P,D)
        joined = layer.join(self.backbone.embed(next_ids), state)
        first = start if isinstance(start, Tensor) else torch.full_like(counts, start)
        positions = first[:, None] + torch.arange(next_ids.shape[1], device=counts.device)  # (B,P)
        slots = positions.clamp(max=served.keys.shape[2] - 1)  # only invalid positions lie beyond
        every_row, heads = (torch.arange(size, device=counts.device) for size in served.keys.shape[:2])
        place = every_row[:, None, None], heads[None, :, None], slots[:, None]
        for buffer, new in zip((served.keys, served.values), layer.keys_values(joined, layer.turns(positions))):
            buffer.index_put_(place, new)
        served.length.copy_(first + counts)
        latest = every_row[:, None], counts[:, None] - 1
        mixed = self._attend(layer.queries(joined[latest], layer.turns(positions[latest])), served, served.length - 1)
        served.last.copy_(layer.finish(mixed, state[latest])[:, 0])

    def _attend(self, query: Tensor, memory: Memory, position: Tensor, nodes: Nodes | None = None) -> Tensor:
        """Attend from queries (B,H,R,E) at `position` (B,) to the real positions within the context, and to a tree's
        nodes."""
        slot = torch.arange(memory.keys.shape[2], device=query.device)
        near = (slot < memory.length[:, None]) & (position[:, None] - slot < self.context)  # (B,S)
        scores = (query @ memory.keys.transpose(-1, -2)).masked_fill(~near[:, None, None], float("-inf"))
        if nodes is not None:
            inside = (query @ nodes.keys.transpose(-1, -2)).masked_fill(~nodes.seen[:, None], float("-inf"))
            scores = torch.cat([scores, inside], dim=-1)
        weight = (scores * query.shape[-1] ** -0.5).softmax(dim=-1)
        mixed = weight[..., : len(slot)] @ memory.values
        return mixed if nodes is None else mixed + weight[..., len(slot) :] @ nodes.values

    def move(self, memory: Memory, source: int, target: int) -> None:
        for part in (memory.keys, memory.values, memory.length, memory.last):
            part[target] = part[source]

    def start_tree(self, memory: Memory, rows: slice) -> Growth:
        served = _rows_of(memory, rows)
        return Growth(0, served.last[:, None], served)

    def draft_level(self, state: Growth, tokens: Tensor, parents: Tensor) -> tuple[Tensor, Growth]:
        """The root was processed by `observe`; deeper nodes run the layer on their parents' outputs."""
        level, output, memory = state.level, state.output, state.memory
        if level == 0:
            return self.unembed(0, self.norm(output)), Growth(1, output, memory)
        layer, before = self.midlayer, inherit(output, parents)  # (B,R,D)
        joined = layer.join(self.backbone.embed(tokens), before)
        position = memory.length + level - 1  # (B,)
        by = layer.turns(position[:, None])  # all nodes of a level share one position
        keys, values = layer.keys_values(joined, by)
        seen = torch.eye(tokens.shape[1], dtype=torch.bool, device=tokens.device).expand(len(tokens), -1, -1)
        if (above := state.nodes) is not None:
            keys, values = torch.cat([above.keys, keys], dim=2), torch.cat([above.values, values], dim=2)
            seen = torch.cat([inherit(above.seen, parents), seen], dim=2)
        nodes = Nodes(keys, values, seen)
        output = layer.finish(self._attend(layer.queries(joined, by), memory, position, nodes), before)
        return self.unembed(level, self.norm(output)), Growth(level + 1, output, memory, nodes)


def default_taps(layers: int) -> tuple[int, int, int]:
    """The layers whose inputs EAGLE-3 fuses, of a backbone with so many."""
    published = 2, layers // 2, layers - 3
    return published if published[0] < published[1] < published[2] else (layers // 4, layers // 2, layers - 1)


def _rows_of(memory: Memory, rows: slice) -> Memory:
    """A view of these rows."""
    return Memory(memory.keys[rows], memory.values[rows], memory.length[rows], memory.last[rows])
