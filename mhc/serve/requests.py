"""What a request may say: OpenAI's fields with their limits, and what follows from them for the engine.

Types are strict ("1" is not a number). No field is dropped without a word: one that is not named here may say null, belongs
to HARMLESS, which no text depends on, or has the value of NEUTRAL that changes nothing; every other one is refused by its name.
"""

import secrets
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from mhc.sampling import Sampling
from mhc.text.messages import clean_text

MOST_CHOICES, MOST_STOPS, MOST_INPUTS = 16, 16, 2048

Text = Annotated[str, BeforeValidator(lambda value: clean_text(value) if isinstance(value, str) else value)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Token = Annotated[int, Field(ge=0, le=2**31 - 1)]
Stop = Annotated[Text, Field(min_length=1, max_length=256)]
Said = Annotated[Text, Field(min_length=1)]
Ids = Annotated[list[Token], Field(min_length=1)]
Several = Field(min_length=1, max_length=MOST_INPUTS)
TextOrIds = Said | Annotated[list[Said], Several] | Ids | Annotated[list[Ids], Several]


@dataclass(frozen=True)
class Only:
    """Marks a field that may be given, but only with the value `right`, which changes nothing. why: what its refusal says."""

    why: str
    right: Any
    schema: dict[str, Any]

    def check(self, value: Any) -> Any:
        if value is not None and (isinstance(value, bool) is not isinstance(self.right, bool) or value != self.right):
            raise ValueError(f"{self.why}: leave it out")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [self.schema, {"type": "null"}]}


NoPenalty = Annotated[Any, Only("this server has no penalties", 0, {"type": "number", "const": 0})]
NoBias = Annotated[Any, Only("this server does not change the logits", {}, {"type": "object", "maxProperties": 0})]
NoTools = Annotated[Any, Only("this server calls no tools", [], {"type": "array", "maxItems": 0})]
NoEcho = Annotated[Any, Only("the prompt is not repeated", False, {"const": False})]
NoBest = Annotated[
    Any, Only("every choice is returned, the best is not picked out", 1, {"type": "integer", "const": 1})
]
NoSuffix = Annotated[Any, Only("nothing can be put in before a suffix", "", {"type": "string", "maxLength": 0})]


# What clients send and no text depends on: who asks, how the provider is to keep, queue or bill it.
HARMLESS = frozenset([
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
    "request_id", "priority", "chat_id", "session_id", "message_id", "parallel_tool_calls", "include_obfuscation",
    "cache_control", "name", "refusal", "annotations", "audio", "id", "tool_call_id",
])  # fmt: skip
# Fields of this and other servers, each with the value that leaves the text as it is.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "repeat_penalty", "typical_p", "length_penalty", "best_of"), 1),
    **dict.fromkeys(("min_p", "top_a", "min_tokens", "top_logprobs", "truncate_prompt_tokens"), 0),
    **dict.fromkeys(("ignore_eos", "continue_final_message", "echo", "use_beam_search", "logprobs"), False),
    **dict.fromkeys(("add_generation_prompt", "skip_special_tokens", "spaces_between_special_tokens"), True),
    **dict.fromkeys(("stop_token_ids", "bad_words", "tools", "functions", "function_call", "tool_calls", "suffix"), ()),
    "modalities": ["text"],
    "response_format": {"type": "text"},
    "tool_choice": "none",
}


class Known(BaseModel):
    """An object of a request in which nothing is ignored that might change the text."""

    # The schema leaves further fields open: some are taken, by what they say.
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        json_schema_extra=lambda schema: schema.pop("additionalProperties", None),
    )

    @model_validator(mode="before")
    @classmethod
    def without_harmless(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {
            name: part for name, part in value.items() if name in cls.model_fields or not _changes_nothing(name, part)
        }


def _is_empty(value: Any) -> bool:
    """Whether nothing is asked for: null, an empty list or object, or one of switches that are off."""
    if isinstance(value, dict):
        return all(part is False or _is_empty(part) for part in value.values())
    return value is None or value == []


def _changes_nothing(name: str, value: Any) -> bool:
    if name in HARMLESS or _is_empty(value):
        return True
    neutral = NEUTRAL.get(name)
    if neutral == () or (name == "tool_choice" and value == "auto"):  # nothing in it, or no tools to choose from
        return name == "tool_choice" or value in ([], {}, "", False)
    return neutral is not None and type(value) in (type(neutral), float) and value == neutral


class Body(Known):
    model: Text | None = Field(None, description="as /v1/models names it; without, the one that is served")


class StreamOptions(Known):
    include_usage: bool | None = None


class Drawing(Body):
    """How text is drawn, whatever it is drawn for."""

    max_tokens: Count | None = Field(None, description="at most as many as the context has room for")
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        None, description="0 is greedy; 1 where none is given"
    )
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = Field(None, description="0: all tokens")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(
        None, description="the same seed, the same text, whatever else is in the batch; choice i has seed + i"
    )
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    presence_penalty: NoPenalty = None
    frequency_penalty: NoPenalty = None
    logit_bias: NoBias = None
    plain: bool | None = Field(None, description="one token a step, without the heads; the text is the same")
    details: bool | None = Field(None, description="also return which tokens the heads drafted, and what decoding took")

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def most_tokens(self) -> int | None:
        return self.max_tokens

    def samplings(self) -> list[Sampling]:
        """One for each choice. Without a seed every request is drawn with one of its own."""
        first = secrets.randbits(62) if self.seed is None else self.seed
        temperature = 1.0 if self.temperature is None else self.temperature
        top_p = 1.0 if self.top_p is None else max(self.top_p, 1e-9)  # 0: the likeliest token alone
        return [
            Sampling(temperature, top_p, self.top_k or 0, (first + number) % 2**63) for number in range(self.n or 1)
        ]


class TextPart(Known):
    type: Literal["text"]
    text: Text


class Message(Known):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Text | list[TextPart] | None = None
    tool_calls: NoTools = None

    def plain(self) -> dict[str, str]:
        """As templates take it."""
        content = self.content or ""
        if isinstance(content, list):
            content = "".join(part.text for part in content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatRequest(Drawing):
    """The body of /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Count | None = Field(None, description="the newer name of max_tokens, before which it goes")
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = Field(None, description="counts where logprobs is true")
    tools: NoTools = None
    functions: NoTools = None
    response_format: Annotated[
        Any,
        BeforeValidator(lambda value: _text_format(value)),
        WithJsonSchema(
            {
                "anyOf": [
                    {"type": "object", "properties": {"type": {"const": "text"}}, "required": ["type"]},
                    {"type": "null"},
                ]
            }
        ),
    ] = None

    @property
    def most_tokens(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens


def _text_format(value: Any) -> Any:
    if value is not None and (not isinstance(value, dict) or value.get("type") != "text"):
        raise ValueError("this server writes text only: leave it out")
    return value


class CompletionRequest(Drawing):
    """The body of /v1/completions."""

    prompt: TextOrIds
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    best_of: NoBest = None
    echo: NoEcho = None
    suffix: NoSuffix = None


class EmbeddingRequest(Body):
    """The body of /v1/embeddings."""

    input: TextOrIds
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Count | None = Field(None, description="only the model's own width")


def several(value: Any) -> list[str] | list[list[int]]:
    """A prompt or input as a list of texts or of token ids."""
    if isinstance(value, str):
        return [value]
    return [value] if isinstance(value[0], int) else value
