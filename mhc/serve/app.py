"""The addresses of the server, and the way of a request through it."""

import asyncio
import base64
import copy
import json
import struct
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.routing import Route
from torch.nn.utils.rnn import pad_sequence

from mhc.decoding.request import DecodeRequest
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.serve.answers import Choice, Delta
from mhc.serve.errors import ClientDisconnected, Json, Refused, described, error
from mhc.serve.guards import Guards
from mhc.serve.metrics import Metrics
from mhc.serve.openapi import RESPONSES, publish
from mhc.serve.requests import ChatRequest, CompletionRequest, Drawing, EmbeddingRequest, several
from mhc.serve.worker import EngineStopped, QueueFull, RequestHandle, Worker
from mhc.serve.writing import ChatWriter, TextWriter, Writer
from mhc.text.encoding import prompt_ids
from mhc.util.batches import batches
from mhc.version import __version__

PAGE = Path(__file__).parent / "page"
SHOWN = (".css", ".html", ".js", ".svg")  # of its files those that a browser asks for
KEEP_ALIVE = 15.0  # seconds without a word, after which proxies and clients grow uneasy
EMBEDDED = 512  # tokens read at once for embeddings, or one input: answers have a round between two such batches
NOTICE = 0.5  # seconds until a client that left is noticed
ONLY_OWN = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"


@dataclass
class Limits:
    """rows: answers decoded at once. waiting: answers that may wait besides. context: tokens of a prompt and its answer.
    timeout: seconds for a request. body: bytes of one. key: what /v1 wants to be shown."""

    rows: int = 16
    waiting: int = 256
    context: int = 4096
    timeout: float = 600.0
    body: int = 4 << 20
    key: str | None = None


