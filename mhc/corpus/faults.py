"""Faults that a reader sees at once, put into a good answer.

Each takes a random generator, the answer and answers to other questions of its topic, and gives the faulty answer, or None where this
answer cannot have that fault.
"""

import re
from collections.abc import Callable, Sequence
from random import Random

NUMBER = re.compile(r"\d+")
SENTENCE = re.compile(r"(?:[^.!?]|\.\d)+[.!?]+\s*")
RUDE = ["What a stupid question.", "You should know that yourself.", "Do not waste my time.",
        "Only a fool would ask this.", "Why do you bother me with that?", "I have better things to do.",
        "Are you too lazy to look it up?", "How boring you are."]  # fmt: skip
BEGIN = ["Well,", "Hmm,", "So,", "Now,", "Let me see,", "Okay,", "Right,", "Oh,"]
MIDDLE = ["that is a thing that one can ask", "there is a lot that could be said here",
          "I was thinking about this the other day", "it is hard to know where to begin",
          "people ask me this and other things", "before I answer I want to say something",
          "questions are questions, as they say", "some say this and some say that"]  # fmt: skip
END = ["and so on and so on.", "but where was I?", "or maybe not, who knows.",
       "and that reminds me of something else.", "as I have said before, or have I?",
       "but let us not talk about that."]  # fmt: skip


def wrong(rng: Random, answer: str, others: Sequence[str]) -> str | None:
    """The answer to another question."""
    return rng.choice(others) if others else None


def number(rng: Random, answer: str, others: Sequence[str]) -> str | None:
    """One of its numbers is another."""
    matches = list(NUMBER.finditer(answer))
    if not matches:
        return None
    chosen = rng.choice(matches)
    value = int(chosen[0])
    other = rng.randint(value // 2, 2 * value + 9)
    return answer[: chosen.start()] + str(other + (other >= value)) + answer[chosen.end() :]


def repeated(rng: Random, answer: str, others: Sequence[str]) -> str | None:
    """A sentence is said two or three times."""
    matches = list(SENTENCE.finditer(answer))
    if not matches:
        return None
    chosen = rng.choice(matches)
    again = " ".join([chosen[0].strip()] * rng.randint(1, 2))
    return f"{answer[: chosen.end()].rstrip()} {again} {answer[chosen.end() :]}".rstrip()


def cut(rng: Random, answer: str, others: Sequence[str]) -> str | None:
    """It breaks off in the middle of a sentence."""
    words = answer.split(" ")
    places = [n for n in range(2, len(words) - 1) if words[n - 1][-1:].isalpha()]
    return " ".join(words[: rng.choice(places)]) if places else None


def rude(rng: Random, answer: str, others: Sequence[str]) -> str | None:
    """The user is insulted first."""
    return f"{rng.choice(RUDE)} {answer}"


def rambling(rng: Random, answer: str, others: Sequence[str]) -> str | None:
    """It comes to the point late."""
    return f"{rng.choice(BEGIN)} {rng.choice(MIDDLE)}, {rng.choice(END)} {answer}"


FAULTS: dict[str, Callable[[Random, str, Sequence[str]], str | None]] = {
    each.__name__: each for each in (wrong, number, repeated, cut, rude, rambling)
}
