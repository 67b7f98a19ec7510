"""Tokens to text while they are generated: no text is returned that later tokens would change, and nothing of a stop string.

A character may be spread over several tokens, and a stop string over several pieces; both are held back until they are
complete. The pieces joined equal the decoding of all tokens at once. (Except for models that emit broken bytes under a
tokenizer with byte fallback, which replaces characters before a broken byte.)
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what an unfinished character decodes to


class TextStream:
    """The text of one answer, piece by piece. stops: strings that end it; neither they nor what follows is returned.

    stopped: the stop string that ended the text, or None. text: all that was returned so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.stopped: str | None = None
        self.text = ""
        self._ids: list[int] = []
        self._known, self._read = 0, 0  # tokens whose text is known; of those the last few are context for the next
        self._held = ""  # text that may be the start of a stop string

    def push(self, tokens: Sequence[int]) -> str:
        """Add new tokens; the text that is certain now."""
        if self.stopped is not None:
            return ""
        self._ids += tokens
        before, now = self._decode(self._read, self._known), self._decode(self._read, len(self._ids))
        if now.endswith(BROKEN) or len(now) <= len(before):
            return ""  # part of a character, or a token without text
        self._read, self._known = self._known, len(self._ids)
        return self._show(now[len(before) :], final=False)

    def finish(self) -> str:
        """End the text; what was held back."""
        if self.stopped is not None:
            return ""
        whole = self._decode(self._read, len(self._ids))
        rest = whole[len(self._decode(self._read, self._known)) :]
        self._read = self._known = len(self._ids)
        return self._show(rest, final=True)

    def _decode(self, first: int, last: int) -> str:
        text = self.tokenizer.decode(self._ids[first:last], skip_special_tokens=True)
        assert isinstance(text, str)  # a list of ids is one text
        return text

    def _show(self, new: str, final: bool) -> str:
        """The part of the held and the new text that is certain."""
        text = self._held + new
        # The one that is complete first, so that it does not matter in which pieces the text comes.
        complete = [(start + len(stop), start, stop) for stop in self.stops if (start := text.find(stop)) >= 0]
        if complete:
            _, start, self.stopped = min(complete)
            shown = text[:start]
        else:
            held = 0 if final else max((_overlap(text, stop) for stop in self.stops), default=0)
            shown, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """The number of characters at the end of `text` that a longer `stop` begins with."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)
