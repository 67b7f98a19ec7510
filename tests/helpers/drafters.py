"""Drafters for tests: every family and its variants, with random weights, with answers learned by heart, or with guesses
that are known beforehand."""

import torch

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Diffusion, Drafter, Eagle3, Medusa
from mhc.training.losses import chunked_loss

HEADS = 4
FAMILIES = [Medusa, Cascade, Diffusion, Eagle3]
VARIANTS = {
    "medusa": lambda backbone: Medusa(backbone, HEADS, blocks=2),
    "medusa_own": lambda backbone: Medusa(backbone, HEADS, own_lm_head=True),
    "cascade": lambda backbone: Cascade(backbone, HEADS, blocks=2),
    "cascade_own": lambda backbone: Cascade(backbone, HEADS, own_lm_head=True),
    "cascade_unconditioned": lambda backbone: Cascade(backbone, HEADS, condition_first=False),
    "cascade_tied": lambda backbone: Cascade(backbone, HEADS, tied=True),
    "cascade_speculator": lambda backbone: Cascade(backbone, HEADS, cell="speculator"),
    "cascade_low_rank": lambda backbone: Cascade(backbone, HEADS, cell="low_rank", rank=5),
    "cascade_low_rank_own": lambda backbone: Cascade(backbone, HEADS, cell="low_rank", rank=5, own_lm_head=True),
    "diffusion": lambda backbone: Diffusion(backbone, HEADS),
    "diffusion_own": lambda backbone: Diffusion(backbone, HEADS, num_layers=2, own_lm_head=True),
    "diffusion_passes": lambda backbone: Diffusion(backbone, HEADS, passes=2),
    "eagle3": lambda backbone: Eagle3(backbone, HEADS),
    "eagle3_short_sighted": lambda backbone: Eagle3(backbone, HEADS, context=5),
    "eagle3_few_words": lambda backbone: Eagle3(backbone, HEADS, draft_vocabulary=40),
}


def randomised(drafter: Drafter, amount: float = 0.3) -> Drafter:
    """The drafter with every weight off its start, where a head is the identity and would pass most tests."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(torch.randn_like(parameter) * amount)
    return drafter


def memorise(
    drafter: Drafter, prompts: list[list[int]], answers: list[list[int]], steps: int, learning_rate: float
) -> Drafter:
    """Teach heads these answers by heart, all of them in each step."""
    torch.manual_seed(0)
    learned = [parameter for parameter in drafter.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=learning_rate, weight_decay=0.0)
    drafter.train()
    for _ in range(steps):
        loss = torch.zeros(())
        for prompt, answer in zip(prompts, answers):
            ids = torch.tensor([prompt + answer])
            position = torch.arange(len(prompt) - 1, ids.shape[1] - 1 - drafter.draft_length)
            features = drafter.backbone.features(ids, drafter.taps)
            for head, (hidden, weight) in enumerate(drafter(features, ids, (torch.zeros_like(position), position))):
                labels, matrices = ids[0, position + 2 + head], drafter.unembedding(head)
                loss = loss + chunked_loss(hidden, matrices, labels, weight=weight, vocabulary=drafter.vocabulary).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return drafter.eval()


class Scripted(Drafter):
    """A drafter that knows the whole text of each row and guesses `right` tokens of it in every tree.

    With right=99 it drives acceptance to its limit, with right=0 it is the adversary. What it says
    depends on `observe`: should the engine report accepted tokens wrongly, its drafts go wrong as well.
    A row's text is recognised by the length of its prompt.
    """

    def __init__(self, backbone: Backbone, texts: list[list[int]], prompts: list[int], heads: int = 4, right: int = 99):
        super().__init__(backbone, heads)
        self.texts, self.right = dict(zip(prompts, texts)), right

    def forward(self, features, ids, anchors):
        raise NotImplementedError

    def unembed(self, head, hidden):
        raise NotImplementedError

    def unembedding(self, head):
        raise NotImplementedError

    def allocate(self, rows, capacity):
        return [(0, 0)] * rows  # (length of the prompt, positions read) of each row

    def observe(self, memory, rows, accepted, next_ids, start, counts):
        starts = start.tolist() if isinstance(start, torch.Tensor) else [start] * len(counts)
        for row, first, count in zip(range(rows.start, rows.stop), starts, counts.tolist()):
            memory[row] = (memory[row][0] if first else count, first + count)

    def move(self, memory, source, target):
        memory[target] = memory[source]

    def start_tree(self, memory, rows):
        return 0, memory[rows]

    def draft_level(self, state, tokens, parents):
        head, rows = state
        logits = torch.zeros(*tokens.shape, self.backbone.vocabulary_size)
        for row, (prompt, done) in enumerate(rows):
            text, at = self.texts.get(prompt, []), done + 1 + head  # the root stands at `done`; idle rows have no text
            token = text[at] if at < len(text) else 0
            logits[row, :, (token + (head >= self.right)) % self.backbone.vocabulary_size] = (
                99.0  # louder than any noise
            )
        return logits, (head + 1, rows)
