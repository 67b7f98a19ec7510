"""Conversation files as people have them: recognised by their rows, repaired where the repair is obvious.

| format     | a row                                                              |
|------------|--------------------------------------------------------------------|
| sharegpt   | conversations: [{from: human or gpt or system, value}]              |
| messages   | messages, conversations or turns: [{role, content}]                 |
| alpaca     | instruction, input (may be empty), output                           |
| question   | question, answer                                                    |

as a JSON array or JSONL, plain or gzipped, one file or a folder of them. A row is *broken* if it does not
parse or has no shape of the table; it is *dropped* if it does but holds nothing to learn from.
"""

import difflib
import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from rich.markup import escape

from mhc.chat_template import Messages, clean_text
from mhc.errors import UserError

SUFFIXES = (".json", ".jsonl", ".ndjson", ".json.gz", ".jsonl.gz", ".ndjson.gz")
TURN_KEYS = ("messages", "conversations", "conversation", "turns")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "model", "bot"), "assistant"),
}
SHOWN = 6  # reasons a report lists of each kind
CUT = "cut before a turn without content"
NO_ANSWER = "no assistant turn to learn from"
EMPTY = "a turn without content and no answer before it"
SHAPES = "conversations (from/value), messages (role/content), instruction/output or question/answer"


@dataclass(frozen=True)
class Conversation:
    """Messages: at most one system turn, then user and assistant in turn, the assistant last."""

    id: str
    messages: Messages
    where: str  # "file.json:12": the line of a JSONL file, the row of a JSON array, both from 1

    @property
    def prompt(self) -> str:
        """The first user prompt: what decides the split."""
        return next(message["content"] for message in self.messages if message["role"] == "user")


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

    def count(self, what: dict[str, tuple[int, str]], reason: str, where: str) -> None:
        """Add one to a reason of `broken`, `dropped` or `repaired`."""
        number, first = what.get(reason, (0, where))
        what[reason] = (number + 1, first)

    def lines(self) -> list[str]:
        """The report as a few lines of Rich markup."""
        formats = ", ".join(f"{name} ({count:,})" for name, count in self.formats.items())
        lines = [f"[bold]{escape(self.path)}[/bold]: {formats}"]
        lines.append(f"{self.read:,} rows read, {self.kept:,} kept")
        for title, what in (("broken", self.broken), ("dropped", self.dropped), ("repaired", self.repaired)):
            reasons = sorted(what.items(), key=lambda item: -item[1][0])
            for reason, (number, first) in reasons[:SHOWN]:
                lines.append(f"  {title} {number:,}: {escape(reason)} (first: {escape(first)})")
            if rest := sum(number for _, (number, _) in reasons[SHOWN:]):
                lines.append(f"  {title} {rest:,} for other reasons")
        return lines


class _Broken(Exception):
    """The row does not parse or has no known shape."""


class _Dropped(Exception):
    """The row has a known shape but nothing to learn from."""


def read_conversations(path: str, max_bad_share: float = 0.1) -> tuple[list[Conversation], Report]:
    """Read a file or a folder of conversations.

    Raises UserError if there is nothing to read, if it is not text, or if more than `max_bad_share` of the
    rows are broken (naming the first).
    """
    report = Report(str(path))
    conversations = []
    for file in _data_files(Path(path)):
        for where, row in _rows(file):
            report.read += 1
            try:
                if isinstance(row, _Broken):
                    raise row
                form, turns = _turns(row)
                messages, repairs = _repair(turns)
            except _Broken as reason:
                report.count(report.broken, str(reason), where)
                continue
            except _Dropped as reason:
                report.count(report.dropped, str(reason), where)
                continue
            for repair in repairs:
                report.count(report.repaired, repair, where)
            report.formats[form] = report.formats.get(form, 0) + 1
            name = row.get("id")
            conversations.append(Conversation(str(name) if name is not None else where, messages, where))
    report.kept = len(conversations)
    broken = sum(number for number, _ in report.broken.values())
    if not report.read:
        raise UserError(f"{path} holds no rows: expected {SHAPES}")
    if broken > max_bad_share * report.read:
        reason, (_, first) = next(iter(report.broken.items()))
        raise UserError(f"{path}: {broken} of {report.read} rows are broken, the first at {first}: {reason}")
    if not conversations:
        reason, (_, first) = next(iter(report.dropped.items()), ("nothing kept", (0, str(path))))
        raise UserError(f"{path}: none of {report.read} rows can be used, the first at {first}: {reason}")
    return conversations, report


