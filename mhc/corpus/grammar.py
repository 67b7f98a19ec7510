"""A tiny grammar: `{a|b}` chooses, `<name>` fills in, and a pen writes.

Two ways of choosing. `Pen.ask` chooses at random: prompts may be worded anyhow. `Pen.say` chooses by *cues*,
things the prompt shows (a voice, a subject, a place): the same cues give the same wording. A model that decodes
greedily can thus learn every wording, where a random choice would collapse to the commonest one.
"""

import re
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any, NamedTuple

Parts = tuple["str | Slot | Choice", ...]  # of a template, in order


class Slot(NamedTuple):
    """A place that a value is filled into."""

    name: str


class Choice(NamedTuple):
    """Alternatives; the key tells choices apart, in a template and between templates."""

    key: int
    alternatives: tuple[Parts, ...]


@cache
def parse(template: str) -> Parts:
    """Split a template (`a|b` alone is `{a|b}`) into literals, slots and choices."""
    whole = "{" + template + "}"
    parts, rest = _sequence(whole, 0, whole, top=True)
    assert rest == len(whole), f"unbalanced braces: {template}"
    (choice,) = parts
    assert isinstance(choice, Choice), template
    return parts if len(choice.alternatives) > 1 else choice.alternatives[0]


def _sequence(text: str, at: int, whole: str, top: bool = False) -> tuple[Parts, int]:
    parts: list[str | Slot | Choice] = []
    literal = ""
    while at < len(text):
        sign = text[at]
        if not top and sign in "|}":
            break
        if sign == "}":
            raise ValueError(f"unbalanced braces: {whole}")
        if sign == "{":
            parts, literal = ([*parts, literal] if literal else parts), ""
            key = zlib.crc32(f"{at}:{whole}".encode())
            alternatives: list[Parts] = []
            at += 1
            while True:
                alternative, at = _sequence(text, at, whole)
                alternatives.append(alternative)
                at += 1
                if text[at - 1] == "}":
                    break
            parts.append(Choice(key, tuple(alternatives)))
        elif sign == "<":
            end = text.index(">", at)
            parts, literal = ([*parts, literal] if literal else parts), ""
            parts.append(Slot(text[at + 1 : end]))
            at = end + 1
        else:
            literal += sign
            at += 1
    if literal:
        parts.append(literal)
    return tuple(parts), at


def _render(parts: Parts, slots: dict[str, object], choose: Callable[[int, int], int], out: list[str]) -> None:
    for part in parts:
        if isinstance(part, str):
            out.append(part)
        elif isinstance(part, Slot):
            out.append(str(slots[part.name]))
        else:
            _render(part.alternatives[choose(part.key, len(part.alternatives))], slots, choose, out)


ARTICLE = re.compile(r"\b([Aa])\(n\) (\W*)(\w+)")
SPACES = re.compile(r"(?<=\S) {2,}")
PUNCTUATION = re.compile(r"(?<=\S) +([.,;:!?])(?=\s|$)")
START = re.compile(r"(^|[.!?] |\n\n)([a-z])")
AN = re.compile(r"(?!uni|use|usu|eu|one\b|once|uk)[aeiou]|hour|honest|heir|8|11\b|18\b", re.IGNORECASE)


def article(word: str) -> str:
    """Return "a" or "an", whichever goes before `word`."""
    return "an" if AN.match(word) else "a"


def tidy(text: str) -> str:
    """Settle a(n), doubled spaces and capitals at the start of sentences (prose only, not code or tables)."""
    text = SPACES.sub(" ", text)
    if "(n)" in text:
        text = ARTICLE.sub(lambda m: m[1] + article(m[3])[1:] + " " + m[2] + m[3], text)
    text = PUNCTUATION.sub(r"\1", text)
    return START.sub(lambda m: m[1] + m[2].upper(), text.strip())


def join(items: Sequence[str], word: str = "and") -> str:
    """Join as English does: "a", "a and b", "a, b and c"."""
    items = list(items)
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" {word} {items[-1]}"


def plural(noun: str) -> str:
    """Return the plural of a countable noun."""
    irregular = {"child": "children", "mouse": "mice", "foot": "feet", "tooth": "teeth", "knife": "knives",
                 "loaf": "loaves", "leaf": "leaves", "shelf": "shelves", "sheep": "sheep", "wolf": "wolves",
                 "goose": "geese", "fish": "fish", "man": "men", "woman": "women", "scarf": "scarves",
                 "person": "people", "potato": "potatoes", "tomato": "tomatoes", "mango": "mangoes",
                 "piano": "pianos", "octopus": "octopuses"}  # fmt: skip
    for ending, other in irregular.items():
        if noun == ending or noun.endswith(" " + ending):
            return noun[: -len(ending)] + other
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def count(number: int, noun: str) -> str:
    """Return "1 apple", "3 apples"."""
    return f"{number} {noun if number == 1 else plural(noun)}"


class Pen:
    """Writes prompts (`ask`, free choices) and answers (`say`, choices bound to the cues of the prompt)."""

    def __init__(self, rng: Random):
        self.rng = rng
        self._random = rng.random
        self._cues = [0]

    def cue(self, *cues: object) -> None:
        """Name what the prompt shows that decides the wording of the answers to come."""
        self._cues = [zlib.crc32(str(cue).encode()) for cue in cues]

    def pick(self, options: Sequence) -> Any:
        """Choose one at random."""
        return options[int(self._random() * len(options))]

    def sample(self, options: Sequence, number: int) -> list:
        """Choose `number` different ones in random order."""
        return self.rng.sample(options, number)

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return self._random() < probability

    def between(self, low: int, high: int) -> int:
        """Return an integer from `low` to `high`, both included."""
        return low + int(self._random() * (high - low + 1))

    def _free(self, key: int, alternatives: int) -> int:
        return int(self._random() * alternatives)

    def _bound(self, key: int, alternatives: int) -> int:
        cue = self._cues[key % len(self._cues)]
        return (((cue ^ key) * 0x9E3779B1 & 0xFFFFFFFF) >> 12) % alternatives

    def ask(self, template: str, **slots: object) -> str:
        """Expand a template with random choices; one that begins with a space continues a text."""
        out: list[str] = []
        _render(parse(template), slots, self._free, out)
        return (" " if template[0] == " " else "") + tidy("".join(out))

    def say(self, template: str, **slots: object) -> str:
        """Expand a template with the choices that the cues decide."""
        out: list[str] = []
        _render(parse(template), slots, self._bound, out)
        return tidy("".join(out))

    def raw(self, template: str, **slots: object) -> str:
        """Expand as `say` does, for a part of a sentence: nothing is tidied."""
        out: list[str] = []
        _render(parse(template), slots, self._bound, out)
        return "".join(out)


Family = Callable[[Pen], tuple[str, list[str]]]  # draws a topic and the turns of a dialogue, a user's first
