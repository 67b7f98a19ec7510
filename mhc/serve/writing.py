"""Answers as OpenAI writes them, whole or in chunks: chat completions and text completions."""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from mhc.serve.answers import Choice, Delta, chat_logprobs, text_logprobs, usage


class Writer(ABC):
    """For one request. top: how many likeliest tokens are returned, or None where log-probabilities are not wanted."""

    prefix: str
    kinds: tuple[str, str]  # of a whole answer, of a chunk

    def __init__(self, tokenizer: Any, model: str, fingerprint: str, top: int | None, details: bool):
        self.tokenizer, self.top, self.details = tokenizer, top, details
        served = {"model": model, "system_fingerprint": fingerprint}
        self.head = {"id": f"{self.prefix}-{uuid.uuid4().hex}", "created": int(time.time())} | served

    @abstractmethod
    def opening(self, index: int) -> dict[str, Any] | None:
        """The first chunk of a choice, if there is one before any text."""

    @abstractmethod
    def text_delta(self, text: str) -> dict[str, Any]:
        """New text in a chunk."""

    @abstractmethod
    def whole(self, text: str) -> dict[str, Any]:
        """A choice's whole text."""

    @abstractmethod
    def write_logprobs(self, tokens: list, top: int, start: int) -> dict[str, Any]:
        """Log-probabilities of these tokens, whose text starts at character `start`, and of the `top` likeliest."""

    def logprobs(self, tokens: list, start: int) -> dict[str, Any] | None:
        """The same, where they are wanted."""
        return None if self.top is None else self.write_logprobs(tokens, self.top, start)

    def chunk(
        self, index: int, content: dict[str, Any], finish_reason: str | None = None, logprobs: Any = None
    ) -> dict[str, Any]:
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": finish_reason}
        return {"object": self.kinds[1], **self.head, "choices": [choice]}

    def chunks(self, index: int, choice: Choice, delta: Delta) -> list[dict[str, Any]]:
        """What one round brought a choice."""
        chunks = []
        if delta.text or delta.tokens:
            start = len(choice.stream.text) - len(delta.text)
            chunks.append(self.chunk(index, self.text_delta(delta.text), None, self.logprobs(delta.tokens, start)))
        if delta.finish_reason is not None:
            chunks.append(self.chunk(index, self.text_delta(""), delta.finish_reason))
        if self.details and chunks:
            chunks[0]["mhc"] = choice.details(delta.pieces)
        return chunks

    def usage_chunk(self, prompts: list[list[int]], choices: list[Choice]) -> dict[str, Any]:
        return {"object": self.kinds[1], **self.head, "choices": [], "usage": usage(prompts, choices)}

    def answer(self, prompts: list[list[int]], choices: list[Choice], deltas: Sequence[list[Delta]]) -> dict[str, Any]:
        """Everything at once."""
        completed = []
        for index, (choice, each) in enumerate(zip(choices, deltas)):
            tokens = [token for delta in each for token in delta.tokens]
            ended = {"logprobs": self.logprobs(tokens, 0), "finish_reason": choice.finish_reason}
            completed.append({"index": index, **self.whole(choice.stream.text), **ended})
        whole = {"object": self.kinds[0], **self.head, "choices": completed, "usage": usage(prompts, choices)}
        if self.details:
            pieces = [[piece for delta in each for piece in delta.pieces] for each in deltas]
            whole["mhc"] = [choice.details(its) for choice, its in zip(choices, pieces)]
        return whole


class ChatWriter(Writer):
    prefix, kinds = "chatcmpl", ("chat.completion", "chat.completion.chunk")

    def opening(self, index: int) -> dict[str, Any] | None:
        return self.chunk(index, {"delta": {"role": "assistant", "content": ""}})

    def text_delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text} if text else {}}

    def whole(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def write_logprobs(self, tokens: list, top: int, start: int) -> dict[str, Any]:
        return chat_logprobs(self.tokenizer, tokens, top)


class TextWriter(Writer):
    prefix, kinds = "cmpl", ("text_completion", "text_completion")

    def opening(self, index: int) -> dict[str, Any] | None:
        return None

    def text_delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def whole(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def write_logprobs(self, tokens: list, top: int, start: int) -> dict[str, Any]:
        return text_logprobs(self.tokenizer, tokens, top, start)