class ApiServer:
    """What the addresses share."""

    def __init__(self, engine: Engine, name: str, limits: Limits):
        self.engine, self.name, self.limits = engine, name, limits
        self.tokenizer = engine.backbone.tokenizer  # for text, in the event loop
        self._encoder = copy.deepcopy(self.tokenizer)  # for prompts, in a thread: one tokenizer does not serve two
        self._encoding = ThreadPoolExecutor(1, "mhc-encoding")
        heads = engine.drafter.draft_length if engine.drafter else 0
        self.metrics = Metrics(heads, name)
        self.worker = Worker(engine, self.metrics, limits.rows, limits.waiting, limits.context, limits.timeout)
        self.fingerprint = f"mhc-{__version__}-{engine.backbone.fingerprint()}"

    def close(self) -> None:
        self._encoding.shutdown(cancel_futures=True)

    def described(self) -> dict[str, Any]:
        """The model as /v1/models lists it; `heads` and `context` are ours."""
        drafter = self.engine.drafter
        heads = None if drafter is None else {"family": type(drafter).__name__, "heads": drafter.draft_length}
        model = {"id": self.name, "object": "model", "created": 0, "owned_by": "mhc"}
        return model | {"heads": heads, "context": self.worker.context}

    def require_model(self, name: str | None) -> None:
        if name not in (None, self.name):
            raise Refused(404, f"there is no model '{name}' here, only '{self.name}'", "model", "model_not_found")

    async def encode(self, work: Callable[[Any], list[list[int]]], param: str) -> list[list[int]]:
        """Prompts as token ids that leave room for an answer. work: is given a tokenizer of its own."""
        loop = asyncio.get_running_loop()
        try:
            prompts = await loop.run_in_executor(self._encoding, work, self._encoder)
        except UserError as problem:  # of a template that refuses the conversation
            raise Refused(400, str(problem), param) from problem
        for prompt in prompts:
            if not prompt:
                raise Refused(400, "the prompt must not be empty", param)
            if max(prompt) >= self.engine.backbone.vocabulary_size:
                raise Refused(400, f"token ids end at {self.engine.backbone.vocabulary_size - 1}", param)
            if len(prompt) >= self.worker.context:
                message = f"the prompt has {len(prompt)} tokens, the context {self.worker.context}: shorten it"
                raise Refused(400, message, param, "context_length_exceeded")
        return prompts

    def ask(self, body: Drawing, prompts: list[list[int]], logprobs: bool) -> RequestHandle:
        """Queue what the request wants: each prompt `n` times."""
        most = body.most_tokens or self.worker.context  # the session keeps to the room that there is
        requests = [
            DecodeRequest(prompt, most, each, bool(body.plain), logprobs)
            for prompt in prompts
            for each in body.samplings()
        ]
        if len(requests) > self.worker.most:
            raise Refused(
                400, f"{len(requests)} answers in one request, and this server has {self.worker.most} places", "n"
            )
        return self.worker.run(requests)

    async def respond(self, request: Request, body: Drawing, prompts: list[list[int]], writer: Writer) -> Response:
        """Answer whole or in chunks, as the request wants it."""
        run = self.ask(body, prompts, writer.top is not None)
        choices = [Choice(self.tokenizer, self.engine.end_ids, body.stops) for _ in run.numbers]
        if body.stream:
            usage = bool(body.stream_options and body.stream_options.include_usage)
            chunks = self._chunks(request, run, prompts, choices, writer, usage)
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)
        deltas: list[list[Delta]] = [[] for _ in choices]
        async for index, delta in self._deltas(request, run, choices):
            if delta is not None:
                deltas[index].append(delta)
        return Json(writer.answer(prompts, choices, deltas))

    async def _deltas(
        self, request: Request, run: RequestHandle, choices: list[Choice]
    ) -> AsyncIterator[tuple[int, Delta | None]]:
        """What is new, choice by choice; (0, None) where nothing came for a while."""
        try:
            while run.open:
                item = await run.next(NOTICE)
                if item is None:
                    if await request.is_disconnected():
                        raise ClientDisconnected
                    yield 0, None
                    continue
                index, output = item
                if choices[index].finish_reason is not None:
                    continue  # it was on its way when the stop string was found
                delta = choices[index].push(output)
                if choices[index].stopped_early:
                    run.stop(index)
                yield index, delta
                if not run.outputs.qsize() and await request.is_disconnected():
                    raise ClientDisconnected
        finally:
            run.close()

    async def _chunks(
        self,
        request: Request,
        run: RequestHandle,
        prompts: list[list[int]],
        choices: list[Choice],
        writer: Writer,
        usage: bool,
    ) -> AsyncIterator[bytes]:
        """The answer as server-sent events."""
        nothing = {"usage": None} if usage else {}
        quiet = 0.0
        try:
            for index in range(len(choices)):
                if (opening := writer.opening(index)) is not None:
                    yield _event(opening | nothing)
            async for index, delta in self._deltas(request, run, choices):
                quiet = quiet + NOTICE if delta is None else 0.0
                if quiet >= KEEP_ALIVE:
                    quiet = 0.0
                    yield b": waiting\n\n"
                if delta is not None:
                    yield b"".join(_event(chunk | nothing) for chunk in writer.chunks(index, choices[index], delta))
            if usage:
                yield _event(writer.usage_chunk(prompts, choices))
            yield b"data: [DONE]\n\n"
        except TimeoutError:
            yield _event(described(408, self.timeout_message))
        except EngineStopped as problem:
            yield _event(described(503, str(problem)))
        except ClientDisconnected:
            return
        finally:
            run.close()

    @property
    def timeout_message(self) -> str:
        return f"no whole answer within {self.limits.timeout:g} s"

    @torch.inference_mode()
    def embed(self, inputs: list[list[int]]) -> list[list[float]]:
        """Of each input the mean of its last hidden states, of length 1."""
        ids = pad_sequence([torch.tensor(tokens) for tokens in inputs], batch_first=True)
        hidden = self.engine.backbone.features(ids.to(self.engine.backbone.device)).hidden
        means = [row[: len(tokens)].float().mean(dim=0) for row, tokens in zip(hidden, inputs)]
        return torch.nn.functional.normalize(torch.stack(means), dim=-1).tolist()


