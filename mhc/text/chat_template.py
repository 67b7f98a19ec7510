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
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise, takewhile
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mhc.errors import UserError
from mhc.text.messages import Messages, checked, clean_text, each_text, learned
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
THINK, THOUGHT = "<think>", "</think>"
PLAIN = {"role", "content", "weight", "name", "tool_call_id"}
QUESTION = {"role": "user"}
TOOL: dict[str, Any] = {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}
# A conversation with each field that a template may or may not write.
PROBES: dict[str, list[dict[str, Any]]] = {
    "tools": [{"role": "system", "tools": [{"type": "function", "function": TOOL}]}, QUESTION],
    "reasoning_content": [QUESTION, {"role": "assistant", "reasoning_content": "b"}],
    "tool_calls": [
        QUESTION,
        {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "look", "arguments": {}}}]},
    ],
}
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


Span = tuple[int, int] | None  # characters; None where an answer cannot be located


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it.

    `spans` are the character ranges of the assistant's text; `hidden` maps each mark in the text to the
    control string it stands for. A `document` is a text that no template wrote, all of it one span. `context` are the
    numbers of spans that are not learned, `changed` those of the assistant's turns that do not stand in the text behind
    their prompt, or not as they were given.
    """

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str] = field(default_factory=dict)
    document: bool = False
    context: frozenset[int] = frozenset()
    changed: frozenset[int] = frozenset()

    def pieces(self) -> list[tuple[str, bool]]:
        """The text cut at the span borders, each piece with whether it is learned."""
        borders = [0, *(border for span in self.spans for border in span), len(self.text)]
        cut = [
            (self.text[a:b], i % 2 == 1 and i // 2 not in self.context) for i, (a, b) in enumerate(pairwise(borders))
        ]
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
        self._written: dict[str, bool] = {}

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
                spans = [span for span in self._spans(accepted, text)[0] if span and span[1] <= len(prompt)]
        return Rendered(prompt, spans, hidden)

    def render(self, messages: Messages, partly: bool = False) -> Rendered:
        """The conversation as text, with its spans; what has weight 0 is not learned. Raises UserError where the template
        refuses it, or an answer cannot be located; `partly` leaves such a one without a span, among `changed`."""
        if _is_document(messages):
            (message,), hidden = self._hide([{**messages[0], "content": clean_text(messages[0]["content"])}])
            return Rendered(message["content"], [(0, len(message["content"]))], hidden, document=True)
        messages, hidden = self._hide(checked(messages))
        messages, text = self._accepted(messages)
        spans, changed = self._spans(messages, text)
        answers = [message for message in messages if message["role"] == "assistant"]
        if not partly and not self.tagged and None in spans:
            raise UserError(
                f"{self.name} does not mark where the assistant's tool calls end: add {{% generation %}} tags around them "
                "in the template"
            )
        found = [(span, learned(answer)) for span, answer in zip(spans, answers) if span]
        context = frozenset(number for number, (_, learns) in enumerate(found) if not learns)
        return Rendered(text, [span for span, _ in found], hidden, context=context, changed=changed)

    def as_decoded(self, messages: Messages) -> Rendered:
        """The prompt of the last message, an answer, and behind it the answer word for word with the end of a turn, whatever
        the template would make of it. Only this answer is learned."""
        prompt, (answer,) = self.prompt(messages[:-1]), checked(messages[-1:])
        (answer,), hidden = self._hide([answer])
        text = prompt.text + _continued(prompt.text, answer) + self.ending
        spans = [*prompt.spans, (len(prompt.text), len(text))]
        return Rendered(text, spans, prompt.hidden | hidden, context=frozenset(range(len(prompt.spans))))

    @cached_property
    def ending(self) -> str:
        """What the template writes behind an answer up to the end of its turn."""
        rendered = self.render([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
        return rendered.text[slice(*rendered.spans[-1])].rpartition("b")[2]

    def written(self, messages: Messages) -> tuple[Messages, list[str]]:
        """The messages without what the template does not write: tools, calls and reasoning; and the names of those, with
        token ids that are not the tokenizer's. An answer that is nothing but such calls is not learned."""
        if all(message.keys() <= PLAIN for message in messages):
            return messages, []
        found, dropped = [], set()
        for message in messages:
            kept = {name: value for name, value in message.items() if name not in PROBES or self._writes(name)}
            if "token_ids" in kept and not self._decodes(kept):
                del kept["token_ids"]
            dropped |= message.keys() - kept.keys()
            if not (kept["content"].strip() or kept.keys() & PROBES.keys()) and len(kept) < len(message):
                kept["weight"] = 0
            found.append(kept)
        return found, sorted(dropped)

    def _decodes(self, message: dict[str, Any]) -> bool:
        """Whether the token ids of an answer are its text."""
        ids = message["token_ids"]
        if not ids or max(ids) >= len(self.tokenizer):
            return False
        return clean_text(str(self.tokenizer.decode(ids, skip_special_tokens=True))) == message["content"]

    def _writes(self, name: str) -> bool:
        """Whether the template writes this field of a message: its text with and without are compared."""
        if name not in self._written:
            probe = [{**message, "content": "a"} for message in PROBES[name]]
            bare = [{key: value for key, value in message.items() if key != name} for message in probe]
            try:
                self._written[name] = self._run(probe) != self._run(bare)
            except (TemplateError, TypeError):
                self._written[name] = False
            if name == "reasoning_content" and self._opened(bare[:1]).rstrip().endswith(THINK):
                self._written[name] = True  # then `as_decoded` does
        return self._written[name]

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

    def _spans(self, messages: Messages, text: str) -> tuple[list[Span], frozenset[int]]:
        """The span of each of the assistant's turns, and which of them are changed (by their number among these)."""
        opened = self._prompt_ends(messages, text)
        spans = (self._tagged_spans if self.tagged else self._found_spans)(messages, text, opened)
        spans = [span and self._closed(text, *span) for span in spans]
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        whole = {
            number
            for number, (turn, span) in enumerate(zip(turns, spans))
            if span and turn in opened and _is_whole(text[: opened[turn]], messages[turn], text[slice(*span)])
        }
        return spans, frozenset(range(len(turns))) - whole

    def _tagged_spans(self, messages: Messages, text: str, opened: dict[int, int]) -> list[Span]:
        special: dict[str, Any] = dict(self.tokenizer.special_tokens_map)
        rendered: Any = render_jinja_template(  # (texts, spans of each), though it is annotated as a str
            conversations=[messages],
            tools=_tools(messages),
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **special,
        )
        spans: list[tuple[int, int]] = rendered[1][0]
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        # Some templates tag the header of the turn too; decoding starts after it, so the span does as well.
        if len(spans) == len(turns):
            return [
                self._behind_header(messages[:turn], text, opened.get(turn), span) for turn, span in zip(turns, spans)
            ]
        found: list[Span] = []
        for number, turn in enumerate(turns):  # several parts of a turn are tagged, or none
            start = opened.get(turn, len(text))
            after = min([place for later in turns[number + 1 :] if (place := opened.get(later))] or [len(text)])
            ends = [end for _, end in spans if start < end <= after]
            found.append((start, max(ends)) if ends else None)
        return found

    def _behind_header(self, messages: Messages, text: str, opened: int | None, span: tuple[int, int]) -> Span:
        """The span of the answer to these messages without the header of its turn, where that is tagged."""
        start, end = span
        if opened is not None:
            return (opened if start < opened < end else start), end
        header = self._header(messages) if messages else ""  # a conversation may begin with the assistant
        same = _common(header, text[start:end]).rstrip("<")
        return (start + len(same) if same == header or self.control_pattern.match(same) else start), end

    def _found_spans(self, messages: Messages, text: str, opened: dict[int, int]) -> list[Span]:
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        marked, mark = [turn for turn in turns if "tool_calls" not in messages[turn]], _mark()
        for behind in (False, True):
            parts = self._run(_marked(messages, mark, behind)).split(mark)
            if "".join(parts) == text and len(parts) == 2 * len(marked) + 1:
                break
        else:
            raise UserError(
                f"{self.name} changes or drops the assistant's text, so the answers cannot be located: "
                "add {% generation %} tags around them in the template"
            )
        borders = list(accumulate(len(part) for part in parts[:-1]))
        located = dict(zip(marked, zip(borders[::2], borders[1::2])))
        spans: list[Span] = []
        before = 0
        for turn in turns:
            if turn not in located:  # with calls, which stand behind its content: up to where the text goes on
                whole = self._run(messages[: turn + 1]).rstrip()
                found = turn in opened and len(whole) > opened[turn] and text.startswith(whole)
                spans.append((opened[turn], len(whole)) if found else None)
                continue
            start, end = located[turn]
            begin = opened.get(turn)
            if begin is None:  # the template rewrites what came before: look for the header alone
                header = self._header(messages[:turn]) if turn else ""
                place = text.rfind(header, before, start) if header else -1
                begin = place + len(header) if place >= 0 else start
            spans.append((min(begin, start), end))
            before = end
        return spans

    def _header(self, messages: Messages) -> str:
        """What the template writes after the messages to open an answer."""
        prompt = self._opened(messages)
        return prompt[len(_common(prompt, self._run(messages))) :]

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
    return messages[0].get("tools") if messages else None


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
        if message["role"] == "assistant" and "tool_calls" not in message:
            content = message["content"]
            reasoning, think, answer = content.rpartition("</think>")
            space = len(answer) - len(answer.lstrip()) if behind or answer.strip() else 0
            start = len(reasoning) + len(think) + space
            end = max(start, len(content.rstrip()))
            message = {**message, "content": content[:start] + mark + content[start:end] + mark + content[end:]}
        marked.append(message)
    return marked


