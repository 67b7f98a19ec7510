"""The speedup of one answer file over another of the same questions, by category.

Speeds are Spec-Bench's: tokens over seconds of a question, all turns together, and their mean over questions; the speedup is
the ratio of two such means, *tokens per step* the mean of accept_lengths (the bonus token counted). One thing differs:
Spec-Bench counts the plain file's tokens by tokenizing its texts again, less one for a beginning-of-text token. That loses
the end-of-text token, and another where the tokenizer adds none at the front; here both files' new_tokens are used.

Intervals are bootstrapped: questions are drawn with replacement, each with its two measurements, RESAMPLES times.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mhc.errors import UserError

RESAMPLES, SEED, CONFIDENCE = 10_000, 0, 0.95
AT_ONCE = 500  # resamples computed together, which bounds the memory
NEAR = 2.0  # times the sum of their seconds: answers further apart were not interleaved


@dataclass(frozen=True)
class Pair:
    """One question in both files. tokens, seconds: (drafted, plain) of each turn that has tokens in both; accepted: tokens
    of each drafted step; same: turns with the same text, of `turns` turns; near: interleaved."""

    question: int
    category: str
    tokens: list[tuple[int, int]]
    seconds: list[tuple[float, float]]
    accepted: list[int]
    same: int
    turns: int
    near: bool


def paired(drafted: dict[int, Any], plain: dict[int, Any], names: tuple[str, str]) -> list[Pair]:
    """The questions of both files, by question_id. Raises UserError where they do not match; names: the files'."""
    for expected, present, name in ((drafted, plain, names[1]), (plain, drafted, names[0])):
        missing = sorted(set(expected) - set(present))
        if missing:
            numbers = ", ".join(map(str, missing[:8])) + (", ..." if len(missing) > 8 else "")
            raise UserError(f"'{name}' lacks {len(missing)} questions of the other file ({numbers}): answer them first")
    if any(
        length != 1 for record in plain.values() for choice in record["choices"] for length in choice["accept_lengths"]
    ):
        raise UserError(
            f"'{names[1]}' is not plain decoding (a step emitted several tokens): give the plain file second"
        )
    return [_pair(drafted[number], plain[number], names) for number in sorted(drafted)]


def _pair(drafted: dict[str, Any], plain: dict[str, Any], names: tuple[str, str]) -> Pair:
    number, shapes = drafted["question_id"], []
    for record in (drafted, plain):
        shapes.append((record["category"], [len(choice["turns"]) for choice in record["choices"]]))
    if shapes[0] != shapes[1]:
        raise UserError(
            f"question {number} has another category, or other choices or turns, in '{names[0]}' than in '{names[1]}': "
            "give two files made from the same questions"
        )
    texts, tokens, seconds = (
        list(zip(*([item for choice in record["choices"] for item in choice[field]] for record in (drafted, plain))))
        for field in ("turns", "new_tokens", "wall_time")
    )
    answered = [turn for turn, counts in enumerate(tokens) if all(counts)]  # the others did not fit into the context
    seconds_apart = abs(drafted.get("tstamp", 0) - plain.get("tstamp", 0))
    return Pair(
        number,
        drafted["category"],
        [tokens[turn] for turn in answered],
        [seconds[turn] for turn in answered],
        [length for choice in drafted["choices"] for length in choice["accept_lengths"]],
        sum(texts[turn][0] == texts[turn][1] for turn in answered),
        len(answered),
        seconds_apart <= NEAR * sum(map(sum, seconds)) + 1,
    )


def speed_table(pairs: Sequence[Pair], resamples: int = RESAMPLES, seed: int = SEED) -> dict[str, Any]:
    """The figures of all pairs and of each category, in their order in the file: see `figures`. Raises UserError where
    no turn was answered in both files."""
    answered = [pair for pair in pairs if pair.turns]
    if not answered:
        raise UserError("no turn was answered in both files: there is nothing to compare")
    names = dict.fromkeys(pair.category for pair in answered)
    by_category = {name: figures([p for p in answered if p.category == name], resamples, seed) for name in names}
    return {
        "resamples": resamples,
        "seed": seed,
        "confidence": CONFIDENCE,
        "measured_in_turn": all(pair.near for pair in answered),
        "unanswered": [pair.question for pair in pairs if not pair.turns],
        "overall": figures(answered, resamples, seed),
        "categories": by_category,
    }


def figures(pairs: Sequence[Pair], resamples: int, seed: int) -> dict[str, Any]:
    """The figures of these pairs: tokens_per_second, plain_tokens_per_second, speedup, paired_speedup (the median over turns of
    the ratio of both speeds), tokens_per_step, each of the last three with <name>_interval [low, high], None for a
    single question; identical: turns with the same text."""
    turns = np.array([[(t, s) for t, s in zip(tokens, seconds)] for p in pairs for tokens, seconds in [_sums(p)]])
    speeds = turns[:, 0, 0] / turns[:, 0, 1]  # (2,Q) below: drafted, plain
    speeds = np.stack([speeds, turns[:, 1, 0] / turns[:, 1, 1]])
    steps = np.array([[sum(p.accepted), len(p.accepted)] for p in pairs]).T  # (2,Q)
    ratios = np.array([t[0] / s[0] / (t[1] / s[1]) for p in pairs for t, s in zip(p.tokens, p.seconds)])
    owner = np.array([number for number, p in enumerate(pairs) for _ in p.tokens])
    order = np.argsort(ratios, kind="stable")
    ratios, owner = ratios[order], owner[order]

    def statistics(counts: np.ndarray) -> np.ndarray:
        """(R,Q) how often each question was drawn -> (R,3): speedup, paired_speedup, tokens_per_step."""
        drafted, plain = counts @ speeds[0], counts @ speeds[1]
        tokens, forwards = counts @ steps[0], counts @ steps[1]
        cumulative = counts[:, owner].cumsum(axis=1)  # number of ratios up to this one
        total = cumulative[:, -1:]
        middle = [ratios[(cumulative <= rank).sum(axis=1)] for rank in ((total - 1) // 2, total // 2)]
        return np.stack([drafted / plain, (middle[0] + middle[1]) / 2, tokens / forwards], axis=1)

    count = len(pairs)
    value = statistics(np.ones((1, count), dtype=int))[0]
    random = np.random.default_rng(seed)
    sizes = [min(AT_ONCE, resamples - start) for start in range(0, resamples, AT_ONCE)]
    drawn = np.concatenate([statistics(random.multinomial(count, [1 / count] * count, size=size)) for size in sizes])
    tails = ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2)
    low, high = np.quantile(drawn, tails, axis=0)
    result: dict[str, Any] = {
        "questions": count,
        "turns": sum(pair.turns for pair in pairs),
        "identical": sum(pair.same for pair in pairs),
        "tokens_per_second": round(float(speeds[0].mean()), 2),
        "plain_tokens_per_second": round(float(speeds[1].mean()), 2),
    }
    for column, name in enumerate(("speedup", "paired_speedup", "tokens_per_step")):
        result[name] = round(float(value[column]), 4)
        interval = [round(float(low[column]), 4), round(float(high[column]), 4)]
        result[f"{name}_interval"] = interval if count > 1 else None
    return result


def _sums(pair: Pair) -> tuple[list[int], list[float]]:
    """Tokens and seconds of all turns, each (drafted, plain)."""
    return [sum(column) for column in zip(*pair.tokens)], [sum(column) for column in zip(*pair.seconds)]
