"""Question files of MT-Bench's kind, and answer files that FastChat's judge and Spec-Bench's speed script read as they are.

A question file has one JSON object per line: question_id, category, turns. An answer file has one per question, sorted by
question_id; `record_of` and `mhc.evaluation.mt_bench.answer_question` describe it. Only answer files may end in .jsonl in
their folder: FastChat takes every such file for a model.

Formats: lm-sys/FastChat fastchat/llm_judge/{common,gen_model_answer}.py and hemingkx/Spec-Bench evaluation/{eval,speed}.py.
"""

import json
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mhc.errors import UserError
from mhc.text.messages import clean_text
from mhc.util.files import write_atomically


@dataclass(frozen=True)
class Question:
    """A question: the user's messages, turn by turn."""

    id: int
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class AnswerFile:
    """An answer file to write, and how its answers are decoded."""

    path: Path
    model_id: str
    plain: bool


def partial_of(files: Sequence[AnswerFile]) -> Path:
    """The file of records of an unfinished run, under a name that FastChat does not read."""
    return files[0].path.with_suffix(".partial")


def record_of(
    question: Question, model_id: str, temperature: float, choices: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A line of an answer file. `temperature` and `finish_reasons` are additions, ignored by the other readers."""
    return {
        "question_id": question.id,
        "category": question.category,
        "answer_id": uuid.uuid4().hex,
        "model_id": model_id,
        "temperature": temperature,
        "choices": list(choices),
        "tstamp": time.time(),
    }


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file, in its order. Raises UserError, with the line, for what is not a question or a duplicate."""
    questions: dict[int, Question] = {}
    for where, row in _rows(Path(path), "questions"):
        number, category, turns = row.get("question_id"), row.get("category"), row.get("turns")
        if not _whole(number):
            raise UserError(f"{where}: question_id is {number!r}: FastChat needs a whole number")
        if not isinstance(category, str) or not _are(turns, str) or not turns:
            raise UserError(f"{where}: a question has a category (a text) and turns (a list of texts)")
        if clean_text(category + "".join(turns)) != category + "".join(turns):
            raise UserError(f"{where}: a lone surrogate, which is not a character: remove it")
        if number in questions:
            raise UserError(f"{where}: question {number} occurs twice: give each its own number")
        questions[number] = Question(number, category, tuple(turns))
    if not questions:
        raise UserError(f"'{path}' is empty: give a question file such as MT-Bench's question.jsonl")
    return list(questions.values())


def read_answers(path: str | Path) -> dict[int, dict[str, Any]]:
    """The records of an answer file by question_id: of `run.py answer`, Spec-Bench or any with the fields its speed script
    reads. Raises UserError, with the line, for a record that is damaged, a duplicate or of another format."""
    records: dict[int, dict[str, Any]] = {}
    for where, row in _rows(Path(path), "answers"):
        problem = _problem(row)
        if problem:
            raise UserError(f"{where}: {problem}: is this an answer file of `run.py answer` (or Spec-Bench)?")
        if row["question_id"] in records:
            raise UserError(f"{where}: the answer to question {row['question_id']} occurs twice: remove one")
        records[row["question_id"]] = row
    if not records:
        raise UserError(f"'{path}' is empty: give an answer file of `run.py answer`")
    return records


def write_answers(path: Path, records: dict[int, dict[str, Any]]) -> None:
    """Write the whole file, sorted by question_id."""
    text = "".join(json.dumps(records[number], ensure_ascii=False) + "\n" for number in sorted(records))
    try:
        write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"cannot write '{path}' ({problem.strerror}): make room, then run it again") from problem


def _rows(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its file and line."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as problem:
        raise UserError(f"cannot read the {what} '{path}': {problem.strerror}") from problem
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as problem:
            raise UserError(f"{path}:{number}: damaged, this line is not JSON ({problem})") from problem
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a {type(row).__name__}, not an object: {what} are one object per line")
        yield f"{path}:{number}", row


def _problem(row: dict[str, Any]) -> str | None:
    """What is wrong with an answer's fields for this project, FastChat or Spec-Bench; None if nothing."""
    choices = row.get("choices")
    if not _whole(row.get("question_id")):
        return f"question_id is {row.get('question_id')!r}, not a whole number"
    if not isinstance(row.get("category"), str):
        return "no category"
    if not _are(choices, dict) or not choices:
        return "no choices"
    for choice in choices:
        turns, accepted = choice.get("turns"), choice.get("accept_lengths")
        tokens, seconds = choice.get("new_tokens"), choice.get("wall_time")
        if not _are(turns, str) or not turns:
            return "choices without turns"
        if not _are(tokens, int) or not _are(seconds, (int, float)) or not _are(accepted, int):
            return "choices without new_tokens, wall_time or accept_lengths"
        if not len(turns) == len(tokens) == len(seconds):
            return f"{len(turns)} turns, {len(tokens)} new_tokens and {len(seconds)} wall_time"
        if not all(0 <= count < 2**53 for count in [*tokens, *accepted]) or not all(
            0 <= second < float("inf") for second in seconds
        ):
            return "new_tokens or wall_time below 0 or not finite"
        if sum(tokens) and not accepted:
            return "tokens without accept_lengths"
        if any(count and not second for count, second in zip(tokens, seconds)) or min(accepted, default=1) < 1:
            return "tokens in 0 seconds, or an accept_length below 1"
    if "tstamp" in row and not _are([row["tstamp"]], (int, float)):
        return f"tstamp is {row['tstamp']!r}, not a number"
    return None


def _are(value: Any, kind: Any) -> bool:
    """Whether `value` is a list of these."""
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
