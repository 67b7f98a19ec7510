"""An OpenAI-compatible server (vLLM, TGI, SGLang, ...) as a back end of `mhc.answering`.

Many requests are on their way at once. What may pass is asked again, later and later: 408, 409, 429 (after the time that the
server names), 5xx, connections that fail or are cut, answers that are no JSON or hold no choice. Each attempt has a
deadline of its own, so that an answer which only drips in ends as well.
"""

import asyncio
import queue
import random
import threading
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mhc.answering import Reply, Request
from mhc.errors import UserError

LONGEST_PAUSE = 60.0  # seconds
PASSING = (408, 409, 425, 429)  # statuses below 500 that are worth another try
NO_ACCESS = (401, 403, 404)  # those that mean that no request will be answered


class Server:
    """url: as far as /v1. model: the first that the server names, if None. concurrency: requests at once. timeout: seconds
    for one attempt. retries: attempts after the first. pause: seconds before the second attempt, doubled each time.

    The key of the server is OPENAI_API_KEY of the environment, and stands nowhere else. Raises UserError where the server
    cannot be reached, refuses the key, or has no such model.
    """

    def __init__(
        self,
        url: str,
        model: str | None,
        sampling: dict[str, float],
        max_new_tokens: int,
        concurrency: int = 32,
        timeout: float = 120.0,
        retries: int = 8,
        pause: float = 0.5,
    ):
        try:
            import openai
        except ImportError as problem:
            raise UserError('--server needs the openai package: pip install "mhc[server]"') from problem
        self.url, self.sampling, self.max_new_tokens = url, sampling, max_new_tokens
        self.concurrency, self.timeout, self.retries, self.pause = concurrency, timeout, retries, pause
        self.openai = openai
        self.model = model or self._first_model()

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def _options(self) -> dict[str, Any]:
        import os

        key = os.environ.get("OPENAI_API_KEY") or "none"  # most servers of one's own want none
        return {"base_url": self.url, "api_key": key, "max_retries": 0, "timeout": self.timeout}

    def _first_model(self) -> str:
        """The model that the server serves, after its own word."""
        openai = self.openai
        for attempt in range(self.retries + 1):
            try:
                names = [model.id for model in openai.OpenAI(**self._options()).models.list()]
                break
            except openai.APIStatusError as problem:
                if not _passing(problem.status_code) or attempt == self.retries:
                    reason = f"{problem.status_code} {_one_line(problem)}"
                    raise UserError(f"server {self.shown_url} does not tell its models ({reason})") from problem
            except (openai.APIError, ValueError, TypeError, AttributeError) as problem:
                refused = "refused" in str(problem.__cause__)
                if refused or attempt == self.retries:
                    reason = _one_line(problem.__cause__ or problem)
                    raise UserError(f"no server answers at {self.shown_url} ({reason}): start it first") from problem
            threading.Event().wait(min(1.0, self.pause * 2**attempt))
        if not names:
            raise UserError(f"server {self.shown_url} names no model: give --model")
        return names[0]

    def __call__(self, requests: Sequence[Request]) -> Iterator[Reply]:
        replies: queue.Queue[Reply | BaseException] = queue.Queue()

        def run() -> None:
            try:
                asyncio.run(self._ask_all(requests, replies))
            except BaseException as problem:  # it belongs into the thread that waits
                replies.put(problem)

        threading.Thread(target=run, daemon=True).start()
        for _ in requests:
            reply = replies.get()
            if isinstance(reply, BaseException):
                raise reply
            yield reply

    async def _ask_all(self, requests: Sequence[Request], replies: "queue.Queue[Reply | BaseException]") -> None:
        waiting = iter(requests)
        async with self.openai.AsyncOpenAI(**self._options()) as client:

            async def worker() -> None:
                for request in waiting:  # shared: each takes the next
                    replies.put(await self._ask(client, request))

            await asyncio.gather(*(worker() for _ in range(min(self.concurrency, len(requests)))))

    async def _ask(self, client: Any, request: Request) -> Reply:
        """One answer, however many attempts it takes."""
        openai, reason = self.openai, ""
        for attempt in range(1, self.retries + 2):
            wait = min(LONGEST_PAUSE, self.pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            try:
                answer = await asyncio.wait_for(
                    client.chat.completions.create(
                        model=self.model,
                        messages=request.messages,
                        max_tokens=self.max_new_tokens,
                        seed=request.seed,
                        **self.sampling,
                    ),
                    self.timeout,
                )
                choice = answer.choices[0]
                if not isinstance(choice.message.content, str):
                    raise ValueError("an answer without text")
                tokens = answer.usage.completion_tokens if answer.usage else 0
                return Reply(
                    request.key, choice.message.content, choice.finish_reason or "stop", tokens, attempts=attempt
                )
            except openai.APIStatusError as problem:
                reason = f"{problem.status_code} {_one_line(problem)}"
                if not _passing(problem.status_code):
                    if problem.status_code in NO_ACCESS:
                        raise UserError(f"server {self.shown_url}, model '{self.model}': {reason}") from problem
                    return Reply(request.key, reason=reason, final=True, attempts=attempt)
                wait = max(wait, _asked_to_wait(problem.response.headers.get("retry-after")))
            except TimeoutError:
                reason = f"no whole answer within {self.timeout:g} s"
            except (openai.APIError, ValueError, TypeError, AttributeError, IndexError) as problem:
                reason = _one_line(problem.__cause__ or problem)
            if attempt <= self.retries:
                await asyncio.sleep(wait)
        return Reply(request.key, reason=reason, attempts=self.retries + 1)


def _passing(status: int) -> bool:
    return status in PASSING or status >= 500


def _asked_to_wait(header: str | None) -> float:
    """Seconds of a Retry-After header (its other form, a date, is not waited for)."""
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0


def _one_line(problem: BaseException) -> str:
    return " ".join(str(problem).split())[:200] or type(problem).__name__
