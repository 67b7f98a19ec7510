"""An OpenAI-compatible server (vLLM, TGI, SGLang, ...) as an answerer of `mhc.distill.answers`.

Many requests are in flight at once. Errors that may be temporary are retried with growing pauses: 408, 409, 429 (after the
time that the server names), 5xx, connections that fail or are cut, answers that are not JSON or hold no choice. Each
attempt has a deadline of its own, so that an answer that arrives too slowly ends as well.
"""

import asyncio
import os
import queue
import random
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from mhc.distill.answers import Reply, Request
from mhc.errors import UserError
from mhc.text.messages import clean_text, each_text

LONGEST_PAUSE = 60.0  # seconds
RETRIED = (408, 409, 425, 429)  # statuses below 500 that are worth a retry
NO_ACCESS = (401, 403, 404)  # those that mean, as the first response, that no request will be answered


class OpenAIAnswerer:
    """url: up to /v1, which may be left out. model: the first that the server names, if None. concurrency: requests at once.
    timeout: seconds for one attempt. retries: attempts after the first. pause: seconds before the second attempt, doubled
    each time.

    The key of the server is OPENAI_API_KEY of the environment; it is written nowhere. Raises UserError where the server
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
            raise UserError('--server needs the openai package: pip install "mhc[client]"') from problem
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("--server takes an address like http://localhost:8000/v1")
        self.url = urlunsplit(parts._replace(path="/v1")) if parts.path in ("", "/") else url
        self.sampling, self.max_new_tokens = sampling, max_new_tokens
        self.key = os.environ.get("OPENAI_API_KEY") or "none"  # most local servers need none
        self.answered = False
        self.concurrency, self.timeout, self.retries, self.pause = concurrency, timeout, retries, pause
        self.openai = openai
        names = self._models(model is None)
        if model is None and not names:
            raise UserError(f"server {self.shown_url} names no model: give --model")
        self.model = model or names[0]

    @property
    def shown_url(self) -> str:
        """The address without what may be secret in it."""
        parts = urlsplit(self.url)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))

    def _options(self) -> dict[str, Any]:
        return {"base_url": self.url, "api_key": self.key, "max_retries": 0, "timeout": self.timeout}

    def _models(self, wanted: bool) -> list[str]:
        """The models that the server lists; a server without a list gives none, unless it is `wanted`."""
        openai = self.openai
        for attempt in range(self.retries + 1):
            try:
                with openai.OpenAI(**self._options()) as client:
                    return [str(model.id) for model in client.models.list()]
            except openai.APIStatusError as problem:
                if problem.status_code in (404, 405) and not wanted:
                    return []
                if not _retried(problem.status_code) or attempt == self.retries:
                    reason = f"{problem.status_code} {self._error_line(problem)}"
                    raise UserError(f"server {self.shown_url} does not list its models ({reason})") from problem
            except (openai.APIError, ValueError, TypeError, AttributeError) as problem:
                refused = "refused" in str(problem.__cause__)
                if refused or attempt == self.retries:
                    reason = self._error_line(problem.__cause__ or problem)
                    raise UserError(f"no server answers at {self.shown_url} ({reason}): start it first") from problem
            time.sleep(min(1.0, self.pause * 2**attempt))
        raise AssertionError("retries is below 0")

    def __call__(self, requests: Iterable[Request]) -> Iterator[Reply]:
        replies: queue.Queue = queue.Queue()  # of futures
        loop = asyncio.new_event_loop()
        in_flight: set[Any] = set()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()
        client = self.openai.AsyncOpenAI(**self._options())
        try:
            while True:
                for request in islice(requests, self.concurrency - len(in_flight)):
                    future = asyncio.run_coroutine_threadsafe(self._ask(client, request), loop)
                    in_flight.add(future)
                    future.add_done_callback(replies.put)
                if not in_flight:
                    return
                future = replies.get()
                in_flight.remove(future)
                yield future.result()
        finally:  # also where the run was stopped
            asyncio.run_coroutine_threadsafe(_end(client), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    async def _ask(self, client: Any, request: Request) -> Reply:
        """One answer, however many attempts it takes."""
        openai, reason = self.openai, ""
        tools: Any = request.messages[0].get("tools")
        for attempt in range(1, self.retries + 2):
            wait = min(LONGEST_PAUSE, self.pause * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
            try:
                answer = await asyncio.wait_for(
                    client.chat.completions.create(
                        model=self.model,
                        messages=[
                            {key: value for key, value in each.items() if key != "tools"} for each in request.messages
                        ],
                        max_tokens=self.max_new_tokens,
                        seed=request.seed,
                        **(self.sampling | ({"tools": tools} if tools else {})),
                    ),
                    self.timeout,
                )
                choice = answer.choices[0]
                more, text = _more(choice.message), choice.message.content
                if not isinstance(text, str) and "tool_calls" not in more:
                    raise ValueError("an answer without text")
                tokens = getattr(answer.usage, "completion_tokens", 0)
                tokens = tokens if isinstance(tokens, int) else 0
                why = choice.finish_reason if isinstance(choice.finish_reason, str) else "stop"
                self.answered = True
                return Reply(request.key, clean_text(text or ""), why, tokens, attempts=attempt, more=more)
            except openai.APIStatusError as problem:
                reason = f"{problem.status_code} {self._error_line(problem)}"
                if not _retried(problem.status_code):
                    if problem.status_code in NO_ACCESS and not self.answered:
                        raise UserError(f"server {self.shown_url}, model '{self.model}': {reason}") from problem
                    return Reply(request.key, reason=reason, final=True, attempts=attempt)
                wait = max(wait, _retry_after(problem.response.headers.get("retry-after")))
            except TimeoutError:
                reason = f"no whole answer within {self.timeout:g} s"
            except (openai.APIError, ValueError, TypeError, AttributeError, LookupError, RecursionError) as problem:
                reason = self._error_line(problem.__cause__ or problem)
            if attempt <= self.retries:
                await asyncio.sleep(wait)
        return Reply(request.key, reason=reason, attempts=self.retries + 1)

    def _error_line(self, problem: BaseException) -> str:
        """What went wrong, in one line without secrets."""
        line = " ".join(str(problem).split())[:200] or type(problem).__name__
        for secret in filter(None, (self.key if self.key != "none" else "", urlsplit(self.url).password)):
            line = line.replace(secret, "[secret]")
        return clean_text(line)


def _more(message: Any) -> dict[str, Any]:
    """What a server's message has beside its text: reasoning, under either of its names, and calls."""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    more: dict[str, Any] = {"reasoning_content": clean_text(reasoning)} if isinstance(reasoning, str) else {}
    if message.tool_calls:
        more["tool_calls"] = [each_text(call.model_dump(mode="json"), clean_text) for call in message.tool_calls]
    return more


async def _end(client: Any) -> None:
    """Cancel what is still in flight."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await client.close()


def _retried(status: int) -> bool:
    return status in RETRIED or status >= 500


def _retry_after(header: str | None) -> float:
    """Seconds of a Retry-After header (its other form, a date, is not waited for)."""
    try:
        return min(LONGEST_PAUSE, max(0.0, float(header or 0)))
    except ValueError:
        return 0.0
