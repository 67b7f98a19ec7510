"""Which split a conversation belongs to: a pure function of its first user prompt, used everywhere."""

import hashlib


def split_of(prompt: str) -> str:
    """Return "train", "validation" or "test" (94, 3 and 3 percent) by the sha256 of the prompt's words."""
    digest = hashlib.sha256(" ".join(prompt.split()).encode("utf-8", "surrogatepass")).digest()
    percent = int.from_bytes(digest[:8], "big") % 100
    if percent < 94:
        return "train"
    return "validation" if percent < 97 else "test"