def _event(data: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def build(engine: Engine, name: str, limits: Limits) -> FastAPI:
    """The application around an engine. name: the model's, for clients."""
    server = ApiServer(engine, name, limits)

    @asynccontextmanager
    async def life(app: FastAPI):
        server.worker.start()
        yield
        await server.worker.close()
        server.close()

    app = FastAPI(title="mhc", version=__version__, lifespan=life, docs_url=None, redoc_url=None)
    app.state.server = server

    @app.post("/v1/chat/completions", responses=RESPONSES["chat"])
    async def chat(request: Request, body: ChatRequest) -> Response:
        server.require_model(body.model)
        messages = [message.plain() for message in body.messages]
        prompts = await server.encode(lambda tokenizer: [prompt_ids(tokenizer, messages)], "messages")
        top = (body.top_logprobs or 0) if body.logprobs else None
        writer = ChatWriter(server.tokenizer, name, server.fingerprint, top, bool(body.details))
        return await server.respond(request, body, prompts, writer)

    @app.post("/v1/completions", responses=RESPONSES["completion"])
    async def completion(request: Request, body: CompletionRequest) -> Response:
        server.require_model(body.model)
        prompts = await server.encode(lambda tokenizer: _as_ids(tokenizer, several(body.prompt)), "prompt")
        writer = TextWriter(server.tokenizer, name, server.fingerprint, body.logprobs, bool(body.details))
        return await server.respond(request, body, prompts, writer)

    @app.post("/v1/embeddings", responses=RESPONSES["embedding"])
    async def embeddings(request: Request, body: EmbeddingRequest) -> Response:
        server.require_model(body.model)
        if body.dimensions not in (None, engine.backbone.width):
            raise Refused(400, f"embeddings have {engine.backbone.width} dimensions: leave it out", "dimensions")
        inputs = await server.encode(lambda tokenizer: _as_ids(tokenizer, several(body.input)), "input")
        vectors: dict[int, Any] = {}
        until = time.monotonic() + limits.timeout
        for batch in batches(dict(enumerate(map(len, inputs))), EMBEDDED):
            work = partial(server.embed, [inputs[number] for number in batch])
            vectors |= zip(batch, await server.worker.call(work, until))
            if await request.is_disconnected():
                raise ClientDisconnected
        if body.encoding_format == "base64":
            vectors = {n: base64.b64encode(struct.pack(f"<{len(v)}f", *v)).decode() for n, v in vectors.items()}
        data = [{"object": "embedding", "index": n, "embedding": vectors[n]} for n in range(len(inputs))]
        read = sum(map(len, inputs))
        return Json(
            {"object": "list", "data": data, "model": name, "usage": {"prompt_tokens": read, "total_tokens": read}}
        )

    @app.get("/v1/models", responses=RESPONSES["models"])
    async def models() -> Response:
        return Json({"object": "list", "data": [server.described()]})

    @app.get("/v1/models/{model:path}", responses=RESPONSES["model"])
    async def model(model: str) -> Response:
        server.require_model(model)
        return Json(server.described())

    @app.get("/health", responses=RESPONSES["health"])
    async def health() -> Response:
        healthy = server.worker.healthy
        return Json({"status": "ok" if healthy else "the engine has stopped"}, status_code=200 if healthy else 503)

    @app.get("/metrics", response_class=Response, responses=RESPONSES["metrics"])
    async def metrics() -> Response:
        return Response(server.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _page_file("index.html")

    for file in sorted(PAGE.rglob("*.*")):
        if file.suffix in SHOWN:
            name_in_page = file.relative_to(PAGE).as_posix()
            app.add_api_route(f"/{name_in_page}", partial(_page_file, name_in_page), include_in_schema=False)

    _explain(app, server)
    publish(app, name, engine.backbone.width)
    named = (route.path for route in app.routes if isinstance(route, Route))
    paths = frozenset(path for path in named if "{" not in path)
    app.add_middleware(Guards, metrics=server.metrics, key=limits.key, most_bytes=limits.body, paths=paths)
    return app


def _page_file(name: str) -> Response:
    return FileResponse(PAGE / name, headers={"Content-Security-Policy": ONLY_OWN, "Cache-Control": "no-cache"})


def _as_ids(tokenizer: Any, given: list[str] | list[list[int]]) -> list[list[int]]:
    if isinstance(given[0], str):
        return [list(ids) for ids in tokenizer(given, verbose=False)["input_ids"]]
    return given


def _explain(app: FastAPI, server: ApiServer) -> None:
    """Whatever goes wrong, in OpenAI's shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, problem: Refused) -> Response:
        return problem.response

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> Response:
        # One for each shape that a value may have: what is wrong in the right shape says most.
        errors = problem.errors()
        first = next((each for each in errors if not each["type"].endswith("_type")), errors[0])
        where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int) or part.isidentifier())
        if first["type"] == "json_invalid":
            return error(400, "the body is no JSON")
        if first["type"] == "extra_forbidden":
            name = str(first["loc"][-1])[:100]
            message = f"unknown field '{name}': this server would not do what it says, and drops nothing silently: leave it out"
            return error(400, message, where or name)
        message = first["msg"].removeprefix("Value error, ")
        return error(400, f"{where}: {message}" if where else message, where or None)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, problem: HTTPException) -> Response:
        code = "body_too_large" if problem.status_code == 413 else None
        return error(problem.status_code, str(problem.detail), code=code, headers=dict(problem.headers or {}))

    @app.exception_handler(ClientDisconnected)
    async def left(request: Request, problem: ClientDisconnected) -> Response:
        return Response(status_code=499)  # nobody reads it; the counters do

    @app.exception_handler(TimeoutError)
    async def late(request: Request, problem: TimeoutError) -> Response:
        return error(408, server.timeout_message)

    @app.exception_handler(QueueFull)
    async def busy(request: Request, problem: QueueFull) -> Response:
        message = f"all {server.worker.most} places are taken: try again"
        return error(429, message, code="queue_full", headers={"Retry-After": str(problem.retry_after)})

    @app.exception_handler(EngineStopped)
    async def gone(request: Request, problem: EngineStopped) -> Response:
        return error(503, str(problem), headers={"Retry-After": "5"})
