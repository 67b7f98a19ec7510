"""The diffusion head: a masked block of tokens, unmasked in parallel from the hidden state.

    B rows   A anchors   L slots   D width   V vocabulary

The block behind anchor t holds tokens t+2 ... t+1+L; slot k is head k of other drafters. Some of its tokens are masked
and a small bidirectional transformer over [hidden state; known next token; block] predicts those (masked discrete
diffusion: MDLM, arXiv 2406.07524; LLaDA, 2502.09992). Drafting starts from all masks. MASK is a
learned vector, not a token, so it can never be predicted; revealed tokens are copied.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from mhc.backbone.model import Backbone, Features
from mhc.drafters import schedules
from mhc.drafters.base import Guess, HiddenStateDrafter, shifted, unit_scale
from mhc.drafters.layers import Attention, FeedForward, sizes
from mhc.errors import UserError


class Layer(nn.Module):
    """A pre-norm transformer layer in which every position of a block sees every other: (...,T,D) -> (...,T,D)."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.self_attn, self.mlp = Attention(width, width, heads), FeedForward(width, inner)

    def forward(self, places: Tensor) -> Tensor:
        attention, normed = self.self_attn, self.input_layernorm(places)
        query, key, value = (
            attention.split(project(normed)) for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        places = places + attention.join(scaled_dot_product_attention(query, key, value))
        return places + self.mlp(self.post_attention_layernorm(places))


class Diffusion(HiddenStateDrafter):
    """Masked diffusion over the next K tokens (slots).

    draft_length: K, the block's length (4 to 8 is usual). num_layers: of the transformer. own_lm_head: a trained lm_head copy for
    every slot. schedule: 'linear' or 'kappa', see schedules.py; weighting: 'scheduler' weighs an anchor's loss by the
    schedule (the likelihood bound), 'ones' not at all. passes: denoising passes while drafting; after each, the slots
    of highest confidence are revealed to the next. Trees get one distribution per slot, whatever the earlier slots hold.
    """

    free_arguments = frozenset({"schedule", "weighting", "passes"})
    EARLIEST = 1e-3  # smallest time sampled: the linear weight is 1/t

    def __init__(
        self,
        backbone: Backbone,
        draft_length: int = 5,
        num_layers: int = 1,
        own_lm_head: bool = False,
        schedule: str = "linear",
        weighting: str = "ones",
        passes: int = 1,
    ):
        named = {"draft_length": draft_length, "num_layers": num_layers, "schedule": schedule, "weighting": weighting}
        super().__init__(backbone, draft_length, own_lm_head, **named, passes=passes)
        if schedule not in schedules.COEFFICIENTS:
            raise UserError(f"diffusion schedule '{schedule}': choose {' or '.join(schedules.COEFFICIENTS)}")
        if weighting not in ("scheduler", "ones"):
            raise UserError(f"diffusion weighting '{weighting}': choose scheduler or ones")
        if not 1 <= passes <= draft_length:
            raise UserError(f"diffusion passes is {passes}: it must be between 1 and the draft_length, {draft_length}")
        self.schedule, self.weighting, self.passes = schedule, weighting, passes
        width = backbone.width
        self.condition = nn.Linear(width, width)
        self.mask = nn.Parameter(torch.zeros(width))
        self.places = nn.Parameter(torch.randn(2 + draft_length, width) * 0.1)
        self.layers = nn.ModuleList(Layer(width, *sizes(backbone)) for _ in range(num_layers))
        self.norm = nn.RMSNorm(width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)  # so that every slot is the hidden state itself at first
        nn.init.zeros_(self.out.bias)

    def denoise(self, hidden: Tensor, known: Tensor, block: Tensor, masked: Tensor) -> Tensor:
        """The slots' hidden states (A,L,D) from hidden (A,D), the known next token (A,), the block (A,L) and which of
        it is masked (A,L)."""
        tokens = unit_scale(self.backbone.embed(torch.cat([known[:, None], block], dim=1)))  # (A,1+L,D)
        tokens[:, 1:] = torch.where(masked[..., None], self.mask.to(tokens.dtype), tokens[:, 1:])
        places = torch.cat([self.condition(hidden)[:, None], tokens], dim=1) + self.places
        for layer in self.layers:
            places = layer(places)
        return hidden[:, None] + self.out(self.norm(places[:, 2:]))

    def corrupt(self, anchors: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Which slots are masked (A,L), at a random time per anchor, and the weight of its masked slots (A,)."""
        t = self.EARLIEST + (1 - self.EARLIEST) * torch.rand(anchors, device=device)
        masked = torch.rand(anchors, self.draft_length, device=device) >= schedules.alpha(self.schedule, t)[:, None]
        return masked, schedules.weight(self.schedule, t) if self.weighting == "scheduler" else torch.ones_like(t)

    def forward(self, features: Features, ids: Tensor, anchors: tuple[Tensor, Tensor]) -> Iterator[Guess]:
        """In training slots are masked at random and only those count; otherwise the block is drafted."""
        hidden, known, (_, position) = features.hidden[anchors], shifted(ids, anchors, 1), anchors
        if not self.training:
            yield from (Guess(slot) for slot in self.draft(hidden, known).unbind(dim=1))
            return
        block = torch.stack([shifted(ids, anchors, 2 + slot) for slot in range(self.draft_length)], dim=1)  # (A,L)
        masked, weight = self.corrupt(len(hidden), hidden.device)
        beyond = position[:, None] + 2 + torch.arange(self.draft_length, device=ids.device) >= ids.shape[1]
        masked = masked | beyond  # tokens past the row's end cannot be revealed
        slots = self.denoise(hidden, known, block, masked)
        for slot in range(self.draft_length):
            yield Guess(slots[:, slot], weight * masked[:, slot])

    def draft(self, hidden: Tensor, known: Tensor) -> Tensor:
        """The slots' hidden states (B,L,D) from all masks: each from the last pass in which it was still masked."""
        block = known[:, None].repeat(1, self.draft_length)
        masked = torch.ones_like(block, dtype=torch.bool)
        slots = self.denoise(hidden, known, block, masked)
        count = -(-self.draft_length // self.passes)
        for _ in range(1, self.passes):  # reveal the masked slots of highest confidence, and denoise again
            share, best = self.logits(slots).softmax(dim=-1).max(dim=-1)  # (B,L)
            sure = share.masked_fill(~masked, -1.0).topk(count, dim=1).indices
            revealed = torch.zeros_like(masked).scatter_(1, sure, True) & masked
            block, masked = torch.where(revealed, best, block), masked & ~revealed
            slots = torch.where(masked[..., None], self.denoise(hidden, known, block, masked), slots)
        return slots

    def logits(self, slots: Tensor) -> Tensor:
        """(B,L,D) -> (B,L,V)"""
        return torch.stack([self.unembed(slot, state) for slot, state in enumerate(slots.unbind(dim=1))], dim=1)

    def start_tree(self, memory: Tensor, rows: slice):
        return 0, memory[rows]  # the next slot, h (B,D)

    def draft_level(self, state, tokens: Tensor, parents: Tensor):
        """All slots are filled at the root; every node of a level gets its slot's logits."""
        slot, slots = state
        if slot == 0:
            slots = self.draft(slots, tokens[:, 0])
        logits = self.unembed(slot, slots[:, slot])  # (B,V)
        return logits[:, None].expand(-1, tokens.shape[1], -1), (slot + 1, slots)
