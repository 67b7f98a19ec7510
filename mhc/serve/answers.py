"""From tokens to what OpenAI's clients read: deltas, log-probabilities, usage, chunks."""

import time
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhc.decoding.request import StepOutput, TokenLogprob
from mhc.text.detokenizer import TextStream


@dataclass
class Delta:
    """What is new of one choice: text; its pieces, each with whether the heads guessed it; log-probabilities of its tokens."""

    text: str = ""
    pieces: list[tuple[str, bool]] = field(default_factory=list)
    tokens: list[tuple[int, TokenLogprob]] = field(default_factory=list)
    finish_reason: str | None = None


class Choice:
    """One choice while it comes, until it has a finish_reason; `stopped_early` says whether a stop string gave it."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_ids: set[int], stops: list[str]):
        self.stream, self.end_ids = TextStream(tokenizer, stops), end_ids
        self.tokens, self.steps, self.guessed = 0, 0, 0
        self.finish_reason: str | None = None
        self.first_at: float | None = None
        self.seconds = 0.0  # since the prompt was read
        self._pending: list[tuple[int, TokenLogprob]] = []  # of tokens whose text is held back

    @property
    def stopped_early(self) -> bool:
        return self.stream.stopped is not None

    def push(self, output: StepOutput) -> Delta:
        """Take what one round brought."""
        delta, last = Delta(), len(output.tokens) - 1
        self.steps += 1
        for place, token in enumerate(output.tokens):
            self.tokens += 1
            self.guessed += place < last
            if output.finish_reason == "stop" and place == last and token in self.end_ids:
                break  # the end of the turn is no text
            if output.logprobs is not None:
                self._pending.append((token, output.logprobs[place]))
            self._show(delta, self.stream.push([token]), place < last)
            if self.stopped_early:
                break
        if self.stopped_early:
            self.finish_reason = "stop"
        elif output.finish_reason is not None:
            self._show(delta, self.stream.finish(), False)
            delta.tokens += self._pending
            self.finish_reason = "stop" if self.stopped_early else output.finish_reason
        delta.finish_reason = self.finish_reason
        now = time.monotonic()
        self.first_at = self.first_at or now
        self.seconds = now - self.first_at
        return delta

    def _show(self, delta: Delta, text: str, guessed: bool) -> None:
        if text:
            delta.text += text
            delta.pieces.append((text, guessed))
            delta.tokens += self._pending
            self._pending = []

    def details(self, pieces: list[tuple[str, bool]]) -> dict[str, Any]:
        """What this project returns beside OpenAI's fields: pieces of the text and whether they were guessed; what decoding
        has taken so far."""
        counts = {"steps": self.steps, "completion_tokens": self.tokens, "seconds": round(self.seconds, 4)}
        return {"tokens": [list(piece) for piece in pieces], **counts}


def usage(prompts: list[list[int]], choices: list[Choice]) -> dict[str, Any]:
    read, made = sum(map(len, prompts)), sum(choice.tokens for choice in choices)
    guessed = {"accepted_prediction_tokens": sum(choice.guessed for choice in choices)}
    total = {"prompt_tokens": read, "completion_tokens": made, "total_tokens": read + made}
    return total | {"completion_tokens_details": guessed}


def chat_logprobs(tokenizer, tokens: list[tuple[int, TokenLogprob]], top: int) -> dict[str, Any]:
    """In the form of a chat completion."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        raw = token_bytes(tokenizer, token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}

    content = []
    for token, (logprob, likeliest) in tokens:
        content.append(entry(token, logprob) | {"top_logprobs": [entry(*other) for other in likeliest[:top]]})
    return {"content": content, "refusal": None}


def text_logprobs(tokenizer, tokens: list[tuple[int, TokenLogprob]], top: int, start: int) -> dict[str, Any]:
    """In the form of a text completion; start: characters of the text before."""
    logprobs: dict[str, Any] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def text(token: int) -> str:
        raw = token_bytes(tokenizer, token)
        try:
            return raw.decode()
        except UnicodeDecodeError:  # parts of characters, each under a name of its own, as OpenAI writes them
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    for token, (logprob, likeliest) in tokens:
        logprobs["tokens"].append(text(token))
        logprobs["token_logprobs"].append(logprob)
        named: dict[str, float] = {}
        for other, value in likeliest[:top]:
            named.setdefault(text(other), value)  # of tokens that read alike the likeliest
        logprobs["top_logprobs"].append(named)
        logprobs["text_offset"].append(start)
        start += len(token_bytes(tokenizer, token).decode("utf-8", "replace"))
    return logprobs


def token_bytes(tokenizer: PreTrainedTokenizerBase, token: int) -> bytes:
    """The bytes that a token stands for, which need be no whole character."""
    name = tokenizer.convert_ids_to_tokens(token)
    if not isinstance(name, str):
        return b""
    if token in tokenizer.added_tokens_decoder:
        return name.encode()
    if len(name) == 6 and name.startswith("<0x") and name.endswith(">"):
        return bytes([int(name[3:5], 16)])
    table = _byte_table()
    if _byte_level(tokenizer) and all(letter in table for letter in name):
        return bytes(table[letter] for letter in name)
    return name.replace("▁", " ").encode()


@lru_cache(maxsize=4)
def _byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the tokenizer writes bytes as visible characters, as GPT-2's does."""
    ids = tokenizer(" ", add_special_tokens=False)["input_ids"]
    return bool(ids) and "Ġ" in "".join(tokenizer.convert_ids_to_tokens(ids))


@lru_cache(maxsize=1)
def _byte_table() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {letter: byte for byte, letter in bytes_to_unicode().items()}
