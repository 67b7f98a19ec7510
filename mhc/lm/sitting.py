"""A model sits an exam: its answer to a question is the letter that it finds likeliest after "Answer:".

    B questions of a batch   R rows of a batch   T time   P positions of the common prefix   V vocabulary

The text is MMLU's (Hendrycks et al., arXiv 2009.03300), in Chinese C-Eval's (2305.08322) without the subject's name, which
its files have in English only: a line of introduction, examples with their answers, the question, its choices.

What is compared is log p of the whole text with each letter. Tokens that all letters share add nothing, so only those
after them are summed, be that " A" as one token, or "A", or several: right for any tokenizer. The prefix of a subject's
questions is read once and its keys and values are copied. A question has as many examples as fit whole: lm-evaluation-harness
cuts the prompt's beginning instead, and agrees wherever everything fits.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain
from math import sqrt
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedTokenizerBase

from mhc.backbone.cache import TreeCache
from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.lm.evaluation import NOT_FINITE, token_losses
from mhc.lm.exams import LETTERS, Exam, Question, Subject
from mhc.text.encoding import text_ids
from mhc.util.batches import batches


class Wording(NamedTuple):
    """The line before the examples, the text before the letter, and what separates the two."""

    intro: str
    answer: str
    gap: str

    def text(self, question: Question, letter: int) -> str:
        """A question with this answer."""
        choices = "".join(f"{name}. {choice}\n" for name, choice in zip(LETTERS, question.choices))
        return f"{question.text}\n{choices}{self.answer}{self.gap}{LETTERS[letter]}"


ENGLISH = Wording("The following are multiple choice questions (with answers) about {subject}.\n\n", "Answer:", " ")
CHINESE = Wording("以下是单项选择题，请选出其中的正确答案。\n\n", "答案：", "")


class PromptedQuestion(NamedTuple):
    """A question as the model reads it: its place in the subject, the number of examples before it, the token ids of its
    text with each letter, and whether its beginning had to be cut off."""

    place: int
    shots: int
    texts: list[list[int]]
    cut: bool

    @property
    def shared(self) -> int:
        """Number of tokens with which all texts begin."""
        return _shared(self.texts)

    @property
    def rows(self) -> list[tuple[int, ...]]:
        """What the model reads: all but the last token of each text. One row where every letter is one token."""
        return sorted({tuple(text[:-1]) for text in self.texts})


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
    long for the context loses its beginning. limit: only the first questions of each subject. batch_tokens: positions
    read at once, the prefix included. progress(done, total) counts questions. Raises UserError where no question fits, and
    where the model's figures are not finite.
    """
    wording = CHINESE if exam.chinese else ENGLISH
    plans = []
    for subject in exam.subjects.values():
        prefix = _prefix(backbone.tokenizer, wording, subject, shots)
        plans.append((subject, prefix, _prompted(backbone, wording, subject.questions[:limit], prefix)))
    if all(question.cut for *_, prompted in plans for question in prompted):
        raise UserError(
            f"no question of '{exam.name}' fits in the model's context of {backbone.context} tokens: it cannot sit this exam"
        )
    total, done = sum(len(prompted) for *_, prompted in plans), 0
    figures: dict[str, dict[str, Any]] = {}
    for subject, prefix, prompted in plans:
        right = [False] * len(prompted)
        for question, scores in _scored(backbone, prefix, prompted, batch_tokens):
            right[question.place] = scores.index(max(scores)) == subject.questions[question.place].answer
            done += 1
            if progress:
                progress(done, total)
        shown = [question.shots for question in prompted]
        figures[subject.name] = {
            "split": subject.split,
            "questions": len(prompted),
            "right": sum(right),
            **_mean(sum(right), len(right)),
            "chance": sum(1 / len(question.texts) for question in prompted) / len(prompted),
            "shots": [min(shown), max(shown)],
            "mean_shots": sum(shown) / len(shown),
            "cut": sum(question.cut for question in prompted),
        }
    return _summary(list(figures.values())) | {"wording": "Chinese" if exam.chinese else "English", "subjects": figures}


def _mean(right: int, count: int) -> dict[str, float]:
    """The share of right answers and its binomial standard error."""
    share = right / count
    return {"accuracy": share, "accuracy_se": sqrt(share * (1 - share) / max(1, count - 1))}


