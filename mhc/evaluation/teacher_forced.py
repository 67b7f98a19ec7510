"""Acceptance foretold by training's own forward, to hold against what decoding really accepts.

    A positions of an answer   K heads   V vocabulary

A drafter that is right in training and wrong in serving is the field's most reported fault. Here both are asked about the
same text: the heads' training forward says at every position which guesses a chain would have got right, and decoding is
replayed over that. In fp32 the result equals real decoding's tokens per step, to the token.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhc.drafters import Drafter
from mhc.trees.shapes import FixedTree
from mhc.tuning.replay import RANKS, Trace, replay_fixed
from mhc.util.files import write_atomically


@dataclass
class Foretold:
    """One answer and what each head guesses at every position of it, given the true tokens before. trace: the answer,
    and ranks (A,K) of the true tokens in the heads' lists; sure (A,K): the probability of each head's best guess."""

    trace: Trace
    sure: Tensor

    def tokens(self, head: int) -> list[int]:
        """The tokens that this head guesses at positions 0, 1, ... as far as the answer reaches."""
        return self.trace.tokens[1 + head :]


@torch.no_grad()
def foretell(drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]) -> Foretold:
    """Ask the forward that training uses about an answer (teacher forced). For a drafter in eval mode; ranks are RANKS
    where a token is further down or beyond the end."""
    backbone = drafter.backbone
    ids = torch.tensor([[*prompt, *answer]], device=backbone.device)
    roots = torch.arange(len(prompt), ids.shape[1] - 1, device=ids.device)  # token t+1 of every anchor
    anchors = torch.zeros_like(roots), roots - 1
    ranks, sure = torch.full((len(roots), drafter.heads), RANKS), torch.zeros(len(roots), drafter.heads)
    for head, (hidden, _) in enumerate(drafter(backbone.features(ids, drafter.taps), ids, anchors)):
        known = ids[0, roots[0] + 1 + head :]  # (A-head,)
        logits = drafter.unembed(head, hidden[: len(known)]).float()
        rank = (logits > logits.gather(1, known[:, None])).sum(dim=1)
        ranks[: len(known), head] = rank.clamp(max=RANKS).cpu()
        sure[: len(known), head] = logits.softmax(dim=1).amax(dim=1).cpu()
    return Foretold(Trace(list(answer), ranks=ranks), sure)


def foretell_all(
    drafter: Drafter, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[Foretold]:
    """`foretell` for every answer in which there is something to guess (more than one token)."""
    return [foretell(drafter, prompt, answer) for prompt, answer in zip(prompts, answers) if len(answer) > 1]


def simulated_tokens_per_step(foretold: Sequence[Foretold], levels: int) -> float:
    """Tokens per step (bonus counted, prefill apart) of a chain of so many guesses over these answers."""
    return replay_fixed([one.trace for one in foretold], FixedTree.chain(levels), 1.0)[1]


def accuracy_by_head(foretold: Sequence[Foretold]) -> list[dict[str, float]]:
    """Top-1 and top-5 accuracy of each head over all positions that have a token so far ahead."""
    found = []
    for head in range(foretold[0].sure.shape[1]):
        ranks = torch.cat([one.trace.ranks[: len(one.tokens(head)), head] for one in foretold])
        found.append({f"top{k}": round(float((ranks < k).float().mean()), 4) if len(ranks) else 0.0 for k in (1, 5)})
    return found


def save_guesses(path: Path, foretold: Sequence[Foretold], tokenizer: Any) -> None:
    """Every guess as a line of a CSV file, for the notebooks: number of the prompt, position in the answer and head
    (guessing the token at position + 1 + head), that token's text and kind, its rank (0: guessed right), and how sure
    the head was of its best guess."""

    def write(at: Path) -> None:
        with open(at, "w", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["prompt", "position", "head", "text", "kind", "rank", "confidence"])
            lines.writerows(_lines(foretold, tokenizer))

    write_atomically(path, write)


def _lines(foretold: Sequence[Foretold], tokenizer: Any) -> Iterator[list[Any]]:
    for number, one in enumerate(foretold):
        for head in range(one.sure.shape[1]):
            for position, token in enumerate(one.tokens(head)):
                text = tokenizer.decode([token])
                kind = "control" if token in tokenizer.all_special_ids else kind_of(text)
                rank, sure = int(one.trace.ranks[position, head]), round(float(one.sure[position, head]), 4)
                yield [number, position, head, repr(text)[1:-1], kind, rank, sure]


def kind_of(text: str) -> str:
    """What a token is: the start of a word, a part of one, a digit, punctuation, or white space."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare[0].isdigit():
        return "digit"
    if not bare[0].isalpha():
        return "punctuation"
    return "word" if text[0].isspace() or text[0].isupper() else "part of a word"
