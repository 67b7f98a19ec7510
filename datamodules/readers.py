"""Conversations of a source: rows of `datamodules.shapes` in files of `datamodules.files`.

What is wrong is repaired where the repair is obvious, and counted. A row is *broken* if it does not parse or has no known
shape; it is *dropped* if it has one but nothing to learn from.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.markup import escape

from datamodules.files import raw_rows
from datamodules.shapes import SHAPES, turns_of
from datamodules.streams import Broken
from datamodules.trees import Trees, is_tree
from datamodules.turns import Dropped, Turns
from mhc.errors import UserError
from mhc.text.messages import Messages, clean_text, each_text, joined, learned

ID_KEYS = ("id", "question_id", "conversation_id", "prompt_id")
SHOWN = 6  # reasons a report lists of each kind
LISTED = 40  # fields it names beside those
EARLY = 1000  # rows after which a file that is mostly broken is given up
CONTENTS = {"reasoning_content", "tool_calls"}  # what an answer may consist of beside its text
CUT = "cut before a turn without content"
NO_ANSWER = "no answer: a prompt without an assistant turn"
NO_PROMPT = "no prompt: nothing that a user says"


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
    unused: dict[str, tuple[int, str]] = field(default_factory=dict)  # by field: "`name`" or "`name` of a turn"

    @property
    def bad(self) -> int:
        """How many rows are broken."""
        return sum(number for number, _ in self.broken.values())

    def count(self, what: dict[str, tuple[int, str]], reason: str, where: str) -> None:
        """Add one to a reason of `broken`, `dropped`, `repaired` or `noticed`, or to a field of `unused`."""
        number, first = what.get(reason, (0, where))
        what[reason] = (number + 1, first)

    def lines(self) -> list[str]:
        """The report as a few lines of Rich markup."""
        formats = ", ".join(f"{name} ({count:,})" for name, count in self.formats.items())
        lines = [f"[bold]{escape(self.path)}[/bold]: {formats or 'nothing to use'}"]
        lines.append(f"{self.read:,} rows read, {self.kept:,} kept")
        for title in ("broken", "dropped", "repaired", "noticed"):
            what = getattr(self, title)
            reasons = sorted(what.items(), key=lambda item: -item[1][0])
            for reason, (number, first) in reasons[:SHOWN]:
                lines.append(f"  {title} {number:,}: {escape(reason)} (first: {escape(first)})")
            if rest := sum(number for _, (number, _) in reasons[SHOWN:]):
                lines.append(f"  {title} {rest:,} for other reasons")
        return [*lines, *self.unused_lines()]

    def lost_lines(self) -> list[str]:
        """What was not used, rows and fields, as a few lines of Rich markup; none where all was."""
        return [line for line in self.lines()[2:] if not line.startswith(("  repaired", "  noticed"))]

    def unused_lines(self) -> list[str]:
        """How many rows have which fields that are not used, as a few lines of Rich markup."""
        fields = sorted(self.unused.items(), key=lambda item: -item[1][0])
        lines = [
            f"  {number:,} of {self.read:,} rows have a field {escape(name)} that is not used (first: {escape(first)})"
            for name, (number, first) in fields[:SHOWN]
        ]
        if rest := [f"{escape(name)} ({number:,})" for name, (number, _) in fields[SHOWN:]]:
            more = f" and {len(rest) - LISTED:,} more" if len(rest) > LISTED else ""
            lines.append(f"  further fields that are not used: {', '.join(rest[:LISTED])}{more}")
        return lines


def iterate(
    path: str, report: Report, answered: bool = True, max_bad_share: float = 0.1, rejected: bool = False
) -> Iterator[Conversation]:
    """The conversations of a file, a folder or a data set, one at a time; `report` counts along.

    answered: false keeps prompts without an answer; their assistant turns have the content "" (a document is a prompt
    then). rejected: of a pair, the answer that was not preferred. Raises UserError if there is nothing to read, or if more
    than `max_bad_share` of the rows are broken (naming the first).
    """
    ids: set[int] = set()
    trees = Trees()

    def conversation(where: str, form: str, name: str, turns: Turns) -> Conversation:
        messages, repairs = _documented(turns, answered) if form == "text" else _repair(turns, answered)
        for repair in repairs:
            report.count(report.repaired, repair, where)
        report.formats[form] = report.formats.get(form, 0) + 1
        report.kept += 1
        if name:
            if hash(name) in ids:
                report.count(report.noticed, "duplicate id", where)
            ids.add(hash(name))
        return Conversation(clean_text(name) or where, messages, where)

    for where, row in raw_rows(str(path)):
        report.read += 1
        try:
            if isinstance(row, Broken):
                raise row
            if tree := is_tree(row):
                unused = trees.add(where, row)
            else:
                reading = turns_of(row, rejected, answered)
                name = next((str(row[key]) for key in ID_KEYS if isinstance(row.get(key), str | int | float)), "")
                unused, read = reading.unused, conversation(where, reading.form, name, reading.turns)
        except Broken as problem:
            report.count(report.broken, str(problem), where)
            if report.read >= EARLY and report.bad > max_bad_share * report.read:
                break
            continue
        except Dropped as problem:
            report.count(report.dropped, str(problem), where)
            continue
        for each in unused:
            report.count(report.unused, each, where)
        if not tree:
            yield read
    for where, name, path_turns in trees.paths():
        try:
            if isinstance(path_turns, Dropped):
                raise path_turns
            yield conversation(where, "tree", name, path_turns)
        except Dropped as problem:
            report.count(report.dropped, str(problem), where)
    if not report.read:
        raise UserError(f"{path} holds no rows: expected {SHAPES}")
    if report.bad > max_bad_share * report.read:
        reason, (_, first) = next(iter(report.broken.items()))
        raise UserError(f"{path}: {report.bad} of {report.read} rows are broken, the first at {first}: {reason}")
    if not report.kept:
        reasons = (report.dropped or report.broken).items()
        reason, (_, first) = max(reasons, key=lambda item: item[1][0])
        hint = "; run.py distill lets a model answer the prompts" if reason == NO_ANSWER else ""
        raise UserError(f"{path}: none of {report.read} rows can be used, the first at {first}: {reason}{hint}")


# -- turns -----------------------------------------------------------------------------------------


def _documented(turns: Turns, answered: bool) -> tuple[Messages, list[str]]:
    text = _text(turns[0].content)
    if not text.strip():
        raise Dropped("an empty text")
    if answered:
        return [{"role": "document", "content": text}], []
    return [{"role": "user", "content": text}, {"role": "assistant", "content": ""}], []


def _repair(turns: Turns, answered: bool = True) -> tuple[Messages, list[str]]:
    """Turns as messages that alternate and end with the assistant, and what had to be repaired for that."""
    repairs: list[str] = []
    messages: Messages = []
    for turn in turns:
        role, more = turn.known_role, each_text(turn.more, clean_text)
        if role is None:
            shown = ascii(turn.role[:40]) if isinstance(turn.role, str) else f"({type(turn.role).__name__})"
            raise Dropped(f"unknown role {shown}")
        blank = turn.content is None or (isinstance(turn.content, str) and not turn.content.strip())
        open_answer = role == "assistant" and (
            blank if more.keys() & CONTENTS else not answered and turn.content in (None, "")
        )
        empty = open_answer or (role == "system" and turn.content in (None, ""))
        content = "" if empty else _text(turn.content)
        if role == "system" and not content.strip() and not more:
            continue
        if not content.strip() and not open_answer and role != "system":
            repairs.append(CUT)
            break
        if role == "system" and any(message["role"] != "system" for message in messages):
            raise Dropped("a system turn in the middle")
        if role in ("assistant", "tool") and not any(message["role"] == "user" for message in messages):
            repairs.append(f"leading {role} turn removed")
            continue
        message = {"role": role, "content": content, **more}
        if messages and messages[-1]["role"] == role and role == "user" and not answered:
            messages.append({"role": "assistant", "content": ""})
        elif messages and messages[-1]["role"] == role and (role != "tool" or not more):
            repairs.append(f"two {role} turns in a row joined")
            message = joined(messages.pop(), message)
        messages.append(message)
    if not any(message["role"] == "user" for message in messages):
        raise Dropped(NO_PROMPT)
    if not answered and messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": ""})
    if not any(message["role"] == "assistant" for message in messages):
        raise Dropped(NO_ANSWER)
    if messages[-1]["role"] != "assistant":
        while messages[-1]["role"] != "assistant":
            messages.pop()
        repairs.append("cut after the last assistant turn")
    if answered and not any(map(learned, messages)):
        raise Dropped("none of its answers is to be learned (weight 0)")
    return messages, list(dict.fromkeys(repairs))


def _text(content: object) -> str:
    """Content as text, which no tokenizer refuses."""
    if not isinstance(content, str):
        raise Dropped(f"content is {'missing' if content is None else 'not text'}")
    return clean_text(content)
