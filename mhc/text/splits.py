"""Which split a conversation belongs to: a pure function of its first user prompt, used everywhere."""

import hashlib
from collections.abc import Sequence

SPLITS = ("train", "validation", "test")


def prompt_number(prompt: str) -> int:
    """64 bits of the sha256 of the prompt's words: an order of prompts that does not depend on their place in a file."""
    digest = hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def split_of(prompt: str | int) -> str:
    """Return "train", "validation" or "test" (94, 3 and 3 percent) of a prompt, or of its `prompt_number`."""
    percent = (prompt if isinstance(prompt, int) else prompt_number(prompt)) % 100
    if percent < 94:
        return "train"
    return "validation" if percent < 97 else "test"


def split_conversations(numbers: Sequence[int], limit: int | None = None) -> dict[str, list[int]]:
    """By split, the places of the conversations with these prompt_numbers, at most `limit` in all; a validation or test
    split left empty takes a tenth of the training prompts."""
    splits: dict[str, list[int]] = {name: [] for name in SPLITS}
    # The first by hash, in their old order: files are often sorted, a sample should not be.
    by_hash = sorted(range(len(numbers)), key=lambda place: (numbers[place], place)) if limit is not None else []
    for place in sorted(by_hash[:limit]) if limit is not None else range(len(numbers)):
        splits[split_of(numbers[place])].append(place)
    for name in ("validation", "test"):
        # Whole prompts move, so that no prompt is in two splits; the last one stays for training.
        different = sorted({numbers[place] for place in splits["train"]}) if not splits[name] else []
        if len(different) > 1:
            moved = set(different[: max(1, len(different) // 10)])
            splits[name] = [place for place in splits["train"] if numbers[place] in moved]
            splits["train"] = [place for place in splits["train"] if numbers[place] not in moved]
    return splits
