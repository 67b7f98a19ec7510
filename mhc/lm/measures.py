"""What each stage of a language model's training is for, as a number on held-out data.

    V vocabulary   n order of an n-gram model

Pretraining is measured against n-gram models of the same text, instruction tuning by answers that end and keep to the
template, preferences by pairs told apart, reasoning by answers of the right form.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from mhc.backbone.model import Backbone
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.text.chat_template import chat_template

DISCOUNT = 0.75  # absolute discounting's customary constant
FORM = re.compile(r"\s*<think>\s*\S.*?\s*</think>\s*<answer>\s*(\S.*?)\s*</answer>\s*", re.DOTALL)
TAG = re.compile(r"</?(?:think|answer)>")
ROWS = 32  # decoded together

Row = tuple[np.ndarray, np.ndarray]  # ids (T), mask (T)


class NGrams:
    """An interpolated n-gram model with absolute discounting (Ney, Essen and Kneser, 1994) over token ids; order 1 is the
    unigram model. Every token of the vocabulary keeps a chance, through the uniform distribution below the unigrams."""

    def __init__(self, rows: Iterable[Row], order: int, vocabulary: int):
        self.order, self.vocabulary = order, vocabulary
        self.counts: list[Counter] = [Counter() for _ in range(order)]  # of histories of 0, 1, ... tokens with the next
        for ids, _ in rows:
            tokens = ids.tolist()
            for length, counts in enumerate(self.counts):
                counts.update(tuple(tokens[at : at + length + 1]) for at in range(len(tokens) - length))
        self.totals: list[Counter] = [Counter() for _ in range(order)]  # of each history: tokens behind it,
        self.kinds: list[Counter] = [Counter() for _ in range(order)]  # and different ones
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
            kept = max(self.counts[length][(*before, token)] - DISCOUNT, 0) / total
            p = kept + DISCOUNT * self.kinds[length][before] / total * p
        return p

    def loss(self, rows: Iterable[Row]) -> float:
        """Mean -log p of the supervised tokens but the first of each row, as a model's loss is counted."""
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
        """The share of answers that end, say something, and hold no control token."""
        fine = (
            ended and text.strip() and not any(token in text for token in self.control)
            for text, ended in zip(self.texts, self.ended)
        )
        return sum(map(bool, fine)) / len(self.texts)

    @property
    def reasons(self) -> list[bool]:
        """Of each answer whether it ends and is a thought and an answer, in their tags and nothing besides."""
        return [
            bool(ended and FORM.fullmatch(text) and len(TAG.findall(text)) == 4)
            for text, ended in zip(self.texts, self.ended)
        ]

    @property
    def reasoned(self) -> float:
        """The share of answers that do."""
        return sum(self.reasons) / len(self.texts)

    def right(self, expected: Sequence[str]) -> float:
        """The share whose <answer> is that of the expected text."""
        pairs = ((FORM.fullmatch(text), FORM.fullmatch(wanted)) for text, wanted in zip(self.texts, expected))
        return sum(bool(one and two and one[1] == two[1]) for one, two in pairs) / len(self.texts)


def answers(model: str | Backbone, prompts: Sequence[list[int]], max_new_tokens: int = 128) -> Answers:
    """What a model (pocket, a directory, a hub name) says to prompts of token ids, greedily."""
    if not prompts:
        raise UserError("no held-out prompts to answer: give more data")
    backbone = Backbone.load(model) if isinstance(model, str) else model
    engine, tokenizer = Engine(backbone), backbone.tokenizer
    found = dict(engine.generate_ids(list(prompts), max_new_tokens, ROWS, plain=True))
    said = [found[number] for number in range(len(prompts))]
    texts = [tokenizer.decode(one.token_ids[: -1 if one.finish_reason == "stop" else None]) for one in said]
    return Answers(texts, [one.finish_reason == "stop" for one in said], chat_template(tokenizer).control)


def preference_accuracy(policy: str, reference: str, data: str, split: str = "test") -> tuple[float, int]:
    """The share of a split's pairs in which the policy prefers the chosen answer, seen from the reference (ties count half),
    and the number of pairs: DPO's implicit reward, whatever its beta."""
    from datamodules import PreferenceData
    from mhc.lm.module import LMModule
    from mhc.lm.objectives import Preference

    objective, right = Preference(), []
    modules = [LMModule(name).eval() for name in (policy, reference)]
    source = PreferenceData(data)
    source.tokenizer = modules[0].tokenizer
    pairs, _ = source.batches(split)
    with torch.no_grad():
        for start in range(0, len(pairs), ROWS // 2):
            batch = pairs[list(range(start, min(start + ROWS // 2, len(pairs))))]
            now, before = (objective.answers(module, batch["ids"], batch["mask"]) for module in modules)
            reward = now - before
            margin = reward[0::2] - reward[1::2]
            right += ((margin > 0).double() + 0.5 * (margin == 0)).tolist()
    return sum(right) / len(right), len(right)


def paired_gain(better: Sequence[Sequence[bool]], worse: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """How much larger the share of True is in `better` than in `worse`, each a row of answers to the same prompts for each
    of two or more seeds; the standard error of this by seeds, and by prompts. Each sees chance that the other does not:
    together, as if they were independent, they make the error larger rather than smaller."""
    gains = np.asarray(better, float) - np.asarray(worse, float)
    by_seed, by_prompt = (
        float(means.std(ddof=1)) / math.sqrt(len(means)) for means in (gains.mean(axis=1), gains.mean(axis=0))
    )
    return float(gains.mean()), by_seed, by_prompt


def standard_errors(accuracy: float, count: int) -> float:
    """How many standard errors of a fair coin's share an accuracy over `count` pairs lies above one half."""
    return (accuracy - 0.5) / (0.5 / math.sqrt(count))
