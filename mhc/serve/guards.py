"""What stands before the addresses: counting, the size of a body, the key. Plain ASGI, so that a client that leaves is noticed."""

import os
import secrets
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from mhc.serve.errors import error
from mhc.serve.metrics import Metrics


class Guards:
    """Around the application. key: what /v1 wants as a bearer token, if anything. most_bytes: of a body. paths: those that are counted
    by name."""

    def __init__(self, app: Any, metrics: Metrics, key: str | None, most_bytes: int, paths: frozenset[str]):
        self.app, self.metrics, self.key, self.most_bytes, self.paths = app, metrics, key, most_bytes, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        counted = path if path in self.paths else "other"

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(counted, str(message["status"])).inc()
            await send(message)

        refusal = self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, counting)
            return
        await self.app(scope, self._counted(receive), counting)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = dict(scope["headers"])
        if self.key is not None and scope["path"].startswith("/v1"):
            given = headers.get(b"authorization", b"")
            wanted = b"Bearer " + os.fsencode(self.key)  # as the environment had it
            if not secrets.compare_digest(given, wanted):
                message = "this server wants its API key as 'Authorization: Bearer KEY'"
                return error(401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.most_bytes:
            return self._too_large()
        return None

    def _too_large(self) -> Response:
        return error(413, self._size_message, code="body_too_large", headers={"Connection": "close"})

    @property
    def _size_message(self) -> str:
        return f"the body is larger than {self.most_bytes} bytes"

    def _counted(self, receive: Receive) -> Receive:
        """A body that does not state its length is counted as it comes."""
        seen = 0

        async def counting() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.most_bytes:
                raise HTTPException(413, self._size_message)
            return message

        return counting
