"""The corpus: an endless, reproducible stream of short dialogues for the small chat model.

A dialogue is drawn from one family of topics; `documentation_share` of them ask about Python's own documentation.
"""

import hashlib
import json
from collections.abc import Iterator
from itertools import accumulate
from random import Random

from . import arithmetic, dates, facts, functions, household, letters, lists, passages, stories, words
from .documentation import docstring, reference
from .grammar import Family, Pen

SHARES = ((arithmetic, 3), (dates, 2), (facts, 7), (lists, 3), (passages, 6), (stories, 8), (letters, 7), (functions, 4),
          (household, 6), (words, 2))  # fmt: skip


def _families() -> tuple[list[Family], list[float]]:
    """All families of topics, and their cumulated weights."""
    families, weights = [], []
    for module, share in SHARES:
        total = sum(weight for _, weight in module.FAMILIES)
        families += [family for family, _ in module.FAMILIES]
        weights += [share * weight / total for _, weight in module.FAMILIES]
    return families, list(accumulate(weights))


POCKET_COUNT = 60_000  # dialogues of the corpus by default


def dialogues(count: int, seed: int = 0, documentation_share: float = 0.1) -> Iterator[dict]:
    """Yield `count` dialogues {"id", "topic", "messages"} with different first prompts, decided by `seed` alone."""
    rng = Random(f"corpus {seed}")
    pen = Pen(rng)
    families, weights = _families()
    seen: set[bytes] = set()  # for membership only: the order of a set is never used
    number = 0
    while number < count:
        if rng.random() < documentation_share:
            topic, turns = (reference if rng.random() < 0.3 else docstring)(pen)
        else:
            topic, turns = rng.choices(families, cum_weights=weights)[0](pen)
        key = hashlib.blake2b(" ".join(turns[0].split()).encode(), digest_size=12).digest()
        if key in seen:
            continue
        seen.add(key)
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]
        yield {"id": f"{topic}-{seed}-{number}", "topic": topic, "messages": messages}
        number += 1


def fingerprint(count: int, seed: int = 0, documentation_share: float = 0.1) -> str:
    """Return the sha256 (hex) of the dialogues' JSON lines."""
    digest = hashlib.sha256()
    for dialogue in dialogues(count, seed, documentation_share):
        digest.update(json.dumps(dialogue, ensure_ascii=False, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
