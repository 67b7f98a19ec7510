"""Acceptance predicted from the training forward, for comparison with real decoding.

    A positions of an answer   K heads   V vocabulary

A drafter that accepts less in serving than in training is the field's most reported fault. This compares both on the same
text: the heads' training forward gives the draft tokens at every position, and decoding with a chain is replayed over
them. In fp32 the result equals real decoding's tokens per step, to the token.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhc.drafters import Drafter
from mhc.trees.replay import RANKS, Trace, replay_fixed
from mhc.trees.shapes import FixedTree
from mhc.util.files import write_atomically


@dataclass
class PredictedAcceptance:
    """One answer and each head's prediction at every position of it, given the true tokens before. trace: the answer,
    and ranks (A,K) of the true tokens in the heads' lists; confidence (A,K): the probability of each head's top token."""

    trace: Trace
    confidence: Tensor

    def tokens(self, head: int) -> list[int]:
        """The tokens that this head has to predict at positions 0, 1, ... as far as the answer reaches."""
        return self.trace.tokens[1 + head :]


@torch.no_grad()
def predict(drafter: Drafter, prompt: Sequence[int], answer: Sequence[int]) -> PredictedAcceptance:
    """Run the training forward over an answer (teacher forced). For a drafter in eval mode; ranks are RANKS where a token
    ranks lower or is beyond the end."""
    backbone = drafter.backbone
    ids = torch.tensor([[*prompt, *answer]], device=backbone.device)
    roots = torch.arange(len(prompt), ids.shape[1] - 1, device=ids.device)  # token t+1 of every anchor
    anchors = torch.zeros_like(roots), roots - 1
    ranks, confidence = (
        torch.full((len(roots), drafter.draft_length), RANKS),
        torch.zeros(len(roots), drafter.draft_length),
    )
    for head, (hidden, _) in enumerate(drafter(backbone.features(ids, drafter.taps), ids, anchors)):
        known = ids[0, roots[0] + 1 + head :]  # (A-head,)
        logits = drafter.unembed(head, hidden[: len(known)]).float()
        rank = (logits > logits.gather(1, known[:, None])).sum(dim=1)
        ranks[: len(known), head] = rank.clamp(max=RANKS).cpu()
        confidence[: len(known), head] = logits.softmax(dim=1).amax(dim=1).cpu()
    return PredictedAcceptance(Trace(list(answer), ranks), confidence)


def predict_all(
    drafter: Drafter, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[PredictedAcceptance]:
    """`predict` for every answer of more than one token."""
    return [predict(drafter, prompt, answer) for prompt, answer in zip(prompts, answers) if len(answer) > 1]


def predicted_tokens_per_step(predictions: Sequence[PredictedAcceptance], levels: int) -> float:
    """Tokens per step (bonus counted, prefill excluded) over these answers of a chain with this many draft tokens."""
    return replay_fixed([prediction.trace for prediction in predictions], FixedTree.chain(levels), 1.0)[1]


def accuracy_by_head(predictions: Sequence[PredictedAcceptance]) -> list[dict[str, float]]:
    """Top-1 and top-5 accuracy of each head over all positions that have a token that far ahead."""
    accuracy = []
    for head in range(predictions[0].confidence.shape[1]):
        ranks = torch.cat([prediction.trace.ranks[: len(prediction.tokens(head)), head] for prediction in predictions])
        accuracy.append({f"top{k}": round(float((ranks < k).float().mean()), 4) if len(ranks) else 0.0 for k in (1, 5)})
    return accuracy


def save_guesses(path: Path, predictions: Sequence[PredictedAcceptance], tokenizer: Any) -> None:
    """Every prediction as a line of a CSV file, for the notebooks: number of the prompt, position in the answer and head
    (predicting the token at position + 1 + head), that token's text and kind, its rank (0: predicted right), and the
    probability of the head's top token."""

    def write(temporary: Path) -> None:
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            lines = csv.writer(file)
            lines.writerow(["prompt", "position", "head", "text", "kind", "rank", "confidence"])
            lines.writerows(_lines(predictions, tokenizer))

    write_atomically(path, write)


def _lines(predictions: Sequence[PredictedAcceptance], tokenizer: Any) -> Iterator[list[Any]]:
    for number, prediction in enumerate(predictions):
        for head in range(prediction.confidence.shape[1]):
            for position, token in enumerate(prediction.tokens(head)):
                text = tokenizer.decode([token])
                kind = "control" if token in tokenizer.all_special_ids else kind_of(text)
                rank = int(prediction.trace.ranks[position, head])
                confidence = round(float(prediction.confidence[position, head]), 4)
                yield [number, position, head, repr(text)[1:-1], kind, rank, confidence]


def kind_of(text: str) -> str:
    """The kind of a token: 'word' (the start of one), 'part of a word', 'digit', 'punctuation' or 'space'."""
    bare = text.strip()
    if not bare:
        return "space"
    if bare[0].isdigit():
        return "digit"
    if not bare[0].isalpha():
        return "punctuation"
    return "word" if text[0].isspace() or text[0].isupper() else "part of a word"
