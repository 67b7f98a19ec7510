"""Chat messages, without anything that is slow to import."""

from collections.abc import Callable
from typing import Any

Messages = list[dict[str, Any]]  # {"role": "system" | "user" | "assistant" | "tool", "content": text}
# What a message may say beside its content: the functions a system turn offers, an assistant's reasoning and calls.
STRUCTURE = {"system": {"tools": list}, "assistant": {"reasoning_content": str, "tool_calls": list}}


def clean_text(text: str) -> str:
    """The text with lone surrogates (which no tokenizer accepts) replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def each_text(value: Any, change: Callable[[str], str]) -> Any:
    """`value` (a text, or lists and objects of JSON with texts in them) with every text changed, names of fields too."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [each_text(item, change) for item in value]
    if isinstance(value, dict):
        return {each_text(name, change): each_text(item, change) for name, item in value.items()}
    return value
