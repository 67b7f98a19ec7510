"""What /openapi.json says of the answers: their shapes, and that errors have OpenAI's."""

from typing import Any

from fastapi import FastAPI

_TEXT, _COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}


def _object(required: dict[str, Any], **others: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required | others}


def _maybe(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, {"type": "null"}]}


_ERROR = _object({"error": _object({"message": _TEXT, "type": _TEXT, "param": _maybe(_TEXT), "code": _maybe(_TEXT)})})
_USAGE = _object({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})
_MODEL = _object({"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT})
_REASON = {"enum": ["stop", "length"]}
_HEAD = {"id": _TEXT, "created": _COUNT, "model": _TEXT, "usage": _USAGE}
_LOGPROBS = _maybe({"type": "object"})


def _choices(**content: Any) -> dict[str, Any]:
    choice = _object({"index": _COUNT, **content, "logprobs": _LOGPROBS, "finish_reason": _REASON})
    return {"type": "array", "minItems": 1, "items": choice}


_SAID = _object({"role": {"const": "assistant"}, "content": _TEXT})
_CHAT = _object({**_HEAD, "object": {"const": "chat.completion"}, "choices": _choices(message=_SAID)})
_COMPLETION = _object({**_HEAD, "object": {"const": "text_completion"}, "choices": _choices(text=_TEXT)})
_VECTOR = {"anyOf": [{"type": "array", "items": {"type": "number"}}, _TEXT]}
_EMBEDDING = _object({"object": {"const": "embedding"}, "index": _COUNT, "embedding": _VECTOR})
_EMBEDDINGS = _object({"object": {"const": "list"}, "data": {"type": "array", "items": _EMBEDDING}, "model": _TEXT})
_MODELS = _object({"object": {"const": "list"}, "data": {"type": "array", "items": _MODEL}})
_HEALTH = _object({"status": _TEXT})


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


_FAILED = {
    "400": "A value that cannot be: which one, and why.",
    "401": "The API key is missing or wrong.",
    "404": "No such model.",
    "408": "No whole answer in the time that the server gives a request.",
    "413": "The body is too large.",
    "429": "Too many are waiting; Retry-After says when to come again.",
    "503": "The engine has stopped.",
}
ERRORS: dict[int | str, Any] = {
    status: {"description": reason, "content": _json(_ERROR)} for status, reason in _FAILED.items()
}


def _made(schema: dict[str, Any], streams: bool = False) -> dict[int | str, Any]:
    content = _json(schema) | ({"text/event-stream": {"schema": _object({"data": _TEXT})}} if streams else {})
    return {200: {"description": "The answer.", "content": content}} | ERRORS


RESPONSES: dict[str, dict[Any, Any]] = {
    "chat": _made(_CHAT, streams=True),
    "completion": _made(_COMPLETION, streams=True),
    "embedding": _made(_EMBEDDINGS),
    "models": {200: {"description": "What is served.", "content": _json(_MODELS)}, "401": ERRORS["401"]},
    "model": {200: {"description": "The model.", "content": _json(_MODEL)}, "401": ERRORS["401"], "404": ERRORS["404"]},
    "health": {
        200: {"description": "It lives.", "content": _json(_HEALTH)},
        "503": {"description": "It does not.", "content": _json(_HEALTH)},
    },
    "metrics": {200: {"description": "Counters.", "content": {"text/plain": {"schema": _TEXT}}}},
}


def publish(app: FastAPI, model: str, width: int) -> None:
    """Write the schema once: errors are 400, never FastAPI's 422; `model` is the one that is served, `dimensions` its width."""
    schema = app.openapi()
    for methods in schema["paths"].values():
        for operation in methods.values():
            operation["responses"].pop("422", None)
    for name, each in schema["components"]["schemas"].items():
        if name.endswith("Request"):
            each["properties"]["model"] = _maybe({"const": model})
        if "dimensions" in each.get("properties", {}):
            each["properties"]["dimensions"] = _maybe({"const": width})
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    app.openapi_schema = schema