def _summary(subjects: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over all questions, and over subjects (which are fixed; the questions are a sample)."""
    count = sum(subject["questions"] for subject in subjects)

    def over_questions(name: str) -> float:
        return sum(subject[name] * subject["questions"] for subject in subjects) / count

    return {
        "questions": count,
        **_mean(sum(subject["right"] for subject in subjects), count),
        "chance": over_questions("chance"),
        "subject_mean": sum(subject["accuracy"] for subject in subjects) / len(subjects),
        "subject_mean_se": sqrt(sum(subject["accuracy_se"] ** 2 for subject in subjects)) / len(subjects),
        "subject_chance": sum(subject["chance"] for subject in subjects) / len(subjects),
        "mean_shots": over_questions("mean_shots"),
        "cut": sum(subject["cut"] for subject in subjects),
    }


# -- token ids -------------------------------------------------------------------------------------


def _prefix(tokenizer: PreTrainedTokenizerBase, wording: Wording, subject: Subject, shots: int) -> list[list[int]]:
    """Token ids of the introduction, and of each example."""
    texts = [wording.intro.format(subject=subject.name.replace("_", " "))]
    for example in subject.examples[:shots]:
        if example.answer is not None:
            texts.append(f"{wording.text(example, example.answer)}\n\n")
    intro, *examples = text_ids(tokenizer, texts)
    begins = tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]  # where the tokenizer itself puts one
    return [[tokenizer.bos_token_id, *intro] if begins else intro, *examples]


def _prompted(
    backbone: Backbone, wording: Wording, questions: Sequence[Question], prefix: list[list[int]]
) -> list[PromptedQuestion]:
    """Each question with as many examples before it as the context holds."""
    ends = list(accumulate(map(len, prefix)))  # positions of the prefix with 0, 1, ... examples
    texts = [wording.text(question, letter) for question in questions for letter in range(len(question.choices))]
    ids, prompted = iter(text_ids(backbone.tokenizer, texts)), []
    for place, question in enumerate(questions):
        of_letters = [next(ids) for _ in question.choices]
        space = backbone.context - (max(map(len, of_letters)) - 1)  # the last token is predicted, not read
        shots = max((count for count, end in enumerate(ends) if end <= space), default=0)
        lost = max(0, ends[shots] - space)
        if lost >= _shared(of_letters):
            raise UserError(f"the model's context of {backbone.context} tokens is too short for any question")
        prompted.append(PromptedQuestion(place, shots, [text[lost:] for text in of_letters], lost > 0))
    return prompted


def _shared(texts: list[list[int]]) -> int:
    """Number of tokens with which all of them begin."""
    return next((place for place, tokens in enumerate(zip(*texts)) if len(set(tokens)) > 1), min(map(len, texts)))


# -- scores ----------------------------------------------------------------------------------------


@torch.inference_mode()
def _scored(
    backbone: Backbone, prefix: list[list[int]], prompted: list[PromptedQuestion], batch_tokens: int
) -> Iterator[tuple[PromptedQuestion, list[float]]]:
    """Each question with log p of each of its letters, up to what all of them share."""
    ends = list(accumulate(map(len, prefix)))  # positions of the prefix with 0, 1, ... examples
    plan: list[tuple[int, list[PromptedQuestion]]] = []
    for shots in sorted({question.shots for question in prompted}, reverse=True):  # each overwrites the next examples
        some = {question.place: question for question in prompted if question.shots == shots}
        lengths = {
            place: len(question.rows) * (ends[shots] + max(map(len, question.rows))) for place, question in some.items()
        }
        plan += [(ends[shots], [some[place] for place in batch]) for batch in batches(lengths, batch_tokens)]
    rows = max(sum(len(question.rows) for question in batch) for _, batch in plan)
    capacity = max(start + len(row) for start, batch in plan for question in batch for row in question.rows)
    start = plan[0][0]
    cache = backbone.cache(rows, max(start, capacity))
    cache.set_active(0, 1)
    ids = torch.tensor([list(chain(*prefix))[:start]], device=backbone.device)
    backbone.decode(ids, torch.arange(start, device=ids.device)[None], cache, None, at=ids.new_zeros(1))
    for buffer in cache.buffers:
        buffer[:, 1:, :, :start] = buffer[:, :1, :, :start]
    for start, batch in plan:
        yield from zip(batch, _letters(backbone, cache, start, batch))


def _letters(backbone: Backbone, cache: TreeCache, start: int, batch: list[PromptedQuestion]) -> list[list[float]]:
    """log p of each letter of these questions, after `start` positions that the cache holds in every row."""
    rows = [(question.place, row) for question in batch for row in question.rows]
    number = {row: place for place, row in enumerate(rows)}
    length = max(len(row) for _, row in rows)
    ids = torch.tensor([[*row, *[0] * (length - len(row))] for _, row in rows], device=backbone.device)  # (R,T)
    cache.lengths = [start] * len(cache.lengths)  # what the batch before has written is overwritten
    cache.set_active(0, len(rows))
    positions = torch.arange(start, start + length, device=ids.device).expand(len(rows), -1)
    _, features = backbone.decode(ids, positions, cache, None, at=ids.new_zeros(len(rows)))
    picked = [  # row, position, the token after it, question and letter
        (number[question.place, tuple(text[:-1])], place - 1, text[place], b, letter)
        for b, question in enumerate(batch)
        for letter, text in enumerate(question.texts)
        for place in range(question.shared, len(text))
    ]
    row, position, token, b, letter = torch.tensor(picked, device=ids.device).unbind(dim=1)
    losses = token_losses(backbone, features.hidden[row, position], token).double()
    if not losses.isfinite().all():
        raise UserError(NOT_FINITE)
    scores = losses.new_zeros(len(batch), len(LETTERS)).index_put_((b, letter), -losses, accumulate=True)
    return [of_letters[: len(question.texts)].tolist() for of_letters, question in zip(scores, batch)]
