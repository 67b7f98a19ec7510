"""A model sits an exam: of each question the letter that it finds likeliest behind "Answer:".

    B questions read together   T time   P tokens of what stands before all of them   V vocabulary   N tokens of letters

The text is MMLU's (Hendrycks et al., arXiv 2009.03300), in Chinese C-Eval's (2305.08322) without the subject's name, which
its files have in English only: a line about what follows, examples with their answers, the question, its choices.

Compared is log p of the whole text with each letter. Tokens that all letters share add nothing, so what is compared
is how the texts go on behind them, be that " A" as one token, or "A", or several: right for any tokenizer. What
stands before a subject's questions is read once and its keys and values are copied.
"""

from collections.abc import Callable, Iterator
from itertools import accumulate, chain
from math import sqrt
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhc.backbone.attention import tree_mask
from mhc.backbone.cache import TreeCache
from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.lm.evaluation import batched, token_losses
from mhc.lm.exams import LETTERS, Exam, Question, Subject


class Wording(NamedTuple):
    """The line before the examples, what stands before the letter, and what between the two."""

    intro: str
    answer: str
    gap: str

    def text(self, question: Question, letter: int) -> str:
        """A question with this answer."""
        choices = "".join(f"{name}. {choice}\n" for name, choice in zip(LETTERS, question.choices))
        return f"{question.text}\n{choices}{self.answer}{self.gap}{LETTERS[letter]}"


ENGLISH = Wording("The following are multiple choice questions (with answers) about {subject}.\n\n", "Answer:", " ")
CHINESE = Wording("以下是单项选择题，请选出其中的正确答案。\n\n", "答案：", "")


class Asked(NamedTuple):
    """A question as it is asked: its place, how many examples stand before it, for each letter the token ids, whether its
    beginning had to be cut off."""

    place: int
    shots: int
    texts: list[list[int]]
    cut: bool


def sit(
    backbone: Backbone,
    exam: Exam,
    shots: int = 5,
    limit: int | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Accuracy by subject, over questions and over subjects, each with its standard error and what guessing gives.

    shots: examples before a question; fewer where the subject has fewer or the context does not hold them. A question too
    long for the context loses its beginning. limit: the first questions of each subject only. batch_tokens: positions
    read at once, what stands before included. Raises UserError where no question fits, and where the model says what is no
    number.
    """
    wording = CHINESE if exam.chinese else ENGLISH
    plans = []
    for subject in exam.subjects.values():
        before = _before(backbone, wording, subject, shots)
        questions = subject.questions[:limit]
        plans.append((subject, questions, before, _asked(backbone, wording, questions, before)))
    if all(asked.cut for *_, every in plans for asked in every):
        raise UserError(
            f"no question of '{exam.name}' fits in the model's context of {backbone.context} tokens: it cannot sit this exam"
        )
    total, done, figures = sum(len(questions) for _, questions, *_ in plans), 0, {}
    for subject, questions, before, every in plans:
        right = torch.zeros(len(questions), dtype=torch.float64)
        for asked, scores in _scored(backbone, before, every, batch_tokens):
            right[asked.place] = scores.index(max(scores)) == questions[asked.place].answer
            done += 1
            if progress:
                progress(done, total)
        figures[subject.name] = {
            "split": subject.split,
            "questions": len(questions),
            "right": int(right.sum()),
            **_mean(right),
            "chance": sum(1 / len(question.choices) for question in questions) / len(questions),
            "shots": [min(asked.shots for asked in every), max(asked.shots for asked in every)],
            "mean_shots": sum(asked.shots for asked in every) / len(every),
            "cut": sum(asked.cut for asked in every),
        }
    return _summary(figures) | {"wording": "Chinese" if exam.chinese else "English", "subjects": figures}


def _mean(right: Tensor) -> dict[str, float]:
    """The share of right answers and its binomial standard error."""
    share = float(right.mean())
    return {"accuracy": share, "accuracy_se": sqrt(share * (1 - share) / max(1, len(right) - 1))}


def _summary(figures: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Means over all questions, and over subjects (which are what they are; the questions are drawn)."""
    each = list(figures.values())
    count = sum(one["questions"] for one in each)
    right = sum(one["right"] for one in each)
    over_questions = _mean(torch.tensor([1.0] * right + [0.0] * (count - right), dtype=torch.float64))
    return {
        "questions": count,
        **over_questions,
        "chance": sum(one["chance"] * one["questions"] for one in each) / count,
        "subject_mean": sum(one["accuracy"] for one in each) / len(each),
        "subject_mean_se": sqrt(sum(one["accuracy_se"] ** 2 for one in each)) / len(each),
        "subject_chance": sum(one["chance"] for one in each) / len(each),
        "mean_shots": sum(one["mean_shots"] * one["questions"] for one in each) / count,
        "cut": sum(one["cut"] for one in each),
    }


# -- what is read ----------------------------------------------------------------------------------


def _before(backbone: Backbone, wording: Wording, subject: Subject, shots: int) -> list[list[int]]:
    """Token ids of the line before the examples, and of each example."""
    tokenizer = backbone.tokenizer
    told = [wording.intro.format(subject=subject.name.replace("_", " "))]
    told += [f"{wording.text(example, example.answer)}\n\n" for example in subject.examples[:shots]]
    intro, *examples = _ids(tokenizer, told)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]  # where the tokenizer itself puts one
    return [[tokenizer.bos_token_id, *intro] if begins else intro, *examples]


