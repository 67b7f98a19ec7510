"""Continuous batching: requests join and leave while others are decoded.

`submit` adds a request at any time; each `step` either prefills waiting prompts into free rows or decodes one round of
the rows being served; `cancel` frees a row. An answer depends only on its request, not on the batch it is decoded in.
`Engine.stream` runs a scheduler over a list of prompts, mhc.serve one over the requests of a server.
"""

from collections import deque

import torch

from mhc.decoding.decoder import Decoder
from mhc.decoding.request import DecodeRequest, StepOutput


class Scheduler:
    """Serves the rows of a decoder; the requests it was started with are waiting already.

    end_ids: tokens that end an answer. context: tokens of a prompt and its answer together.
    """

    def __init__(self, decoder: Decoder, end_ids: set[int], context: int):
        self.decoder, self.end_ids, self.context = decoder, end_ids, context
        self.batch = decoder.batch
        self.waiting = deque(self.batch.requests)

    @property
    def busy(self) -> bool:
        """Whether any request waits or is being served."""
        return bool(self.waiting or self.batch.serving)

    def submit(self, number: int, request: DecodeRequest) -> None:
        """Queue a request under an unused number of the caller's choice.

        Raises UserError where the prompt is empty or leaves no tokens for an answer.
        """
        self.batch.requests[number] = request.within(self.context, number)
        self.waiting.append(number)

    def cancel(self, number: int) -> None:
        """Stop answering: no further output is produced. Unknown numbers are ignored."""
        if number in self.batch.serving:
            self.decoder.evict(self.batch.serving.index(number))
        elif number in self.batch.requests:
            self.waiting.remove(number)
            del self.batch.requests[number]

    @torch.inference_mode()
    def step(self) -> list[StepOutput]:
        """Prefill waiting prompts into free rows, or decode one round of those being served."""
        batch = self.batch
        if self.waiting and batch.can_admit(len(self.waiting)):
            first = len(batch.serving)
            tokens = self.decoder.prefill(batch.take_prefill_group(self.waiting))
            return self._outputs([[token] for token in tokens], first)
        return self._outputs(self.decoder.decode_round()) if batch.serving else []

    def _outputs(self, emitted: list[list[int]], first: int = 0) -> list[StepOutput]:
        """The outputs of rows first, first+1, ...; in reverse, since finished rows are evicted."""
        batch, outputs = self.batch, []
        logprobs = batch.logprobs()
        for row in reversed(range(first, first + len(emitted))):
            number = batch.serving[row]
            request = batch.requests[number]
            tokens, reason = self._cut(emitted[row - first], batch.remaining[row])
            batch.remaining[row] -= len(tokens)
            own = logprobs[row - first][: len(tokens)] if request.logprobs else None
            outputs.append(StepOutput(number, tokens, reason, own, 0 if request.plain else self.decoder.drafted))
            if reason is not None:
                self.decoder.evict(row)
        return outputs

    def _cut(self, tokens: list[int], remaining: int) -> tuple[list[int], str | None]:
        """End a round's tokens at the end-of-text token or at the length limit."""
        for index, token in enumerate(tokens[:remaining]):
            if token in self.end_ids:
                return tokens[: index + 1], "stop"
        return tokens[:remaining], "length" if len(tokens) >= remaining else None
