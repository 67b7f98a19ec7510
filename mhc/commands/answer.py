"""`run.py answer`: answer MT-Bench questions into files for FastChat's judge and for speed tables.

One answer at a time, since speed is measured. With --both the same questions are answered with heads and plainly,
interleaved in one run, since a machine's speed drifts between runs. `run.py speed` makes the table of the two files.
"""

import argparse
import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from mhc.commands import (
    Parser,
    add_backbone,
    add_checkpoint,
    add_compile,
    add_max_new_tokens,
    add_plain,
    add_seed,
    engine_of,
    identity_of,
)
from mhc.errors import UserError


def main(argv: list[str]) -> int:
    """Answer --questions into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    _check(options)
    from mhc.evaluation.answer_files import partial_of, read_questions

    every = read_questions(options.questions)
    questions = _first_of_each_category(every, options.per_category)
    files = _files(options)

    from mhc.evaluation.mt_bench import AnswerSettings
    from mhc.util.journal import digest
    from mhc.util.manifest import open_manifest
    from mhc.util.provenance import machine, versions

    settings = AnswerSettings(options.temperature, options.choices, options.max_new_tokens, options.seed)
    engine, engine_settings = _engine(options)
    recorded: dict[str, Any] = {
        "questions": digest([[question.id, question.category, question.turns] for question in every]),
        "decoding": "both" if options.both else "plain" if options.plain else "heads",
        "model_id": files[0].model_id,
        "temperature": "by category" if settings.temperature is None else settings.temperature,
        "choices": settings.choices,
        "max_new_tokens": settings.max_new_tokens,
        "seed": settings.seed,
    }
    notes = {"question_file": options.questions, "machine": machine(), "versions": versions()}
    for file in files:
        open_manifest(_manifest_of(file.path), file.path, partial_of(files), recorded | engine_settings, notes)
    _answer(engine, questions, files, settings)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for invalid flags, before anything is loaded."""
    for name in ("choices", "max_new_tokens", "per_category"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}: it must be at least 1")
    if options.temperature is not None and not 0 <= options.temperature < float("inf"):
        raise UserError(f"--temperature is {options.temperature}: it must be 0 (greedy) or above")
    if options.seed < 0:
        raise UserError(f"--seed is {options.seed}: it must be 0 or above")
    if options.plain and options.both:
        raise UserError("--plain and --both: --both writes the plain answers as well, leave --plain out")
    if options.checkpoint is None and not options.plain:
        raise UserError("--checkpoint is missing: give the heads' folder, or --plain to answer without heads")
    if Path(options.out).suffix != ".jsonl":
        raise UserError(f"--out is '{options.out}': FastChat finds answers by their name, MODEL.jsonl")


def _first_of_each_category(questions: list, per_category: int | None) -> list:
    """The first `per_category` questions of each category."""
    count: Counter[str] = Counter()
    chosen = []
    for question in questions:
        count[question.category] += 1
        if per_category is None or count[question.category] <= per_category:
            chosen.append(question)
    return chosen


def _files(options: argparse.Namespace) -> list:
    """The files to write: --out, and with --both the plain one next to it."""
    from mhc.evaluation.answer_files import AnswerFile

    out = Path(options.out)
    name = options.model_id or out.stem
    files = [AnswerFile(out, name, options.plain)]
    if options.both:
        files.append(AnswerFile(out.with_name(f"{out.stem}-plain.jsonl"), f"{name}-plain", True))
    return files


def _manifest_of(path: Path) -> Path:
    return path.with_suffix(".manifest.json")


def _engine(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The engine, and its settings for the manifest."""
    from mhc.checkpoints.heads_folder import DESCRIPTION
    from mhc.util.journal import digest

    engine, settings = engine_of(options, "pocket"), {}
    if not options.plain:
        heads = json.loads((Path(options.checkpoint) / DESCRIPTION).read_text(encoding="utf-8"))["sha256"][:16]
        settings = {"heads": heads, "tree": digest(engine.tree.describe())}
    backbone = engine.backbone
    settings |= {
        **identity_of(backbone, _manifest_of(Path(options.out))),
        "device": backbone.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "quantize": options.quantize,
        "compile": options.compile,
    }
    return engine, settings


def _answer(engine, questions: list, files: list, settings) -> None:
    """Answer the questions with a progress bar on the terminal, and print a summary."""
    from mhc.evaluation.mt_bench import answer_questions
    from mhc.util.progress import counting_bar, say

    totals = [[0, 0.0] for _ in files]  # tokens and seconds of this run
    with counting_bar("{task.fields[rate]}") as progress:
        task = progress.add_task("answering", total=len(questions), rate="")

        def show(done: int, records) -> None:
            for sums, record in zip(totals, records):
                for choice in record["choices"]:
                    sums[0] += sum(choice["new_tokens"])
                    sums[1] += sum(choice["wall_time"])
            rates = [f"{tokens / seconds:,.0f}" for tokens, seconds in totals if seconds]
            progress.update(task, completed=done, rate=" and ".join(rates) + " tokens/s" if rates else "")

        above = partial(progress.console.print, markup=False, soft_wrap=True)  # reports go above the bar
        answered = answer_questions(engine, questions, files, settings, above, show)
    for file, records, (tokens, seconds) in zip(files, answered, totals):
        new = f"{tokens:,} tokens in {seconds:.0f} s ({tokens / seconds:,.0f} tokens/s)" if seconds else "complete"
        say(f"{file.path}: {len(records)} questions, {new}")
    _report_context_limit(answered[0], engine.backbone.context, say)


def _report_context_limit(records: dict[int, dict[str, Any]], context: int, report: Callable[[str], None]) -> None:
    """Report which answers reached the context limit."""
    for reason, what in (("context", "ended at"), ("no room", "did not fit into")):
        turns = [
            number
            for number, record in sorted(records.items())
            for choice in record["choices"]
            for ended in choice.get("finish_reasons", [])
            if ended == reason
        ]
        if turns:
            numbers = list(dict.fromkeys(turns))
            listed = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
            report(f"{len(turns)} turns {what} the backbone's context of {context} tokens: questions {listed}")


def _parser() -> Parser:
    parser = Parser(
        prog="run.py answer",
        description="Answer a question file of MT-Bench's kind (question_id, category, turns per line) into an answer file "
        "that FastChat's judge and Spec-Bench's speed script read as it is. To resume a stopped run, repeat "
        "the same command. `run.py speed` compares two files.",
    )
    add = parser.add_argument
    add_checkpoint(parser)
    add("--questions", required=True, metavar="FILE", help="e.g. MT-Bench's question.jsonl")
    add("--out", required=True, metavar="FILE", help="answers/MODEL.jsonl; its manifest is written next to it")
    add_plain(parser)
    add("--both", action="store_true", help="answer with heads and, interleaved, plainly into MODEL-plain.jsonl")
    add("--model_id", metavar="NAME", help="the model's name in the answers (default: the file name)")
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy (default: by category, as in FastChat: extraction, math, coding and reasoning 0, stem and "
        "humanities 0.1, every other 0.7)",
    )
    add_seed(parser)
    add("--choices", type=int, default=1, metavar="N", help="answers per question (default 1)")
    add_max_new_tokens(parser, 1024)
    add("--per_category", type=int, metavar="N", help="only the first N questions of each category (default: all)")
    add_compile(parser)
    add_backbone(parser)
    return parser
