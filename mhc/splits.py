"""Which split a conversation belongs to: a pure function of its first user prompt, used everywhere."""

import hashlib


def prompt_number(prompt: str) -> int:
    """64 bits of the sha256 of the prompt's words: an order of prompts that has nothing to do with their place in a file."""
    digest = hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big")


def split_of(prompt: str | int) -> str:
    """Return "train", "validation" or "test" (94, 3 and 3 percent) of a prompt, or of its `prompt_number`."""
    percent = (prompt if isinstance(prompt, int) else prompt_number(prompt)) % 100
    if percent < 94:
        return "train"
    return "validation" if percent < 97 else "test"
