"""Answers to MT-Bench's questions, turn by turn, as FastChat generates them.

Each turn sees the model's own answers to the earlier ones. The files are those of mhc.evaluation.answer_files.
Temperatures: lm-sys/FastChat fastchat/llm_judge/common.py.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from mhc.decoding.request import Generation
from mhc.engine import Engine
from mhc.evaluation.answer_files import AnswerFile, Question, partial_of, read_answers, record_of, write_answers
from mhc.sampling import Sampling
from mhc.text.encoding import prompt_ids
from mhc.util.journal import Journal, digest

TEMPERATURES = {"extraction": 0.0, "math": 0.0, "coding": 0.0, "reasoning": 0.0, "stem": 0.1, "humanities": 0.1}
OTHER_CATEGORIES = 0.7  # writing and roleplay among them
WARM_UP = 64  # tokens of an answer that is not timed


@dataclass(frozen=True)
class AnswerSettings:
    """How questions are answered. temperature None: by category, as FastChat does."""

    temperature: float | None = None
    choices: int = 1
    max_new_tokens: int = 1024
    seed: int = 0

    def temperature_of(self, question: Question) -> float:
        """The temperature at which this question is answered."""
        by_category = TEMPERATURES.get(question.category, OTHER_CATEGORIES)
        return by_category if self.temperature is None else self.temperature


def answer_question(
    engine: Engine, question: Question, index: int, plain: bool, settings: AnswerSettings
) -> dict[str, Any]:
    """Answer all turns of a question, as one of its `choices`. One value per turn, except where stated:

    turns: the texts; new_tokens: with the end-of-text token; wall_time: seconds, prompt included; decoding_steps: forwards
    that emitted tokens, prefill included; idxs: the index of the last one, from 0.
    accept_lengths: tokens of each step of all turns, the bonus token counted. So plain decoding has 1 everywhere, there
    are as many as decoding_steps in total, and their sum is that of new_tokens.
    finish_reasons: 'stop', 'length', 'context' where the answer reached the end of the backbone's context, 'no room' where
    the conversation left no token of it: that turn and all later ones are empty texts.
    """
    backbone, temperature = engine.backbone, settings.temperature_of(question)
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
        seed = int(digest([settings.seed, question.id, index, turn]), 16) % 2**31
        sampling = Sampling(temperature=temperature, seed=seed)
        generated = engine.generate_ids([ids], settings.max_new_tokens, plain=plain, sampling=sampling)
        answer = next(answer for _, answer in generated)
        if answer.finish_reason == "length" and len(answer.token_ids) < settings.max_new_tokens:
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
        "accept_lengths": [accepted + 1 for answer in answers for accepted in answer.accepted],
        "finish_reasons": [answer.finish_reason for answer in answers],
    }


def answer_questions(
    engine: Engine,
    questions: Sequence[Question],
    files: Sequence[AnswerFile],
    settings: AnswerSettings,
    report: Callable[[str], None],
    progress: Callable[[int, Sequence[dict[str, Any]]], None],
) -> list[dict[int, dict[str, Any]]]:
    """Answer the questions that are not in all `files` yet, and return the records of each file by question_id.

    A machine's speed drifts: the files take turns at each question, in changing order. New records are appended to
    <the first file>.partial, from which a killed run resumes; the files are written, whole and sorted, once all are
    there. progress(questions done, the new records of the last one). report: receives lines for the user.
    """
    partial = partial_of(files)
    answered = [read_answers(file.path) if file.path.exists() else {} for file in files]
    with Journal(partial, report) as journal:
        for entry in journal.records():
            for records, record in zip(answered, entry["records"]):
                records[record["question_id"]] = record
        missing = [question for question in questions if not all(question.id in records for records in answered)]
        done = len(questions) - len(missing)
        progress(done, ())
        if missing:
            warm_up(engine, missing[0], files, settings)
        for question in missing:
            turn = questions.index(question)
            choices: list[list[dict[str, Any]]] = [[] for _ in files]
            for index in range(settings.choices):
                order = [(turn + index + offset) % len(files) for offset in range(len(files))]
                for number in order:
                    choices[number].append(answer_question(engine, question, index, files[number].plain, settings))
            temperature = settings.temperature_of(question)
            new = [record_of(question, file.model_id, temperature, own) for file, own in zip(files, choices)]
            journal.append({"records": new})
            for records, record in zip(answered, new):
                records[question.id] = record
            done += 1
            progress(done, new)
        for file, records in zip(files, answered):
            write_answers(file.path, records)
        partial.unlink()
    return answered


def warm_up(engine: Engine, question: Question, files: Sequence[AnswerFile], settings: AnswerSettings) -> None:
    """A short answer for each file, so that the first timed one does not include compilation and allocation."""
    short = AnswerSettings(settings.temperature, 1, min(WARM_UP, settings.max_new_tokens), settings.seed)
    for file in files:
        answer_question(engine, Question(question.id, question.category, question.turns[:1]), 0, file.plain, short)
