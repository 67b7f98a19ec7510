"""A chat template and what has to be known about it: where the assistant speaks, what is a control token.

The template is run, never imitated. One with `{% generation %}` tags says itself where the assistant speaks.
In any other, turn i starts where messages[:i] with the generation prompt end, and it ends after its content
and the control token behind that. The content is found by rendering once more with random marks around it,
so it is found even in a template that rewrites history (Qwen3 drops the reasoning of earlier turns).

Whether a template writes system and tool turns is found out the same way, with a mark in their place. Where it refuses
or drops them, the user says what they say. What a conversation needs is asked of it as it will be once it is answered,
so that a prompt and the row it grows into are written alike.

Text that spells a control token is replaced by a random mark before rendering, so nothing a user types can be
taken for what the template writes.

Beside its content an assistant's message may have `reasoning_content` and `tool_calls` (as OpenAI writes them), and a
leading system message the `tools` that a template is given.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, pairwise, takewhile

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from mhc.errors import UserError
from mhc.text.messages import STRUCTURE, Messages, clean_text, each_text
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
ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True)
class Rendered:
    """A conversation as its template writes it.

    `spans` are the character ranges of what the assistant says; `hidden` maps each mark in the text to the
    control string it stands for. A `document` is a text that no template wrote, all of it one span.
    """

    text: str
    spans: list[tuple[int, int]]
    hidden: dict[str, str] = field(default_factory=dict)
    document: bool = False

    def pieces(self) -> list[tuple[str, bool]]:
        """The text cut at the span borders, each piece with whether the assistant says it."""
        borders = [0, *(border for span in self.spans for border in span), len(self.text)]
        cut = [(self.text[a:b], i % 2 == 1) for i, (a, b) in enumerate(pairwise(borders))]
        return [(text, said) for text, said in cut if text]


class ChatTemplate:
    """The template of a tokenizer and its control tokens; build it with `chat_template`."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str):
        self.tokenizer, self.template = tokenizer, template
        self.tagged = GENERATION_TAG.search(template) is not None
        self.opens_turns = "add_generation_prompt" in template
        added = list(tokenizer.added_tokens_decoder.values())
        self.special = {token.content for token in added if token.special} | set(tokenizer.all_special_tokens)
        shaped = {token.content for token in added if CONTROL_SHAPE.fullmatch(token.content)}
        self.control = tuple(sorted(self.special | shaped, key=len, reverse=True))
        self.control_pattern = re.compile(f"({_any_of(self.control)})")
        # A turn may be closed by any control token but the one that only ever opens a text.
        self.closing = tuple(t for t in self.control if t != tokenizer.bos_token or t == tokenizer.eos_token)
        self.closing_pattern = re.compile(rf"\s*(?:{_any_of(self.closing)})")

    @property
    def name(self) -> str:
        """How to name this template in a message."""
        return f"the chat template of {self.tokenizer.name_or_path or type(self.tokenizer).__name__}"

    def prompt(self, messages: Messages) -> Rendered:
        """The text up to where the assistant starts to speak, with the spans of what it said before."""
        if _is_document(messages):
            raise UserError("a document has no prompt: give a conversation")
        messages, hidden = self._hide(checked(messages))
        answer = [] if messages[-1]["role"] == "assistant" else [{"role": "assistant", "content": "answer"}]
        accepted, text = self._accepted(messages + answer)
        asked = accepted[: len(accepted) - len(answer)]
        prompt, spans = self._opened(asked), []
        if text.startswith(prompt) and any(message["role"] == "assistant" for message in asked):
            try:
                spans = [(start, end) for start, end in self._spans(accepted, text) if end <= len(prompt)]
            except UserError:
                spans = []  # a template that cannot be trained on can still be asked
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
        return self.tokenizer.apply_chat_template(
            messages,
            tools=_tools(messages),
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=generation_prompt,
        )

    def _accepted(self, messages: Messages) -> tuple[Messages, str]:
        """The messages as the template takes them, and their text: where it refuses or drops system or tool turns,
        the user says what they say."""
        plain = _without_tools(messages)
        problem = None
        for offered in (messages, plain, _without_system(messages), _without_system(plain)):
            try:
                if self._writes_all(offered):
                    return offered, self._run(offered)
                problem = problem or UserError("it drops what system or tool turns say, or tools and calls of them")
            except (TemplateError, TypeError) as refusal:
                problem = problem or refusal
        raise UserError(f"{self.name} refuses this conversation: {problem}") from problem

    def _writes_all(self, messages: Messages) -> bool:
        """Whether the text holds what every system and tool turn says, however it is trimmed or quoted there, and every
        list of tools or calls."""
        marked, marks = [], []
        for message in messages:
            if message["role"] in ("system", "tool"):
                marks.append(_mark())
                message = {**message, "content": marks[-1]}
            for name, empty in (("tools", {"parameters": {}}), ("tool_calls", {"arguments": {}})):
                if name in message:
                    marks.append(_mark())
                    one = {"type": "function", "function": {"name": marks[-1], "description": "", **empty}}
                    message = {**message, name: [one]}  # alone: some templates refuse several calls in a turn
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
        _, tagged = render_jinja_template(
            conversations=[messages],
            tools=_tools(messages),
            chat_template=self.template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        # Some templates tag the header of the turn too; decoding starts behind it, so the span does as well.
        opened = self._prompt_ends(messages, text).values()
        begin = [max((o for o in opened if start < o < end), default=start) for start, end in tagged[0]]
        return [(start, end) for start, (_, end) in zip(begin, tagged[0])]

    def _found_spans(self, messages: Messages, text: str) -> list[tuple[int, int]]:
        if any("tool_calls" in message for message in messages):
            raise UserError(
                f"{self.name} does not say where the assistant's tool calls end: add {{% generation %}} tags around them "
                "in the template"
            )
        mark, turns = _mark(), [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        for behind in (False, True):
            parts = self._run(_marked(messages, mark, behind)).split(mark)
            if "".join(parts) == text and len(parts) == 2 * len(turns) + 1:
                break
        else:
            raise UserError(
                f"{self.name} changes or drops what the assistant says, so the answers cannot be found: "
                "add {% generation %} tags around them in the template"
            )
        borders = list(accumulate(len(part) for part in parts[:-1]))
        opened = self._prompt_ends(messages, text)
        spans: list[tuple[int, int]] = []
        for turn, start, end in zip(turns, borders[::2], borders[1::2]):
            if turn not in opened:  # the template rewrites what came before: look for the header alone
                header = self._header(messages[:turn])
                found = text.rfind(header, spans[-1][1] if spans else 0, start) if header else -1
                opened[turn] = found + len(header) if found >= 0 else start
            spans.append((min(opened[turn], start), end))
        return spans

    def _header(self, messages: Messages) -> str:
        """What the template writes behind the messages to open an answer."""
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
        """The span up to and with the control token that closes the turn, without white space behind it."""
        said = text[start:end].rstrip()
        if said.endswith(self.closing):
            return start, start + len(said)
        closing = self.closing_pattern.match(text, start + len(said))
        return start, closing.end() if closing else end


def chat_template(tokenizer: PreTrainedTokenizerBase) -> ChatTemplate:
    """The tokenizer's own template, or a plain default (with a notice, once) if it has none."""
    try:
        template = tokenizer.get_chat_template() if tokenizer.chat_template else None
    except ValueError as problem:
        raise UserError(f"{tokenizer.name_or_path} has several chat templates and no default") from problem
    return _cached(tokenizer, template)


def template_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits that tell templates apart, control tokens included."""
    template = chat_template(tokenizer)
    return hashlib.sha256("\n".join([template.template, *template.control]).encode()).hexdigest()[:16]


@lru_cache(maxsize=8)
def _cached(tokenizer: PreTrainedTokenizerBase, template: str | None) -> ChatTemplate:
    if template is None:
        name = tokenizer.name_or_path or "The tokenizer"
        notice = f"{name} has no chat template: conversations are written USER: ... ASSISTANT: ..."
        say(notice)
    return ChatTemplate(tokenizer, template or DEFAULT_TEMPLATE)


def checked(messages: Messages) -> Messages:
    """Messages with known roles and clean text; neighbours of one role are joined by a blank line, tool turns and what
    has more than content not."""
    if not messages:
        raise UserError("an empty conversation: give at least one message")
    joined: Messages = []
    for number, message in enumerate(messages, start=1):
        role, content = message.get("role"), message.get("content")
        known = STRUCTURE.get(role, {}) if role in ROLES else {}
        more = {name: each_text(message[name], clean_text) for name in known if message.get(name)}
        for name, value in more.items():
            if not isinstance(value, known[name]):
                raise UserError(f"message {number}: {name} must be a {'text' if known[name] is str else 'list'}")
        content = "" if content is None and more else content
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"message {number}: role must be one of {', '.join(ROLES)} and content a text")
        if joined and joined[-1]["role"] == role != "tool" and not more and len(joined[-1]) == 2:
            content = joined.pop()["content"] + "\n\n" + content
        joined.append({"role": role, "content": clean_text(content), **more})
    return joined


def _tools(messages: Messages) -> list | None:
    """The tools that the leading system message offers."""
    return messages[0].get("tools")


def _is_document(messages: Messages) -> bool:
    """Whether this is a text and no conversation: one message of the role document."""
    return len(messages) == 1 and messages[0].get("role") == "document"


def _without_tools(messages: Messages) -> Messages:
    """Tool turns as user turns, for templates that know no tools."""
    return checked([{**m, "role": "user"} if m["role"] == "tool" else m for m in messages])


def _without_system(messages: Messages) -> Messages:
    """A leading system turn put before the first user turn, for templates that know no system role."""
    if len(messages) < 2 or [message["role"] for message in messages[:2]] != ["system", "user"] or _tools(messages):
        return messages
    first = {"role": "user", "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
    return [first, *messages[2:]]


def _marked(messages: Messages, mark: str, behind: bool) -> Messages:
    """The messages with a mark before and behind every answer, inside the white space that a template may trim.

    An answer that is white space alone, as behind reasoning that led nowhere, is marked before or `behind` it.
    """
    marked = []
    for message in messages:
        if message["role"] == "assistant":
            content = message["content"]
            reasoning, think, said = content.rpartition("</think>")
            space = len(said) - len(said.lstrip()) if behind or said.strip() else 0
            start = len(reasoning) + len(think) + space
            end = max(start, len(content.rstrip()))
            message = {**message, "content": content[:start] + mark + content[start:end] + mark + content[end:]}
        marked.append(message)
    return marked


def _mark() -> str:
    return f"\ue000{secrets.token_hex(8)}\ue001"


def _any_of(strings: tuple[str, ...]) -> str:
    return "|".join(map(re.escape, strings)) or r"(?!)"