# -- files -----------------------------------------------------------------------------------------


def _data_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file() and file.name.endswith(SUFFIXES)]
        if not files:
            raise UserError(f"{path} is a folder without data files: expected {', '.join(SUFFIXES)}")
        return files
    if path.is_file():
        return [path]
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
    raise UserError(f"{path} does not exist: {hint}")


def _rows(file: Path) -> Iterator[tuple[str, dict | _Broken]]:
    """Every row with its place; a JSONL line that does not parse comes as a _Broken."""
    data = _content(file)
    if data.lstrip()[:1] == b"[":
        try:
            rows = json.loads(data)
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{file} is not a complete JSON array: {problem}") from problem
        yield from ((f"{file.name}:{number}", row) for number, row in enumerate(rows, start=1))
        return
    lines = data.split(b"\n")
    if len(lines) > 1 and isinstance(_parsed(lines[0]), _Broken) and isinstance(whole := _parsed(data), dict):
        yield f"{file.name}:1", whole  # one object, written over several lines
        return
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield f"{file.name}:{number}", _parsed(line)


def _content(file: Path) -> bytes:
    try:
        data = file.read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
    except (EOFError, gzip.BadGzipFile, zlib.error) as problem:
        raise UserError(f"{file} is a truncated or damaged gzip file: get it again ({problem})") from problem
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}") from problem
    if not data.strip():
        raise UserError(f"{file} is empty")
    if b"\0" in data[:4096]:
        raise UserError(f"{file} is binary, not JSON: convert it to JSON or JSONL first")
    return data.removeprefix(b"\xef\xbb\xbf")


def _parsed(line: bytes) -> dict | _Broken:
    try:
        return json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return _Broken("not UTF-8 text")
    except (ValueError, RecursionError):
        return _Broken("not valid JSON")


# -- rows ------------------------------------------------------------------------------------------


def _turns(row: object) -> tuple[str, list[tuple[object, object]]]:
    """The format of a row and its turns as (role, content), neither of them checked yet."""
    if not isinstance(row, dict):
        raise _Broken(f"a row is a {type(row).__name__}, not an object")
    if "instruction" in row and "output" in row:
        question, extra = row["instruction"], row.get("input")
        if isinstance(question, str) and isinstance(extra, str) and extra:
            question = f"{question}\n\n{extra}"
        turns = [("system", row["system"])] if row.get("system") else []
        return "alpaca", [*turns, ("user", question), ("assistant", row["output"])]
    for key in TURN_KEYS:
        turns = row.get(key)
        if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns):
            if not turns:
                raise _Dropped("no turns")
            if all("role" in turn for turn in turns):
                return "messages", [(turn["role"], turn.get("content")) for turn in turns]
            if all("from" in turn for turn in turns):
                return "sharegpt", [(turn["from"], turn.get("value")) for turn in turns]
    if "question" in row and "answer" in row:
        return "question", [("user", row["question"]), ("assistant", row["answer"])]
    keys = ", ".join(map(str, list(row)[:8])) or "no keys"
    raise _Broken(f"shape not recognised (keys: {keys}), expected {SHAPES}")


def _repair(turns: list[tuple[object, object]]) -> tuple[Messages, list[str]]:
    """Turns as messages that alternate and end with the assistant, and what had to be repaired for that."""
    repairs: list[str] = []
    messages: Messages = []
    for raw_role, raw_content in turns:
        role = ROLES.get(raw_role.strip().lower()) if isinstance(raw_role, str) else None
        if role is None:
            raise _Dropped(f"unknown role {str(raw_role)[:40]!r}")
        content = _text(raw_content)
        if role == "system" and not content.strip():
            continue
        if not content.strip():
            repairs.append(CUT)
            break
        if role == "system" and any(message["role"] != "system" for message in messages):
            raise _Dropped("a system turn in the middle")
        if role == "assistant" and not any(message["role"] == "user" for message in messages):
            repairs.append("leading assistant turn removed")
            continue
        if messages and messages[-1]["role"] == role:
            repairs.append(f"two {role} turns in a row joined")
            content = messages.pop()["content"] + "\n\n" + content
        messages.append({"role": role, "content": content})
    if messages and messages[-1]["role"] == "user":
        if not any(message["role"] == "assistant" for message in messages):
            raise _Dropped(EMPTY if repairs[-1:] == [CUT] else NO_ANSWER)
        messages.pop()
        repairs.append("cut after the last assistant turn")
    if not messages or messages[-1]["role"] != "assistant":
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