def _asked(backbone: Backbone, wording: Wording, questions: list[Question], before: list[list[int]]) -> list[Asked]:
    """Each question with as many examples before it as the context holds."""
    texts = [wording.text(question, letter) for question in questions for letter in range(len(question.choices))]
    every, found = iter(_ids(backbone.tokenizer, texts)), []
    for place, question in enumerate(questions):
        ids = [next(every) for _ in question.choices]
        longest = max(map(len, ids)) - 1  # the last token is predicted, not read
        room = [backbone.context - sum(map(len, before[: count + 1])) - longest for count in range(len(before))]
        count = max((count for count in range(len(before)) if room[count] >= 0), default=0)
        lost = max(0, -room[count])
        if lost >= _shared(ids):
            raise UserError(f"the model's context of {backbone.context} tokens is too short for any question")
        found.append(Asked(place, count, [text[lost:] for text in ids], lost > 0))
    return found


def _ids(tokenizer, texts: list[str]) -> list[list[int]]:
    """Token ids of texts that stand behind a line's end; what spells a control token is text."""
    options = {"add_special_tokens": False, "split_special_tokens": True, "verbose": False}
    (anchor,), whole = (tokenizer(some, **options)["input_ids"] for some in (["\n"], [f"\n{text}" for text in texts]))
    if all(ids[: len(anchor)] == anchor for ids in whole):
        return [ids[len(anchor) :] for ids in whole]
    return tokenizer(texts, **options)["input_ids"]


def _shared(texts: list[list[int]]) -> int:
    """With how many tokens all of them begin."""
    return next((place for place, tokens in enumerate(zip(*texts)) if len(set(tokens)) > 1), min(map(len, texts)))


# -- what is said ----------------------------------------------------------------------------------


@torch.inference_mode()
def _scored(
    backbone: Backbone, before: list[list[int]], every: list[Asked], batch_tokens: int
) -> Iterator[tuple[Asked, list[float]]]:
    """Each question with log p of each of its letters."""
    ends = list(accumulate(map(len, before)))  # with 0, 1, ... examples
    batches = []
    for shots in sorted({asked.shots for asked in every}, reverse=True):  # each overwrites examples that it has not
        some = [asked for asked in every if asked.shots == shots]
        # What is read: all but the last token of each text. Where letters are one token, that is one row a question.
        read = [sorted({tuple(text[:-1]) for text in asked.texts}) for asked in some]
        lengths = [len(rows) * (ends[shots] + max(map(len, rows))) for rows in read]
        batches += [(ends[shots], batch) for batch in batched(list(zip(some, read)), lengths, batch_tokens)]
    most = max(sum(len(rows) for _, rows in batch) for _, batch in batches)
    capacity = max(start + len(row) for start, batch in batches for _, rows in batch for row in rows)
    start = batches[0][0]
    cache = backbone.cache(most, max(start, capacity))
    cache.select(0, 1)
    ids = torch.tensor([list(chain(*before))[:start]], device=backbone.device)
    backbone.decode(ids, torch.arange(start, device=ids.device)[None], cache, None, at=ids.new_zeros(1))
    cache.buffer[:, :, 1:, :, :start] = cache.buffer[:, :, :1, :, :start]
    for start, batch in batches:
        yield from zip((asked for asked, _ in batch), _letters(backbone, cache, start, batch))


def _letters(
    backbone: Backbone, cache: TreeCache, start: int, batch: list[tuple[Asked, list[tuple[int, ...]]]]
) -> list[list[float]]:
    """log p of each letter of these questions, behind `start` positions that the cache holds in every row."""
    rows = [(asked.place, row) for asked, several in batch for row in several]
    number = {row: place for place, row in enumerate(rows)}
    length = max(len(row) for _, row in rows)
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for _, row in rows], device=backbone.device)
    cache.lengths = [start] * len(cache.lengths)  # what the batch before has written is overwritten
    cache.select(0, len(rows))
    step = torch.arange(length, device=ids.device)
    causal = step <= step[:, None]
    mask = {
        kind: tree_mask(
            causal[None], step[None], start, start + length, backbone.window if kind == "sliding_attention" else None
        )
        for kind in backbone.layer_types
    }
    positions = (start + step).expand(len(rows), -1)
    _, features = backbone.decode(ids, positions, cache, mask, at=ids.new_zeros(len(rows)))
    picked = []  # row, position, the token behind it, question and letter
    for question, (asked, _) in enumerate(batch):
        shared = _shared(asked.texts)
        for letter, text in enumerate(asked.texts):
            row = number[asked.place, tuple(text[:-1])]
            picked += [(row, at - 1, text[at], question, letter) for at in range(shared, len(text))]
    row, at, token, question, letter = torch.tensor(picked, device=ids.device).unbind(dim=1)
    losses = token_losses(backbone, features.hidden[row, at], token).double()
    if not losses.isfinite().all():
        raise UserError("the model's loss is not finite: its weights are broken, or --dtype float32 is called for")
    scores = losses.new_zeros(len(batch), len(LETTERS)).index_put_((question, letter), -losses, accumulate=True)
    return [one[: len(asked.texts)].tolist() for one, (asked, _) in zip(scores, batch)]
