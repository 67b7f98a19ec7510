"""Turns of a row, in OpenAI's words or ShareGPT's, with what stands in them beside a text: reasoning, calls, tools, weights."""

from dataclasses import dataclass, field
from typing import Any

from datamodules.fields import Fields, as_list, decoded

REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss", "train", "loss_mask", "loss_weight", "loss_scale", "trainable")
LABELS = ("label", "chosen", "kto_tag", "desirable")  # false: an answer that should not be given
RATINGS = ("rating", "score", "vote", "votes", "feedback", "thumbs")  # below 0, or one of BAD
BAD = ("negative", "bad", "down", "thumbs_down", "thumbs-down", "dislike", "rejected")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}


class Dropped(Exception):
    """The row has a known shape but nothing to learn from; the reason is its text."""


@dataclass
class Turn:
    """role and content are not checked yet; `more` is what mhc.text.messages lets a message have beside them."""

    role: object
    content: object
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def known_role(self) -> str | None:
        """Which of a message's four roles this is, if any."""
        return ROLES.get(self.role.strip().lower()) if isinstance(self.role, str) else None


Turns = list[Turn]
COLUMNS = ("role", "from"), ("content", "value")


def form_of(turns: list) -> str:
    """Whose words a list of turns is written in."""
    return "sharegpt" if any(isinstance(turn, dict) and turn.get("from") for turn in turns) else "messages"


def listed(row: Fields, turns: list) -> Turns:
    """Turns that stand in a row; a question with its answer is two (Capybara). Raises Dropped where one is no object."""
    found: Turns = []
    for turn in turns:
        if not isinstance(turn, dict):
            raise Dropped(f"a turn is {'null' if turn is None else 'a ' + type(turn).__name__}, not an object")
        if all(isinstance(turn.get(names[0], turn.get(names[1])), list) for names in COLUMNS):
            raise Dropped("columns of turns that differ in length")
        fields = row.within(turn, " of a turn")
        if "role" not in fields and "from" not in fields and "input" in fields and "output" in fields:
            found += [Turn("user", fields.take("input")), Turn("assistant", fields.take("output"))]
        else:
            found.append(turn_of(fields))
    return found


def turn_of(fields: Fields) -> Turn:
    """One turn, of whatever role. Raises Dropped where its content has parts that are not text."""
    said = Turn(fields.take("role", "from"), _content(fields))
    role, more = said.known_role, said.more
    if role == "assistant":
        if reasoning := fields.take(*REASONING, kind=str):
            more["reasoning_content"] = reasoning
        calls = as_list(fields.take("tool_calls")) or as_list(fields.take("function_call"))
        if calls:
            more["tool_calls"] = _calls(calls)
        for name in WEIGHTS:
            if is_weight(fields.values.get(name)) and not fields.take(name):
                more["weight"] = 0
        if marked_bad(fields):
            more["weight"] = 0
        if _is_ids(fields.values.get("token_ids")):
            more["token_ids"] = fields.take("token_ids")
    elif not any(fields.values.get(name) for name in WEIGHTS):
        fields.used.update(WEIGHTS)  # what is not an answer is never learned
    if role == "system" and (tools := tools_of(fields)):
        more["tools"] = tools
    if role == "tool":
        names = {
            name: fields.take(name) for name in ("name", "tool_call_id") if isinstance(fields.values.get(name), str)
        }
        more.update(names)
    return said


def _content(turn: Fields) -> object:
    """The content of a turn; of a list of parts (OpenAI) their texts."""
    content = turn.take("content", "value", "text")
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        return content
    texts = []
    for part in content:
        fields = turn.within(part, " of a part of a turn")
        kind, text = fields.take("type"), fields.take("text")
        if not isinstance(text, str):
            raise Dropped(f"content is not text ({str(kind)[:40]})")
        texts.append(text)
    return "".join(texts)


def said(row: Fields, value: object, role: str) -> Turns:
    """One side of a pair: a text, a turn or several of them. No answer is an empty one."""
    turns = as_list(value) if not isinstance(value, str) else decoded(value)
    if isinstance(turns, list) and any(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in turns):
        return listed(row, turns)
    return [Turn(role, "" if value is None else value)]


def _calls(calls: list) -> list[dict[str, Any]]:
    """OpenAI's calls, their arguments as objects."""
    found = []
    for call in calls if isinstance(calls, list) else [calls]:
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise Dropped("a tool call without the name of a function")
        function = {**function, "arguments": decoded(function.get("arguments") or {})}
        found.append({**call, "function": function} if "function" in call else function)
    return found


def tools_of(fields: Fields) -> list | None:
    """The tools that an object offers, if any."""
    for name in ("tools", "functions"):
        tools = as_list(fields.values.get(name))
        if isinstance(tools, list) and tools and all(isinstance(tool, dict) for tool in tools):
            fields.take(name)
            return tools
    return None


def names_of(tools: list[dict[str, Any]]) -> list[str]:
    """The names of functions, in OpenAI's form or bare."""
    functions = [tool.get("function", tool) for tool in tools]
    return [str(function.get("name")) for function in functions if isinstance(function, dict)]


def is_weight(value: object) -> bool:
    """Whether this says that a turn is learned, or that it is not."""
    return isinstance(value, int | float) and value in (0, 1)


def _is_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and each >= 0 for each in value)


def marked_bad(fields: Fields) -> str | None:
    """The label or rating by which an answer is one that should not be given."""
    for name in (*LABELS, *RATINGS):
        value = fields.values.get(name)
        if isinstance(value, str):
            value = value.strip().lower()
        labelled = name in LABELS and (isinstance(value, bool) or value in ("true", "false"))
        if labelled or (name in RATINGS and isinstance(value, bool | int | float)) or value in BAD:
            fields.take(name)
        if (labelled and value in (False, "false")) or value in BAD:
            return f"{name}: {str(value).lower()}"
        if name in RATINGS and isinstance(value, int | float) and (value < 0 or value is False) and value % 1 == 0:
            return f"{name}: {value}"
    return None
