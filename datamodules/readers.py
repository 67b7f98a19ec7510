"""Conversations as people have them: recognised by their rows, repaired where the repair is obvious.

| format     | a row                                                                                    |
|------------|------------------------------------------------------------------------------------------|
| sharegpt   | conversations: [{from: human or gpt or system or tool, value}]                           |
| messages   | messages, conversations or turns: [{role, content}]                                      |
| alpaca     | instruction, input (may be empty), output or response                                    |
| question   | question, prompt or query; answer, response, completion, std_answer or output            |
| preference | chosen (and rejected, which is not looked at): a text, a turn or whole conversations     |
| turns      | turns: [text], the user's alone (MT-Bench)                                                |
| tldr       | command, examples: [{task, command}]                                                     |
| text       | text: a document, all of which is learned                                                |

in any of the files of `datamodules.files`. A row is *broken* if it does not parse or has no shape of the table; it is
*dropped* if it does but holds nothing to learn from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape

from datamodules.files import Broken, raw_rows, source_state
from mhc.errors import UserError
from mhc.messages import Messages, clean_text

__all__ = ["Conversation", "Report", "iterate", "read_conversations", "source_state"]

TURN_KEYS = ("messages", "conversations", "conversation", "turns")
ID_KEYS = ("id", "question_id", "conversation_id", "prompt_id")
QUESTIONS = ("question", "prompt", "query", "instruction")
ANSWERS = ("answer", "response", "completion", "std_answer", "output")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}
SHOWN = 6  # reasons a report lists of each kind
EARLY = 1000  # rows after which a file that is mostly broken is given up
CUT = "cut before a turn without content"
NO_ANSWER = "no assistant turn to learn from"
EMPTY = "a turn without content and no answer before it"
SHAPES = "conversations (from/value), messages (role/content), instruction/output, question/answer or text"


@dataclass(frozen=True)
class Conversation:
    """Messages: at most one system turn, then user and assistant in turn (tools between them), the assistant last; or one
    document."""

    id: str
    messages: Messages
    where: str  # "file.json:12": the line of a JSONL file, the row of a JSON array, both from 1

    @property
    def prompt(self) -> str:
        """The first user prompt (or the document): what decides the split."""
        first = self.messages[0]
        return next((message["content"] for message in self.messages if message["role"] == "user"), first["content"])


@dataclass
class Report:
    """What was read: rows, and for each reason how many and where the first one stands."""

    path: str
    formats: dict[str, int] = field(default_factory=dict)
    read: int = 0
    kept: int = 0
    broken: dict[str, tuple[int, str]] = field(default_factory=dict)
    dropped: dict[str, tuple[int, str]] = field(default_factory=dict)
    repaired: dict[str, tuple[int, str]] = field(default_factory=dict)
    noticed: dict[str, tuple[int, str]] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        """How many rows are broken."""
        return sum(number for number, _ in self.broken.values())

    def count(self, what: dict[str, tuple[int, str]], reason: str, where: str) -> None:
        """Add one to a reason of `broken`, `dropped`, `repaired` or `noticed`."""
        number, first = what.get(reason, (0, where))
        what[reason] = (number + 1, first)

    def lines(self) -> list[str]:
        """The report as a few lines of Rich markup."""
        formats = ", ".join(f"{name} ({count:,})" for name, count in self.formats.items())
        lines = [f"[bold]{escape(self.path)}[/bold]: {formats}"]
        lines.append(f"{self.read:,} rows read, {self.kept:,} kept")
        for title in ("broken", "dropped", "repaired", "noticed"):
            what = getattr(self, title)
            reasons = sorted(what.items(), key=lambda item: -item[1][0])
            for reason, (number, first) in reasons[:SHOWN]:
                lines.append(f"  {title} {number:,}: {escape(reason)} (first: {escape(first)})")
            if rest := sum(number for _, (number, _) in reasons[SHOWN:]):
                lines.append(f"  {title} {rest:,} for other reasons")
        return lines


class _Dropped(Exception):
    """The row has a known shape but nothing to learn from."""


def read_conversations(path: str, max_bad_share: float = 0.1) -> tuple[list[Conversation], Report]:
    """All conversations of a source, and what was read. Raises as `iterate`."""
    report = Report(str(path))
    return list(iterate(path, report, max_bad_share=max_bad_share)), report


def iterate(path: str, report: Report, answered: bool = True, max_bad_share: float = 0.1) -> Iterator[Conversation]:
    """The conversations of a file, a folder or a data set, one at a time; `report` counts along.

    answered: false keeps prompts without an answer; their assistant turns have the content "" (a document is a prompt
    then). Raises UserError if there is nothing to read, or if more than `max_bad_share` of the rows are broken (naming
    the first).
    """
    ids: set[int] = set()
    for where, row in raw_rows(str(path)):
        report.read += 1
        try:
            if isinstance(row, Broken):
                raise row
            form, turns = _turns(row)
            messages, repairs = _documented(turns, answered) if form == "text" else _repair(turns, answered)
        except Broken as reason:
            report.count(report.broken, str(reason), where)
            if report.read >= EARLY and report.bad > max_bad_share * report.read:
                break
            continue
        except _Dropped as reason:
            report.count(report.dropped, str(reason), where)
            continue
        for repair in repairs:
            report.count(report.repaired, repair, where)
        report.formats[form] = report.formats.get(form, 0) + 1
        report.kept += 1
        name = next((row[key] for key in ID_KEYS if row.get(key) is not None), None)
        if name is not None:
            if hash(str(name)) in ids:
                report.count(report.noticed, "an id that another row has as well", where)
            ids.add(hash(str(name)))
        yield Conversation(where if name is None else clean_text(str(name)), messages, where)
    if not report.read:
        raise UserError(f"{path} holds no rows: expected {SHAPES}")
    if report.bad > max_bad_share * report.read:
        reason, (_, first) = next(iter(report.broken.items()))
        raise UserError(f"{path}: {report.bad} of {report.read} rows are broken, the first at {first}: {reason}")
    if not report.kept:
        reason, (_, first) = next(iter(report.dropped.items()), ("nothing kept", (0, str(path))))
        raise UserError(f"{path}: none of {report.read} rows can be used, the first at {first}: {reason}")


# -- rows ------------------------------------------------------------------------------------------

Turns = list[tuple[object, object]]  # (role, content), neither of them checked yet


def _turns(row: object) -> tuple[str, Turns]:
    """The format of a row and its turns."""
    if not isinstance(row, dict):
        raise Broken(f"a row is {'null' if row is None else 'a ' + type(row).__name__}, not an object")
    if "chosen" in row:
        return "preference", _preferred(row)
    answer = next((row[key] for key in ANSWERS if key in row), None)
    has_answer = any(key in row for key in ANSWERS)
    if "instruction" in row and has_answer:
        question, extra = row["instruction"], row.get("input")
        if isinstance(question, str) and isinstance(extra, str) and extra:
            question = f"{question}\n\n{extra}"
        return "alpaca", [*_system(row), ("user", question), ("assistant", answer)]
    for key in TURN_KEYS:
        turns = row.get(key)
        if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
            return "turns", [turn for text in turns for turn in (("user", text), ("assistant", None))]
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            if not turns:
                raise _Dropped("no turns")
            for form, role in (("messages", "role"), ("sharegpt", "from")):
                if all(role in turn for turn in turns):
                    return form, [*_system(row), *map(_turn, turns)]
    if isinstance(row.get("examples"), list) and "command" in row:
        return "tldr", _tldr(row)
    for key in QUESTIONS:
        if key in row and (has_answer or isinstance(row[key], str)):
            return "question", [*_system(row), ("user", row[key]), ("assistant", answer)]
    if "text" in row:
        return "text", [("document", row["text"])]
    keys = ", ".join(map(str, list(row)[:8])) or "no keys"
    raise Broken(f"shape not recognised (keys: {keys}), expected {SHAPES}")


def _turn(turn: dict[str, Any]) -> tuple[object, object]:
    """One turn, in OpenAI's words or ShareGPT's."""
    return turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))


def _system(row: dict[str, Any]) -> Turns:
    return [("system", row["system"])] if row.get("system") else []


def _preferred(row: dict[str, Any]) -> Turns:
    """The conversation that was preferred."""
    chosen, before = row["chosen"], next((row[key] for key in (*TURN_KEYS, "prompt") if row.get(key)), [])
    if isinstance(chosen, list) and all(isinstance(turn, dict) for turn in chosen):
        turns = [_turn(turn) for turn in chosen]
        if len(turns) > 1 or not isinstance(before, list):
            return [*_system(row), *turns] if len(turns) > 1 else [*_system(row), ("user", before), *turns]
        return [*_system(row), *map(_turn, before), *turns]
    last = _turn(chosen) if isinstance(chosen, dict) else ("assistant", chosen)
    if isinstance(before, list) and all(isinstance(turn, dict) for turn in before):
        return [*_system(row), *map(_turn, before), last]
    question = before if isinstance(before, str) else next((row[key] for key in QUESTIONS if key in row), None)
    return [*_system(row), ("user", question), last]


def _tldr(row: dict[str, Any]) -> Turns:
    """A page of tldr: every task of a command is asked for."""
    turns: Turns = []
    for example in row["examples"]:
        if not isinstance(example, dict) or not isinstance(example.get("task"), str):
            raise Broken("an example without a task")
        turns += [("user", f"With `{row['command']}`: {example['task']}"), ("assistant", example.get("command"))]
    if not turns:
        raise _Dropped("no examples")
    return turns


def _documented(turns: Turns, answered: bool) -> tuple[Messages, list[str]]:
    text = _text(turns[0][1])
    if not text.strip():
        raise _Dropped("an empty text")
    if answered:
        return [{"role": "document", "content": text}], []
    return [{"role": "user", "content": text}, {"role": "assistant", "content": ""}], []


def _repair(turns: Turns, answered: bool = True) -> tuple[Messages, list[str]]:
    """Turns as messages that alternate and end with the assistant, and what had to be repaired for that."""
    repairs: list[str] = []
    messages: Messages = []
    for raw_role, raw_content in turns:
        role = ROLES.get(raw_role.strip().lower()) if isinstance(raw_role, str) else None
        if role is None:
            raise _Dropped(f"unknown role {str(raw_role)[:40]!r}")
        to_answer = not answered and role == "assistant" and raw_content in (None, "")
        content = "" if to_answer else _text(raw_content)
        if role == "system" and not content.strip():
            continue
        if not content.strip() and not to_answer:
            repairs.append(CUT)
            break
        if role == "system" and any(message["role"] != "system" for message in messages):
            raise _Dropped("a system turn in the middle")
        if role in ("assistant", "tool") and not any(message["role"] == "user" for message in messages):
            repairs.append(f"leading {role} turn removed")
            continue
        if messages and messages[-1]["role"] == role:
            repairs.append(f"two {role} turns in a row joined")
            content = messages.pop()["content"] + "\n\n" + content
        messages.append({"role": role, "content": content})
    if not answered and messages and messages[-1]["role"] in ("user", "tool"):
        messages.append({"role": "assistant", "content": ""})
    if messages and messages[-1]["role"] != "assistant":
        if not any(message["role"] == "assistant" for message in messages):
            raise _Dropped(EMPTY if repairs[-1:] == [CUT] else NO_ANSWER)
        while messages[-1]["role"] != "assistant":
            messages.pop()
        repairs.append("cut after the last assistant turn")
    if not messages:
        raise _Dropped(NO_ANSWER)
    return messages, list(dict.fromkeys(repairs))


def _text(content: object) -> str:
    """Content as text; a list of text parts (OpenAI) is joined."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(text, str) for text in texts) else content
    if not isinstance(content, str):
        raise _Dropped(f"content is {'missing' if content is None else 'not text'}")
    return clean_text(content)
