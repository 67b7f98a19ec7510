"""Errors in OpenAI's shape."""

import json
from typing import Any

from starlette.responses import Response

KINDS = {
    401: "authentication_error",
    408: "timeout_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class Json(Response):
    """JSON in plain ASCII, so that no text, however broken, cannot be sent."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class ClientDisconnected(Exception):
    """The client did not wait for its answer."""


class Refused(Exception):
    """A request that is not answered, and why."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.response = error(status, message, param, code, headers)


def described(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error(
    status: int, message: str, param: str | None = None, code: str | None = None, headers: dict[str, str] | None = None
) -> Json:
    return Json(described(status, message, param, code), status_code=status, headers=headers)
