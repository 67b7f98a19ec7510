"""A chat template and what training needs to know of it: where the assistant speaks, which tokens are control tokens.

The template is run, never imitated. One with `{% generation %}` tags marks itself where the assistant speaks.
In any other, turn i starts where messages[:i] with the generation prompt end, and it ends after its content
and the control token that follows. The content is located by rendering once more with random marks around it,
which works even in a template that rewrites history (Qwen3 drops the reasoning of earlier turns).

Whether a template writes system and tool turns is tested the same way, with a mark in their place. Where it refuses or
drops them, their content goes into user turns. The test always includes the answer, so that a prompt and the training row
that it becomes are written alike.

Text that spells a control token is replaced by a random mark before rendering, so nothing a user types can be
taken for what the template writes.

Beside its content an assistant's message may have `reasoning_content` and `tool_calls` (as OpenAI writes them), and a
leading system message the `tools` that a template is given.
"""

import hashlib
import json
import re
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise, takewhile
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mhc.errors import UserError
from mhc.text.messages import Messages, checked, clean_text, each_text
from mhc.util.journal import digest
from mhc.util.progress import say

# For a tokenizer without a template (base models): Vicuna's wording, which uses no new tokens.
DEFAULT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ASSISTANT:' }}"
    "{% else %}{% generation %}{{ ' ' + message['content'] + (eos_token or '\n') }}{% endgeneration %}"
    "{% endif %}{% endfor %}{# add_generation_prompt: the prompt is open already #}"
)
CONTROL_SHAPE = re.compile(r"<[|｜].*[|｜]>", re.DOTALL)  # control tokens a tokenizer forgot to mark special
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it.

    `spans` are the character ranges of the assistant's text; `hidden` maps each mark in the text to the
    control string it stands for. A `document` is a text that no template wrote, all of it one span.
    """

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str] = field(default_factory=dict)
    document: bool = False

    def pieces(self) -> list[tuple[str, bool]]:
        """The text cut at the span borders, each piece with whether it is the assistant's."""
        borders = [0, *(border for span in self.spans for border in span), len(self.text)]
        cut = [(self.text[a:b], i % 2 == 1) for i, (a, b) in enumerate(pairwise(borders))]
        return [(text, supervised) for text, supervised in cut if text]