def _is_whole(prompt: str, answer: dict[str, Any], said: str) -> bool:
    """Whether the assistant's text has all that an answer to the prompt consists of, however white space is written."""
    calls = [call.get("function", call).get("name", "") for call in answer.get("tool_calls", [])]
    content = _continued(prompt, {"role": "assistant", "content": answer["content"]})
    wanted = [content, answer.get("reasoning_content", ""), *calls]
    return all("".join(text.split()) in "".join(said.split()) for text in wanted)


def _continued(prompt: str, answer: dict[str, Any]) -> str:
    """An answer as it follows a prompt, which may have opened its reasoning already."""
    content, reasoning = answer["content"], answer.get("reasoning_content")
    if not prompt.rstrip().endswith(THINK):
        return content if reasoning is None else f"{THINK}\n{reasoning}\n{THOUGHT}\n\n{content}"
    if reasoning is not None:
        return f"{reasoning}\n{THOUGHT}\n\n{content}"
    return content.lstrip().removeprefix(THINK).lstrip("\n") if content.lstrip().startswith(THINK) else content


def _common(one: str, other: str) -> str:
    """What both texts begin with."""
    return one[: sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other)))]


def _mark() -> str:
    return f"\ue000{secrets.token_hex(8)}\ue001"


def _any_of(strings: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, strings)) or r"(?!)"
