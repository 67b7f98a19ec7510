"""Tokens to text while they come: nothing is shown that later tokens would change, and nothing of a stop string.

A character may be spread over several tokens, and a stop string over several pieces; both are held back until it is clear
what they are. What is shown is, joined, exactly what decoding all tokens at once gives. (But for models that emit broken bytes under
a tokenizer with byte fallback, which takes back good characters for a bad one behind them.)
"""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what an unfinished character decodes to


class TextStream:
    """The text of one answer, piece by piece. stops: strings that end it; they are not shown, nor is what follows.

    stopped: the stop string that was found, or None. text: all that was shown so far.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str] = ()):
        self.tokenizer, self.stops = tokenizer, [stop for stop in stops if stop]
        self.stopped: str | None = None
        self.text = ""
        self._ids: list[int] = []
        self._known, self._read = 0, 0  # tokens whose text is known; of those the last few are context for the next
        self._held = ""  # text that may be the start of a stop string

    def push(self, tokens: Sequence[int]) -> str:
        """Take new tokens; the text that can be shown now."""
        if self.stopped is not None:
            return ""
        self._ids += tokens
        before, now = self._decode(self._read, self._known), self._decode(self._read, len(self._ids))
        if now.endswith(BROKEN) or len(now) <= len(before):
            return ""  # part of a character, or a token without text
        self._read, self._known = self._known, len(self._ids)
        return self._show(now[len(before) :], final=False)

    def finish(self) -> str:
        """No more tokens come; what was held back and is text after all."""
        if self.stopped is not None:
            return ""
        whole = self._decode(self._read, len(self._ids))
        rest = whole[len(self._decode(self._read, self._known)) :]
        self._read = self._known = len(self._ids)
        return self._show(rest, final=True)

    def _decode(self, first: int, last: int) -> str:
        return self.tokenizer.decode(self._ids[first:last], skip_special_tokens=True)

    def _show(self, new: str, final: bool) -> str:
        """What of the held and the new text is certain."""
        text = self._held + new
        # The one that is complete first, so that it does not matter in which pieces the text comes.
        found = min(((at + len(stop), at, stop) for stop in self.stops if (at := text.find(stop)) >= 0), default=None)
        if found is not None:
            shown, self.stopped = text[: found[1]], found[2]
        else:
            held = 0 if final else max((_overlap(text, stop) for stop in self.stops), default=0)
            shown, self._held = text[: len(text) - held], text[len(text) - held :]
        self.text += shown
        return shown


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` a longer `stop` begins with."""
    return next((count for count in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:count])), 0)
