"""How well a tokenizer compresses text of each script: bytes and characters per token.

The unit is a document. Its script is decided by its letters' Unicode names; one with few letters among its characters is
code, tables or numbers.
"""

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

FEWEST_LETTERS = 0.7  # of the characters that are not white space; prose has 0.8 and more, code and sums less
OTHER = "code, numbers"
NAMES = {"CJK": "Han", "FULLWIDTH": "Latin", "HIRAGANA": "Kana", "KATAKANA": "Kana", "HALFWIDTH": "Kana"}
KANA = 0.1  # of kana among kana and Han, above which Han is Japanese
BATCH = 256  # documents tokenized at once


@dataclass
class Size:
    """The size of some documents; tokens: by name of the tokenizer."""

    documents: int
    bytes: int
    characters: int
    tokens: dict[str, int]

    def figures(self) -> dict[str, Any]:
        """The sizes with bytes and characters per token of each tokenizer, for JSON."""
        per_token = {
            name: {
                "tokens": tokens,
                "bytes_per_token": round(self.bytes / tokens, 4),
                "characters_per_token": round(self.characters / tokens, 4),
            }
            for name, tokens in self.tokens.items()
        }
        return {"documents": self.documents, "bytes": self.bytes, "characters": self.characters} | per_token


def compression(
    documents: Sequence[str],
    tokenizers: dict[str, PreTrainedTokenizerBase],
    each: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, Size], int]:
    """By script (the most frequent first, "all" last) the size of the documents, none of them empty, under every
    tokenizer; and the number of them that the first tokenizer encodes and decodes unchanged. each: called with the number of
    documents of each batch that is done."""
    sizes: dict[str, Size] = {}
    exact = 0
    for start in range(0, len(documents), BATCH):
        some = documents[start : start + BATCH]
        ids = {
            name: tokenizer(some, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
            for name, tokenizer in tokenizers.items()
        }
        first = next(iter(tokenizers))
        exact += sum(text == decoded for text, decoded in zip(some, tokenizers[first].batch_decode(ids[first])))
        for number, text in enumerate(some):
            for row in (script_of(text), "all"):
                size = sizes.setdefault(row, Size(0, 0, 0, dict.fromkeys(tokenizers, 0)))
                size.documents += 1
                size.bytes += len(text.encode())
                size.characters += len(text)
                for name in tokenizers:
                    size.tokens[name] += len(ids[name][number])
        each(len(some))
    order = sorted(sizes, key=lambda row: (row == "all", -sizes[row].bytes, row))
    return {row: sizes[row] for row in order}, exact


def script_of(text: str) -> str:
    """The script of most letters: "Latin", "Han", "Japanese", "Cyrillic", ...; "code, numbers" where letters are few."""
    characters = Counter(character for character in text if not character.isspace())
    scripts: Counter[str] = Counter()
    for character, count in characters.items():
        scripts[_script(character)] += count
    del scripts[""]
    if scripts.total() < FEWEST_LETTERS * characters.total() or not scripts:
        return OTHER
    if len(scripts) > 1:
        del scripts["Combining"]  # accents stand on letters of any script
    if scripts["Kana"] > KANA * (scripts["Kana"] + scripts["Han"]):
        scripts["Japanese"] = scripts.pop("Kana") + scripts.pop("Han", 0)
    return max(scripts, key=lambda script: (scripts[script], script))


@lru_cache(maxsize=1 << 16)
def _script(character: str) -> str:
    """The script of a letter or of a combining mark, else ""."""
    if unicodedata.category(character)[0] not in "LM":
        return ""
    first = unicodedata.name(character, "unnamed").replace("-", " ").split()[0]
    return NAMES.get(first, first.title())
