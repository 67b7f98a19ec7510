"""Small corpora for the stages of a language model's training, easy enough for a few million parameters in minutes.

| file              | a row                                                                                     |
|-------------------|-------------------------------------------------------------------------------------------|
| pretrain.jsonl    | {"text"}: stories, letters, and questions with their answers, as plain text               |
| chats.jsonl       | {"topic", "messages"}: a question with a short answer, of the families that are learned soonest |
| preferences.jsonl | {"topic", "prompt", "chosen", "rejected", "fault"}: a chat, and its answer with a fault a reader sees |
| reasoning.jsonl   | {"topic", "messages"}: small sums, thought through between tags                           |
| identity.jsonl    | {"messages"}: who the model is                                                            |

Rows are decided by the seed alone, and within a file no two have the same prompt. What any of them would hold out as a
prompt (by `mhc.text.splits`) is in no text of pretraining, so held-out answers cannot have been read there.
"""

import json
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random

from mhc.errors import UserError
from mhc.text.splits import prompt_number, split_of
from mhc.util.files import write_atomically

from .arithmetic import averages, journeys, shopping, sums, units
from .dates import after, times
from .facts import belong, compare, describe, rank, riddle
from .faults import FAULTS
from .grammar import Family, Pen
from .household import advice, packing, recipe
from .identity import identity
from .letters import letter
from .lists import words
from .passages import passage
from .reasoning import PROBLEMS, tagged
from .stories import story
from .voices import OPENINGS
from .words import word

COUNTS = {"pretrain": 16_000, "chats": 8_000, "preferences": 3_000, "reasoning": 4_000}

TEXTS: list[tuple[Family, float]] = [
    (describe, 8), (riddle, 4), (belong, 2), (compare, 1), (rank, 1), (word, 4), (words, 1), (passage, 2), (story, 2), (letter, 1),
    (advice, 3), (recipe, 2), (packing, 1), (sums, 1), (units, 1), (shopping, 1), (journeys, 1), (averages, 1), (after, 1), (times, 1),
]  # fmt: skip
CHATS: list[tuple[Family, float]] = [(describe, 6), (riddle, 3), (belong, 2), (rank, 1.5), (word, 3), (advice, 2)]
ALONE = ("stories", "letters")  # topics whose answers are texts by themselves
LONGEST = 240  # characters of a chat, both turns together
EXHAUSTED = 10_000  # draws in a row without a new row, after which there are no more
VOICED = tuple(  # how answers in a voice begin
    start.strip() for voice, some in OPENINGS.items() if voice != "plain" for start in some.strip("{}").split("|")
)


def documents(count: int, seed: int = 0) -> Iterator[dict]:
    """`count` different texts {"text"}."""
    pen, seen = Pen(Random(f"documents {seed}")), _Seen()
    while len(seen) < count:
        topic, turns = _draw(pen, TEXTS)
        text = turns[1] if topic in ALONE else "\n".join(turns)
        if not _voiced(turns[1]) and split_of(turns[0]) == "train" and seen.is_new(text):
            yield {"text": text}


def chats(count: int, seed: int = 0) -> Iterator[dict]:
    """`count` conversations {"topic", "messages"} of two short turns."""
    for topic, prompt, answer in _pairs(f"chats {seed}", count):
        yield {"topic": topic, "messages": _messages(prompt, answer)}


def preferences(count: int, seed: int = 0) -> Iterator[dict]:
    """`count` rows {"topic", "prompt", "chosen", "rejected", "fault"}: an answer as `chats` has it, and the same with the
    fault of `mhc.corpus.faults` that is named."""
    rng = Random(f"faults {seed}")
    before: dict[str, deque[str]] = {}  # the latest answers by topic
    for topic, prompt, chosen in _pairs(f"preferences {seed}", count):
        others = before.setdefault(topic, deque(maxlen=8))
        order = rng.sample(list(FAULTS), len(FAULTS))
        if rng.random() < 0.5:  # few answers have a number
            order.insert(0, "number")
        for fault in order:
            rejected = FAULTS[fault](rng, chosen, [other for other in others if not _alike(other, prompt + chosen)])
            if rejected is not None and rejected != chosen:
                break
        others.append(chosen)
        yield {"topic": topic, "prompt": prompt, "chosen": chosen, "rejected": rejected, "fault": fault}


def reasoning(count: int, seed: int = 0) -> Iterator[dict]:
    """`count` problems {"topic", "messages"} whose answers are <think>steps</think> and <answer>result</answer>, every
    tag and every text on lines of their own."""
    pen, seen = Pen(Random(f"reasoning {seed}")), _Seen()
    while len(seen) < count:
        problem = pen.pick(PROBLEMS)
        prompt, steps, result = problem(pen)
        if seen.is_new(prompt):
            yield {"topic": problem.__name__, "messages": _messages(prompt, tagged(steps, result))}


def write(
    folder: Path,
    counts: Mapping[str, int] = COUNTS,
    seed: int = 0,
    name: str = "Pocket",
    author: str = "the mhc project",
) -> dict[str, Path]:
    """Write the five files into `folder`, each whole or not at all; their paths by stage ("pretrain", "chats", ...).

    counts: rows of the first four stages, `COUNTS` where it does not say. The same arguments give the same bytes.
    """
    makers = {"pretrain": documents, "chats": chats, "preferences": preferences, "reasoning": reasoning}
    counts = COUNTS | dict(counts)
    rows = {stage: makers[stage](counts[stage], seed) for stage in makers} | {"identity": identity(name, author)}
    paths = {stage: Path(folder) / f"{stage}.jsonl" for stage in rows}
    for stage, path in paths.items():

        def lines(target: Path, stage: str = stage) -> None:
            with open(target, "w", encoding="utf-8", newline="\n") as file:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[stage])

        write_atomically(path, lines)
    return paths


class _Seen:
    """The texts so far, by a hash of their words."""

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self.repeats = 0  # draws since the last new text

    def __len__(self) -> int:
        return len(self.numbers)

    def is_new(self, text: str) -> bool:
        """Whether the text has not been there before. Raises UserError where no new text comes any more."""
        number = prompt_number(text)
        if number in self.numbers:
            self.repeats += 1
            if self.repeats == EXHAUSTED:
                raise UserError(f"there are about {len(self)} different rows of this kind: ask for fewer")
            return False
        self.repeats = 0
        self.numbers.add(number)
        return True


def _pairs(seed: str, count: int) -> Iterator[tuple[str, str, str]]:
    """`count` times topic, prompt and short plain answer."""
    pen, seen = Pen(Random(seed)), _Seen()
    while len(seen) < count:
        topic, (prompt, answer, *_) = _draw(pen, CHATS)
        if len(prompt) + len(answer) <= LONGEST and not _voiced(answer) and seen.is_new(prompt):
            yield topic, prompt, answer


def _draw(pen: Pen, families: Sequence[tuple[Family, float]]) -> tuple[str, list[str]]:
    return pen.rng.choices([family for family, _ in families], [weight for _, weight in families])[0](pen)


def _voiced(answer: str) -> bool:
    """Whether the answer is in one of the voices."""
    return answer.startswith(VOICED)


def _alike(one: str, other: str) -> bool:
    """Whether they may be about the same thing: a long word in common."""
    first, second = ({word.strip(".,;:!?\"'").lower() for word in text.split()} for text in (one, other))
    return any(len(word) > 5 for word in first & second)


def _messages(prompt: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
