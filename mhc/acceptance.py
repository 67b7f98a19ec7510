"""Acceptance foretold by training's own forward, to hold against what decoding really accepts.

    A positions of an answer   K heads   V vocabulary

A drafter that is right in training and wrong in serving is the field's most reported fault. Here both are asked about the
same text: the heads' training forward says at every position which guesses a chain would have got right, and decoding is
replayed over that. In fp32 the result equals real decoding's tokens per step, to the token.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mhc.drafters import Drafter
from mhc.losses import chunked_loss
from mhc.replay import RANKS, Trace, replay_fixed
from mhc.tree import FixedTree


@torch.no_grad()
def trace_of(drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]) -> Trace:
    """What each head would have guessed at every position of an answer, by the forward that training uses (teacher
    forced): the trace's ranks (A,K), RANKS where further down or beyond the end. For a drafter in eval mode."""
    backbone = drafter.backbone
    ids = torch.tensor([[*prompt, *answer]], device=backbone.device)
    roots = torch.arange(len(prompt), ids.shape[1] - 1, device=ids.device)  # token t+1 of every anchor
    anchors = torch.zeros_like(roots), roots - 1
    ranks = torch.full((len(roots), drafter.heads), RANKS)
    for head, (hidden, _) in enumerate(drafter(backbone.features(ids, drafter.taps), ids, anchors)):
        target = roots + 1 + head
        inside = target < ids.shape[1]
        found = chunked_loss(
            hidden[inside],
            drafter.unembedding(head),
            ids[0, target[inside]],
            vocabulary=drafter.vocabulary,
            softcap=backbone.softcap,
        )
        ranks[: int(inside.sum()), head] = found.rank.clamp(max=RANKS).cpu()
    return Trace(list(answer), ranks=ranks)


def simulated_tokens_per_step(traces: Sequence[Trace], levels: int) -> float:
    """Tokens per step (bonus counted, prefill apart) of a chain of so many guesses over these answers."""
    return replay_fixed(traces, FixedTree.chain(levels), 1.0)[1]


def accuracy_by_head(traces: Sequence[Trace]) -> list[dict[str, float]]:
    """Top-1 and top-5 accuracy of each head over all positions that have a token so far ahead."""
    found = []
    for head in range(traces[0].ranks.shape[1]):
        ranks = torch.cat([trace.ranks[: len(trace.tokens) - 1 - head, head] for trace in traces])
        found.append({"top1": _share(ranks < 1), "top5": _share(ranks < 5)})
    return found


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4) if len(hits) else 0.0
