"""Chat messages; imports nothing slow."""

from collections.abc import Callable
from typing import Any

from mhc.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
Messages = list[dict[str, Any]]  # {"role": "system" | "user" | "assistant" | "tool", "content": text}
# What a message may have beside its content: the functions a system turn offers, an assistant's reasoning and calls, the
# name of the function and the number of the call that a tool turn has the result of.
STRUCTURE: dict[str, dict[str, type]] = {
    "system": {"tools": list},
    "assistant": {"reasoning_content": str, "tool_calls": list},
    "tool": {"name": str, "tool_call_id": str},
}
# Of an assistant's message, for training alone: weight 0 is not learned; token_ids are what was decoded, its end included.


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


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two messages of one role as one: contents by a blank line, lists of tools and calls end to end. Learned if both are."""
    both = {"role": first["role"], "content": "\n\n".join(filter(None, (first["content"], second["content"])))}
    for name in STRUCTURE.get(first["role"], {}):
        parts = [message[name] for message in (first, second) if message.get(name)]
        if parts:
            both[name] = "\n\n".join(parts) if isinstance(parts[0], str) else [each for part in parts for each in part]
    if not min(message.get("weight", 1) for message in (first, second)):
        both["weight"] = 0
    return both


def learned(message: dict[str, Any]) -> bool:
    """Whether this is an answer to learn."""
    return message["role"] == "assistant" and message.get("weight", 1) != 0


def checked(messages: Messages) -> Messages:
    """Messages with known roles and clean text. Neighbours of one role are joined by a blank line, except tool turns and
    messages with more than content. Raises UserError with the number of a message that is malformed."""
    if not messages:
        raise UserError("an empty conversation: give at least one message")
    result: Messages = []
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        known = STRUCTURE.get(role, {}) if role in ROLES else {}
        more = {name: each_text(message[name], clean_text) for name in known if message.get(name)}
        for name, value in more.items():
            if not isinstance(value, known[name]):
                raise UserError(f"message {number}: {name} must be a {'text' if known[name] is str else 'list'}")
        content = "" if content is None and more else content
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"message {number}: role must be one of {', '.join(ROLES)} and content a text")
        if role == "assistant":
            more |= {name: message[name] for name in ("weight", "token_ids") if name in message}
        if result and result[-1]["role"] == role != "tool" and not more and len(result[-1]) == 2:
            content = result.pop()["content"] + "\n\n" + content
        result.append({"role": role, "content": clean_text(content), **more})
    return result
