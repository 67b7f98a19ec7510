"""Chat messages, without anything that is slow to import."""

Messages = list[dict[str, str]]  # {"role": "system" | "user" | "assistant" | "tool", "content": text}


def clean_text(text: str) -> str:
    """The text with lone surrogates (which no tokenizer accepts) replaced by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
