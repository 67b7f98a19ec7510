"""What each stage of a language model's training is for, as a number on held-out data.

    T tokens of a row   V vocabulary   n order of an n-gram model

Pretraining is measured against n-gram models of the same text, instruction tuning by answers that end and keep to the
template, preferences by the pairs that are ordered correctly.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from datamodules import PreferenceData
from datamodules.batching import Row
from mhc.backbone.model import Backbone
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.lm.module import LMModule
from mhc.lm.objectives import Preference
from mhc.text.chat_template import chat_template

DISCOUNT = 0.75  # absolute discounting's customary constant
ROWS = 32  # decoded together


class NGrams:
    """An interpolated n-gram model with absolute discounting (Ney, Essen and Kneser, 1994) over token ids; order 1 is the
    unigram model. rows: ids (T,) and mask (T,) each. Every token of the vocabulary has a probability above 0, through the
    uniform distribution below the unigrams."""

    def __init__(self, rows: Iterable[Row], order: int, vocabulary: int):
        self.order, self.vocabulary = order, vocabulary
        # By length of the history (0, 1, ... n-1): the history with its next token,
        self.counts: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]
        for ids, _ in rows:
            tokens = ids.tolist()
            for length, counts in enumerate(self.counts):
                counts.update(tuple(tokens[at : at + length + 1]) for at in range(len(tokens) - length))
        self.totals: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]  # tokens behind a history,
        self.kinds: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(order)]  # and different ones
        for length, counts in enumerate(self.counts):
            for gram, count in counts.items():
                self.totals[length][gram[:-1]] += count
                self.kinds[length][gram[:-1]] += 1

    def probability(self, history: tuple[int, ...], token: int) -> float:
        """p(token | the last n-1 tokens of `history`)."""
        p = 1 / self.vocabulary
        for length in range(min(self.order - 1, len(history)) + 1):
            before = history[len(history) - length :]
            if not (total := self.totals[length][before]):
                break
            discounted = max(self.counts[length][(*before, token)] - DISCOUNT, 0) / total
            p = discounted + DISCOUNT * self.kinds[length][before] / total * p
        return p

    def loss(self, rows: Iterable[Row]) -> float:
        """Mean -log p (nats) of the supervised tokens but the first of each row, as a model's loss is counted."""
        total, count = 0.0, 0
        for ids, mask in rows:
            tokens = ids.tolist()
            for at in np.flatnonzero(mask[1:]) + 1:
                total -= math.log(self.probability(tuple(tokens[max(0, at - self.order + 1) : at]), tokens[at]))
                count += 1
        return total / count


@dataclass(frozen=True)
class Answers:
    """Greedy answers to prompts: their texts, and of each whether it ended by itself."""

    texts: list[str]
    ended: list[bool]
    control: tuple[str, ...]  # control tokens, as text

    @property
    def well_formed(self) -> float:
        """The share of answers that end, are not empty, and contain no control token."""
        fine = (
            ended and text.strip() and not any(token in text for token in self.control)
            for text, ended in zip(self.texts, self.ended)
        )
        return sum(map(bool, fine)) / len(self.texts)


def answers(model: str | Backbone, prompts: Sequence[list[int]], max_new_tokens: int = 128) -> Answers:
    """A model's (pocket, a directory, a hub name) greedy answers to prompts of token ids. Raises UserError without prompts."""
    if not prompts:
        raise UserError("no held-out prompts to answer: give more data")
    backbone = Backbone.load(model) if isinstance(model, str) else model
    engine, tokenizer = Engine(backbone), backbone.tokenizer
    by_number = dict(engine.generate_ids(list(prompts), max_new_tokens, ROWS, plain=True))
    generations = [by_number[number] for number in range(len(prompts))]
    ended = [generation.finish_reason == "stop" for generation in generations]
    texts = [tokenizer.decode(g.token_ids[: -1 if stopped else None]) for g, stopped in zip(generations, ended)]
    return Answers(texts, ended, chat_template(tokenizer).control)


def preference_accuracy(policy: str, reference: str, data: str, split: str = "test") -> tuple[float, int]:
    """The share of a split's pairs in which the policy prefers the chosen answer, relative to the reference (ties count
    half), and the number of pairs: DPO's implicit reward, whatever its beta."""
    objective = Preference()
    right: list[float] = []
    modules = [LMModule(name).eval() for name in (policy, reference)]
    source = PreferenceData(data)
    source.tokenizer = modules[0].tokenizer
    pairs, _ = source.batches(split)
    with torch.no_grad():
        for start in range(0, len(pairs), ROWS // 2):
            batch = pairs[list(range(start, min(start + ROWS // 2, len(pairs))))]
            policy_logp, reference_logp = (objective.answers(module, batch["ids"], batch["mask"]) for module in modules)
            reward = policy_logp - reference_logp
            margin = reward[0::2] - reward[1::2]
            right += ((margin > 0).double() + 0.5 * (margin == 0)).tolist()
    return sum(right) / len(right), len(right)


def standard_errors(accuracy: float, count: int) -> float:
    """How many standard errors of a fair coin's share an accuracy over `count` pairs lies above one half."""
    return (accuracy - 0.5) / (0.5 / math.sqrt(count))