class ChatTemplate:
    """The template of a tokenizer and its control tokens; build it with `chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str):
        self.tokenizer, self.template = tokenizer, template
        self.tagged = GENERATION_TAG.search(template) is not None
        self.opens_turns = "add_generation_prompt" in template
        added = list(tokenizer.added_tokens_decoder.values())
        self.special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        shaped = {token.content for token in added if CONTROL_SHAPE.fullmatch(token.content)}
        self.control = tuple(sorted(self.special | shaped, key=lambda token: (-len(token), token)))
        numbers = {token: tokenizer.convert_tokens_to_ids(token) for token in self.control}
        self.control_ids = {token: number for token, number in numbers.items() if isinstance(number, int)}
        self.control_pattern = re.compile(f"({_any_of(self.control)})")
        # A turn may be closed by any control token except one that only opens a text.
        self.closing = tuple(t for t in self.control if t != tokenizer.bos_token or t == tokenizer.eos_token)
        self.closing_pattern = re.compile(rf"\s*(?:{_any_of(self.closing)})")

    @property
    def name(self) -> str:
        """The template's name in error messages."""
        return f"the chat template of {self.tokenizer.name_or_path or type(self.tokenizer).__name__}"

    def prompt(self, messages: Messages) -> Rendered:
        """The text up to where the assistant starts to speak, with the spans of its earlier turns."""
        if _is_document(messages):
            raise UserError("a document has no prompt: give a conversation")
        messages, hidden = self._hide(checked(messages))
        answer = [] if messages[-1]["role"] == "assistant" else [{"role": "assistant", "content": "answer"}]
        accepted, text = self._accepted(messages + answer)
        turns = accepted[: len(accepted) - len(answer)]
        prompt = self._opened(turns)
        spans: list[tuple[int, int]] = []
        if text.startswith(prompt) and any(message["role"] == "assistant" for message in turns):
            with suppress(UserError):  # a template that cannot be trained on can still write a prompt
                spans = [(start, end) for start, end in self._spans(accepted, text) if end <= len(prompt)]
        return Rendered(prompt, spans, hidden)

    def render(self, messages: Messages) -> Rendered:
        """The conversation as text, with its spans. Raises UserError where the template refuses it."""
        if _is_document(messages):
            (message,), hidden = self._hide([{**messages[0], "content": clean_text(messages[0]["content"])}])
            return Rendered(message["content"], [(0, len(message["content"]))], hidden, document=True)
        messages, hidden = self._hide(checked(messages))
        messages, text = self._accepted(messages)
        return Rendered(text, self._spans(messages, text), hidden)

    def _run(self, messages: Messages, generation_prompt: bool = False) -> str:
        text = self.tokenizer.apply_chat_template(
            messages,
            tools=_tools(messages),
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )
        assert isinstance(text, str)
        return text

    def _accepted(self, messages: Messages) -> tuple[Messages, str]:
        """The messages as the template takes them, and their text: where it refuses or drops system or tool turns,
        their content is in user turns."""
        plain = _without_tools(messages)
        problem: Exception | None = None
        for offered in (messages, plain, _without_system(messages), _without_system(plain)):
            try:
                if self._writes_all(offered):
                    return offered, self._run(offered)
                problem = problem or UserError("it drops system or tool turns, or their tools and calls")
            except (TemplateError, TypeError) as refusal:
                problem = problem or refusal
        raise UserError(f"{self.name} refuses this conversation: {problem}") from problem

    def _writes_all(self, messages: Messages) -> bool:
        """Whether the text has the content of every system and tool turn, however it is trimmed or quoted there, and
        every list of tools or calls."""
        marked: Messages = []
        marks: list[str] = []
        for message in messages:
            if message["role"] in ("system", "tool"):
                marks.append(_mark())
                message = {**message, "content": marks[-1]}
            for name, details in (("tools", "parameters"), ("tool_calls", "arguments")):
                if name in message:
                    marks.append(_mark())
                    function = {"name": marks[-1], "description": "", details: {}}
                    message = {
                        **message,
                        name: [{"type": "function", "function": function}],
                    }  # alone: some templates refuse several calls in a turn
            marked.append(message)
        text = self._run(marked) if marks else ""
        return all(mark in text for mark in marks)

    def _opened(self, messages: Messages) -> str:
        if self.opens_turns:
            return self._run(messages, generation_prompt=True)
        mark = _mark()
        answered = [*messages, {"role": "assistant", "content": mark}]
        return self._run(answered).partition(mark)[0].rstrip(" ")

    def _hide(self, messages: Messages) -> tuple[Messages, dict[str, str]]:
        """Content with its control strings replaced by marks, and what each mark stands for."""
        marks: dict[str, str] = {}

        def hide(text: str) -> str:
            return self.control_pattern.sub(lambda match: marks.setdefault(match[0], _mark()), text)

        hidden = [{k: v if k == "role" else each_text(v, hide) for k, v in m.items()} for m in messages]
        return hidden, {mark: text for text, mark in marks.items()}

    def _spans(self, messages: Messages, text: str) -> list[tuple[int, int]]:
        spans = self._tagged_spans(messages, text) if self.tagged else self._found_spans(messages, text)
        return [self._closed(text, start, end) for start, end in spans]

    def _tagged_spans(self, messages: Messages, text: str) -> list[tuple[int, int]]:
        special: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        rendered: Any = render_jinja_template(  # (texts, spans of each), though it is annotated as a str
            conversations=[messages],
            tools=_tools(messages),
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **special,
        )
        spans: list[tuple[int, int]] = rendered[1][0]
        # Some templates tag the header of the turn too; decoding starts after it, so the span does as well.
        opened = self._prompt_ends(messages, text).values()
        return [(max((o for o in opened if start < o < end), default=start), end) for start, end in spans]

    def _found_spans(self, messages: Messages, text: str) -> list[tuple[int, int]]:
        if any("tool_calls" in message for message in messages):
            raise UserError(
                f"{self.name} does not mark where the assistant's tool calls end: add {{% generation %}} tags around them "
                "in the template"
            )
        mark, turns = _mark(), [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for behind in (False, True):
            parts = self._run(_marked(messages, mark, behind)).split(mark)
            if "".join(parts) == text and len(parts) == 2 * len(turns) + 1:
                break
        else:
            raise UserError(
                f"{self.name} changes or drops the assistant's text, so the answers cannot be located: "
                "add {% generation %} tags around them in the template"
            )
        borders = list(accumulate(len(part) for part in parts[:-1]))
        opened = self._prompt_ends(messages, text)
        spans: list[tuple[int, int]] = []
        for turn, start, end in zip(turns, borders[::2], borders[1::2]):
            if turn not in opened:  # the template rewrites what came before: look for the header alone
                header = self._header(messages[:turn])
                place = text.rfind(header, spans[-1][1] if spans else 0, start) if header else -1
                opened[turn] = place + len(header) if place >= 0 else start
            spans.append((min(opened[turn], start), end))
        return spans

    def _header(self, messages: Messages) -> str:
        """What the template writes after the messages to open an answer."""
        prompt = self._opened(messages)
        same = takewhile(lambda pair: pair[0] == pair[1], zip(prompt, self._run(messages)))
        return prompt[len(list(same)) :]

    def _prompt_ends(self, messages: Messages, text: str) -> dict[int, int]:
        """By number of an assistant turn, where its prompt ends in the text, if the text starts with it."""
        ends = {}
        for turn, message in enumerate(messages):
            if turn and message["role"] == "assistant":
                prompt = self._opened(messages[:turn])
                if text.startswith(prompt):
                    ends[turn] = len(prompt)
        return ends

    def _closed(self, text: str, start: int, end: int) -> tuple[int, int]:
        """The span up to and including the control token that closes the turn, without white space after it."""
        content = text[start:end].rstrip()
        if content.endswith(self.closing):
            return start, start + len(content)
        closing = self.closing_pattern.match(text, start + len(content))
        return start, closing.end() if closing else end


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's own template, or a plain default (with a notice, once) if it has none."""
    try:
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as problem:
        raise UserError(f"{tokenizer.name_or_path} has several chat templates and no default") from problem
    return _cached(tokenizer, template)


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that identify a template and its control tokens."""
    template = chat_template(tokenizer)
    return hashlib.sha256("\n".join([template.template, *template.control]).encode()).hexdigest()[:16]


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that identify how text becomes token ids: the vocabulary and, where the tokenizer is one of the library
    tokenizers, its merges and all that it does before and after them."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return digest(tokenizer.get_vocab())
    state = json.loads(backend.to_str())
    return digest({name: part for name, part in state.items() if name not in ("truncation", "padding")})  # set by calls


@lru_cache(maxsize=8)
def _cached(tokenizer: PreTrainedTokenizerBase, template: str | None) -> ChatTemplate:
    if template is None:
        name = tokenizer.name_or_path or "The tokenizer"
        notice = f"{name} has no chat template: conversations are written USER: ... ASSISTANT: ..."
        say(notice)
    return ChatTemplate(tokenizer, template or DEFAULT_TEMPLATE)


def _tools(messages: Messages) -> list[Any] | None:
    """The tools that the leading system message offers."""
    return messages[0].get("tools")


def _is_document(messages: Messages) -> bool:
    """Whether this is a plain text: one message of the role document."""
    return len(messages) == 1 and messages[0].get("role") == "document"


def _without_tools(messages: Messages) -> Messages:
    """Tool turns as user turns, for templates without tools."""
    return checked([{**m, "role": "user"} if m["role"] == "tool" else m for m in messages])


def _without_system(messages: Messages) -> Messages:
    """A leading system turn put before the first user turn, for templates without a system role."""
    if len(messages) < 2 or [message["role"] for message in messages[:2]] != ["system", "user"] or _tools(messages):
        return messages
    first = {"role": "user", "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
    return [first, *messages[2:]]


def _marked(messages: Messages, mark: str, behind: bool) -> Messages:
    """The messages with a mark before and behind every answer, inside the white space that a template may trim.

    An answer of white space alone, as after reasoning without a result, is marked before or `behind` it.
    """
    marked = []
    for message in messages:
        if message["role"] == "assistant":
            content = message["content"]
            reasoning, think, answer = content.rpartition("</think>")
            space = len(answer) - len(answer.lstrip()) if behind or answer.strip() else 0
            start = len(reasoning) + len(think) + space
            end = max(start, len(content.rstrip()))
            message = {**message, "content": content[:start] + mark + content[start:end] + mark + content[end:]}
        marked.append(message)
    return marked


def _mark() -> str:
    return f"\ue000{secrets.token_hex(8)}\ue001"


def _any_of(strings: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, strings)) or r"(?!)"
