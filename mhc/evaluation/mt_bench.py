"""Questions of MT-Bench's kind, and answer files that FastChat's judge and Spec-Bench's speed script read as they are.

A question file has a JSON object a line: question_id, category, turns. An answer file has one a question, sorted by
question_id; what stands in it is told at `record_of`. Turns are answered one by one, each seeing the model's own answers
before it. Nothing but answer files ends in .jsonl here: FastChat takes every such file in a folder for a model.

Formats and temperatures: lm-sys/FastChat fastchat/llm_judge/{common,gen_model_answer,gen_judgment}.py and
hemingkx/Spec-Bench evaluation/{eval,speed}.py.
"""

import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from mhc.errors import UserError
from mhc.text.messages import clean_text
from mhc.util.files import write_atomically
from mhc.util.journal import Journal, digest

TEMPERATURES = {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1}
OTHER_CATEGORIES = 0.7  # writing and roleplay among them
WARM_UP = 64  # tokens, before the clock


@dataclass(frozen=True)
class Question:
    """What the user says, turn by turn."""

    id: int
    category: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """How questions are to be answered. temperature None: by category, as FastChat does."""

    temperature: float | None = None
    choices: int = 1
    max_new_tokens: int = 1024
    seed: int = 0

    def temperature_of(self, question: Question) -> float:
        """The temperature at which this question is answered."""
        by_category = TEMPERATURES.get(question.category, OTHER_CATEGORIES)
        return by_category if self.temperature is None else self.temperature


@dataclass(frozen=True)
class AnswerFile:
    """A file to be written, and how its answers are decoded."""

    path: Path
    model_id: str
    plain: bool


# -- files -----------------------------------------------------------------------------------------


def read_questions(path: str | Path) -> list[Question]:
    """The questions of a file, in its order. Raises UserError, with the line, for what is none or stands twice."""
    found: dict[int, Question] = {}
    for where, row in _rows(Path(path), "questions"):
        number, category, turns = row.get("question_id"), row.get("category"), row.get("turns")
        if not _whole(number):
            raise UserError(f"{where}: question_id is {number!r}: FastChat needs a whole number")
        if not isinstance(category, str) or not _are(turns, str) or not turns:
            raise UserError(f"{where}: a question has a category (a text) and turns (a list of texts)")
        if clean_text(category + "".join(turns)) != category + "".join(turns):
            raise UserError(f"{where}: a lone surrogate, which is no character: take it out")
        if number in found:
            raise UserError(f"{where}: question {number} stands twice: number them apart")
        found[number] = Question(number, category, tuple(turns))
    if not found:
        raise UserError(f"'{path}' is empty: give a question file such as MT-Bench's question.jsonl")
    return list(found.values())


def read_answers(path: str | Path) -> dict[int, dict[str, Any]]:
    """The records of an answer file by question_id: ours, Spec-Bench's or any that has what its speed script reads.
    Raises UserError, with the line, for what is damaged, stands twice or has another format."""
    found: dict[int, dict[str, Any]] = {}
    for where, row in _rows(Path(path), "answers"):
        problem = _problem(row)
        if problem:
            raise UserError(f"{where}: {problem}: is this an answer file of `run.py answer` (or Spec-Bench)?")
        if row["question_id"] in found:
            raise UserError(f"{where}: the answer to question {row['question_id']} stands twice: take one out")
        found[row["question_id"]] = row
    if not found:
        raise UserError(f"'{path}' is empty: give an answer file of `run.py answer`")
    return found


def write_answers(path: Path, records: dict[int, dict[str, Any]]) -> None:
    """Write the file whole, sorted by question_id."""
    text = "".join(json.dumps(records[number], ensure_ascii=False) + "\n" for number in sorted(records))
    try:
        write_atomically(path, lambda at: at.write_text(text, encoding="utf-8"))
    except OSError as problem:
        raise UserError(f"cannot write '{path}' ({problem.strerror}): make room, then run it again") from problem


