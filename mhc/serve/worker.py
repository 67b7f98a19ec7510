"""The one thread that decodes: requests hand it prompts, it hands back outputs, all in one continuous batch.

Everything that touches the model runs in this thread; everything that counts requests runs in the event loop's. Between them go
two queues: commands to the thread, and for each request the outputs of its answers.
"""

import asyncio
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from typing import Any

from mhc.decoding.request import DecodeRequest, StepOutput
from mhc.engine import Engine
from mhc.serve.metrics import Metrics

log = logging.getLogger("mhc.serve")
IDLE = 0.5  # seconds, after which an idle thread shows that it lives


class QueueFull(Exception):
    """No room for more: `retry_after` seconds may help."""

    def __init__(self, retry_after: int):
        self.retry_after = retry_after


class EngineStopped(Exception):
    """The engine has stopped, or this server is closing."""


class RequestHandle:
    """The answers to one request. Leave it with `close`, however it ends: what is not finished is then given up."""

    def __init__(self, worker: "Worker", requests: list[DecodeRequest]):
        self.worker = worker
        self.outputs: asyncio.Queue = asyncio.Queue()  # of (index, StepOutput) or EngineStopped
        self.started = time.monotonic()
        self.numbers = [worker.enqueue(self, index, each) for index, each in enumerate(requests)]
        self.open = set(range(len(requests)))

    async def next(self, patience: float) -> tuple[int, StepOutput] | None:
        """The next output and the index of its answer; None where nothing came for so many seconds. Raises TimeoutError at
        the end of the request's time, EngineStopped where nothing will come any more."""
        left = self.started + self.worker.timeout - time.monotonic()
        try:
            item = await asyncio.wait_for(self.outputs.get(), max(0.0, min(patience, left)))
        except TimeoutError:
            if left <= patience:
                raise
            return None
        if isinstance(item, EngineStopped):
            raise item
        index, output = item
        if output.finish_reason is not None:
            self.open.discard(index)
        return item

    def stop(self, index: int) -> None:
        """This answer is long enough."""
        if index in self.open:
            self.open.discard(index)
            self.worker.abort(self.numbers[index])

    def close(self) -> None:
        for index in list(self.open):
            self.stop(index)


