"""Texts of about one length together, so that padding costs little."""

from collections.abc import Hashable, Iterator, Mapping
from typing import TypeVar

Key = TypeVar("Key", bound=Hashable)


def batches(lengths: Mapping[Key, int], tokens: int) -> Iterator[list[Key]]:
    """The keys in batches of at most `tokens` positions, padding included (or a single text that is longer).

    lengths: tokens of each text. The longest come first, so that what does not fit in memory shows at once.
    """
    order = sorted(lengths, key=lambda key: -lengths[key])
    while order:
        count = max(1, tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]