def _rows(path: Path, what: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSONL file, each with its place."""
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
            raise UserError(f"{path}:{number}: damaged, this line is no JSON ({problem})") from problem
        if not isinstance(row, dict):
            raise UserError(f"{path}:{number}: a {type(row).__name__}, not an object: {what} are one object a line")
        yield f"{path}:{number}", row


def _problem(row: dict[str, Any]) -> str | None:
    """What an answer lacks that is read by us, FastChat or Spec-Bench; None if nothing."""
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
            return "tokens in no time, or an accepted length below 1"
    if "tstamp" in row and not _are([row["tstamp"]], (int, float)):
        return f"tstamp is {row['tstamp']!r}, not a number"
    return None


def _are(value: Any, kind: Any) -> bool:
    """Whether `value` is a list of these."""
    return isinstance(value, list) and all(isinstance(item, kind) and not isinstance(item, bool) for item in value)


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


# -- answers ---------------------------------------------------------------------------------------


def record_of(
    question: Question, model_id: str, temperature: float, choices: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """A line of an answer file. `temperature` and `finish_reasons` are ours, and passed over by the other readers."""
    return {
        "question_id": question.id,
        "category": question.category,
        "answer_id": uuid.uuid4().hex,
        "model_id": model_id,
        "temperature": temperature,
        "choices": list(choices),
        "tstamp": time.time(),
    }


def converse(engine, question: Question, index: int, plain: bool, wanted: Wanted) -> dict[str, Any]:
    """Answer all turns of a question, as one of its `choices`. By turn, where not said otherwise:

    turns: the texts; new_tokens: with the end-of-text token; wall_time: seconds, prompt included; decoding_steps: forwards
    that gave tokens, of which reading the prompt is the first; idxs: the number of the last one, from 0.
    accept_lengths: tokens of each step of all turns, the bonus token counted. So plain decoding has 1 everywhere, there
    are as many as decoding_steps together, and their sum is that of new_tokens.
    finish_reasons: 'stop', 'length', 'context' where the answer ran to the end of the backbone's context, 'no room' where the
    conversation did not leave a token of it: that turn is an empty text, and so are those behind it.
    """
    from mhc.decoding.request import Generation
    from mhc.sampling import Sampling
    from mhc.text.encoding import prompt_ids

    backbone, temperature = engine.backbone, wanted.temperature_of(question)
    messages: list[dict[str, Any]] = []
    answers: list[Generation] = []
    for turn, text in enumerate(question.turns):
        messages.append({"role": "user", "content": text})
        if answers and answers[-1].finish_reason == "no room":
            answers.append(Generation(finish_reason="no room"))
            continue
        started = time.perf_counter()
        ids = prompt_ids(backbone.tokenizer, messages)
        if len(ids) >= backbone.context:
            # above 0, since Spec-Bench divides by it
            answers.append(Generation(finish_reason="no room", seconds=time.perf_counter() - started))
            continue
        seed = int(digest([wanted.seed, question.id, index, turn]), 16) % 2**31
        sampling = Sampling(temperature=temperature, seed=seed)
        found = engine.generate_ids([ids], wanted.max_new_tokens, plain=plain, sampling=sampling)
        answer = next(answer for _, answer in found)
        if answer.finish_reason == "length" and len(answer.token_ids) < wanted.max_new_tokens:
            answer.finish_reason = "context"
        answers.append(answer)
        messages.append({"role": "assistant", "content": answer.text})
    return {
        "index": index,
        "turns": [answer.text for answer in answers],
        "idxs": [max(0, answer.steps - 1) for answer in answers],
        "decoding_steps": [answer.steps for answer in answers],
        "new_tokens": [len(answer.token_ids) for answer in answers],
        "wall_time": [answer.seconds for answer in answers],
        "accept_lengths": [guessed + 1 for answer in answers for guessed in answer.accepted],
        "finish_reasons": [answer.finish_reason for answer in answers],
    }


def partial_of(files: Sequence[AnswerFile]) -> Path:
    """Where the records of files stand that are not finished: under no name that FastChat would read."""
    return files[0].path.with_suffix(".partial")


def answer_questions(
    engine,
    questions: Sequence[Question],
    files: Sequence[AnswerFile],
    wanted: Wanted,
    tell: Callable[[str], None],
    progress: Callable[[int, Sequence[dict[str, Any]]], None],
) -> list[dict[int, dict[str, Any]]]:
    """Answer what is not in all `files` yet, and return the records of each by question_id.

    Machines change their speed: the files take turns at each question, another one first each time. Records are kept in
    <the first file>.partial as they come, and the files written, whole and sorted, when all are there; whoever is killed
    goes on there. progress(questions done, the records that are new of this one).
    """
    partial = partial_of(files)
    kept = [read_answers(file.path) if file.path.exists() else {} for file in files]
    with Journal(partial, tell) as journal:
        for entry in journal.records():
            for records, record in zip(kept, entry["records"]):
                records[record["question_id"]] = record
        missing = [question for question in questions if not all(question.id in records for records in kept)]
        done = len(questions) - len(missing)
        progress(done, ())
        if missing:
            warm_up(engine, missing[0], files, wanted)
        for question in missing:
            turn = questions.index(question)
            choices: list[list[dict[str, Any]]] = [[] for _ in files]
            for index in range(wanted.choices):
                order = [(turn + index + at) % len(files) for at in range(len(files))]
                for at in order:
                    choices[at].append(converse(engine, question, index, files[at].plain, wanted))
            temperature = wanted.temperature_of(question)
            new = [record_of(question, file.model_id, temperature, some) for file, some in zip(files, choices)]
            journal.append({"records": new})
            for records, record in zip(kept, new):
                records[question.id] = record
            done += 1
            progress(done, new)
        for file, records in zip(files, kept):
            write_answers(file.path, records)
        partial.unlink()
    return kept


def warm_up(engine, question: Question, files: Sequence[AnswerFile], wanted: Wanted) -> None:
    """A short answer each way, so that the first one measured finds everything in place."""
    short = Wanted(wanted.temperature, 1, min(WARM_UP, wanted.max_new_tokens), wanted.seed)
    for file in files:
        converse(engine, Question(question.id, question.category, question.turns[:1]), 0, file.plain, short)