class Worker:
    """rows: answers decoded at once; more wait, up to `waiting` of them. context: tokens of a prompt and its answer.
    timeout: seconds that a request may take, its waiting included."""

    def __init__(self, engine: Engine, metrics: Metrics, rows: int, waiting: int, context: int, timeout: float):
        self.engine, self.metrics, self.timeout = engine, metrics, timeout
        self.scheduler = engine.scheduler(rows, context)
        self.rows, self.most = rows, rows + waiting
        self.context = self.scheduler.context
        self.jobs: dict[int, tuple[RequestHandle, int]] = {}
        self.read: set[int] = set()  # of the jobs those whose prompt was read
        self.alive_at = time.monotonic()
        self.seconds_each = 1.0  # of a recent answer
        self._numbers = count()
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], Future]] = queue.SimpleQueue()
        self._awaited: set[Future] = set()
        self._failed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name="mhc-decoding", daemon=True)

    # ---- in the event loop

    def start(self) -> None:
        """Begin to decode for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def close(self) -> None:
        """End the thread; requests under way end with EngineStopped."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    @property
    def healthy(self) -> bool:
        """Whether the thread lives and a round does not take forever."""
        return (
            not self._failed and self._thread.is_alive() and time.monotonic() - self.alive_at < max(60.0, self.timeout)
        )

    def run(self, requests: list[DecodeRequest]) -> RequestHandle:
        """Queue these requests. Raises QueueFull where they are too many, EngineStopped where nobody decodes."""
        self._require_place(len(requests))
        return RequestHandle(self, requests)

    def _require_place(self, count: int) -> None:
        if self._failed or not self._thread.is_alive():
            raise EngineStopped("the engine has stopped")
        if len(self.jobs) + len(self._awaited) + count > self.most:
            waves = len(self.jobs) / self.rows
            raise QueueFull(max(1, min(60, round(waves * self.seconds_each))))

    def enqueue(self, run: RequestHandle, index: int, request: DecodeRequest) -> int:
        number = next(self._numbers)
        self.jobs[number] = run, index
        self._commands.put(partial(self._submit, number, request))
        self._update_load()
        return number

    def abort(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        if self.jobs.pop(number, None):
            self.read.discard(number)
            self.metrics.cancelled.inc()
            self._commands.put(partial(self.scheduler.cancel, number))
            self._update_load()

    async def call(self, work: Callable[[], Any], until: float) -> Any:
        """Have the thread do this between two rounds, of several only one. Raises QueueFull and EngineStopped as `run`, TimeoutError where
        the monotonic clock reads `until` before it is done."""
        self._require_place(1)
        done: Future = Future()
        self._awaited.add(done)
        self._calls.put((work, done))
        self._commands.put(self._do_one_call)
        try:
            return await asyncio.wait_for(asyncio.wrap_future(done), max(0.0, until - time.monotonic()))
        finally:
            self._awaited.discard(done)

    def _hand_out(self, outputs: list[StepOutput]) -> None:
        now = time.monotonic()
        for output in outputs:
            run, index = self.jobs.get(output.request, (None, 0))
            if run is None:
                continue  # left a moment ago
            if output.request not in self.read:
                self.read.add(output.request)
                self.metrics.first_token.observe(now - run.started)
            if output.finish_reason is not None:
                del self.jobs[output.request]
                self.read.discard(output.request)
                self.metrics.answer.observe(now - run.started)
                self.seconds_each += 0.1 * (now - run.started - self.seconds_each)
            run.outputs.put_nowait((index, output))
        self._update_load()

    def _update_load(self) -> None:
        self.metrics.running.set(len(self.read))
        self.metrics.waiting.set(len(self.jobs) - len(self.read))

    def _fail(self) -> None:
        self._failed = True
        for done in self._awaited:
            if not done.done():
                done.set_exception(EngineStopped("the engine has stopped"))
        for run, _ in self.jobs.values():
            run.outputs.put_nowait(EngineStopped("the engine has stopped"))
        self.jobs.clear()
        self.read.clear()
        self._update_load()

    # ---- in the thread

    def _work(self) -> None:
        try:
            while self._run_commands(wait=not self.scheduler.busy):
                if self.scheduler.busy:
                    self._decode()
                self.alive_at = time.monotonic()
        except Exception:
            log.exception("the engine failed; /health says so from now on")
        finally:
            self._in_loop(self._fail)

    def _run_commands(self, wait: bool) -> bool:
        """Carry out the commands that have come; False at the last one. wait: there is nothing else to do."""
        try:
            command = self._commands.get(timeout=IDLE) if wait else self._commands.get_nowait()
            while command is not None:
                command()
                if command == self._do_one_call:
                    return True  # a round of the answers comes between two calls
                command = self._commands.get_nowait()
            return False
        except queue.Empty:
            return True

    def _do_one_call(self) -> None:
        work, done = self._calls.get_nowait()
        if done.set_running_or_notify_cancel():
            try:
                done.set_result(work())
            except Exception as problem:  # raised where it is awaited
                done.set_exception(problem)

    def _decode(self) -> None:
        outputs = self.scheduler.step()
        for output in outputs:
            self.metrics.count_round(output.drafted, len(output.tokens))
        self._in_loop(self._hand_out, outputs)

    def _in_loop(self, call: Callable[..., None], *arguments: Any) -> None:
        """Have the event loop do this soon."""
        assert self._loop is not None  # `start` set it before this thread began
        self._loop.call_soon_threadsafe(call, *arguments)

    def _submit(self, number: int, request: DecodeRequest) -> None:
        self.metrics.prompt_tokens.inc(len(request.prompt))
        self.scheduler.submit(number, request)
