"""`run.py answer`: MT-Bench questions to answer files for FastChat's judge and for speed tables.

One answer at a time, since speed is measured. With --both the same questions are answered with the heads and plainly in
turn, in one run: two runs an hour apart compare the machine's moods. `run.py speed` makes the table of the two files.
"""

import argparse
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from mhc.commands import Parser, add_backbone, add_compile, engine_of
from mhc.errors import UserError


def main(argv: list[str]) -> int:
    """Answer --questions into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    _check(options)
    from mhc.evaluation.mt_bench import Wanted, partial_of, read_questions

    every = read_questions(options.questions)
    questions = _some(every, options.per_category)
    wanted = Wanted(options.temperature, options.choices, options.max_new_tokens, options.seed)
    files = _files(options)

    from mhc.distill.answers import open_manifest
    from mhc.evaluation.decode_benchmark import machine, versions
    from mhc.util.journal import digest

    engine, own = _engine(options)
    settings: dict[str, Any] = {
        "questions": digest([[question.id, question.category, question.turns] for question in every]),
        "decoding": "both" if options.both else "plain" if options.plain else "heads",
        "model_id": files[0].model_id,
        "temperature": "by category" if wanted.temperature is None else wanted.temperature,
        "choices": wanted.choices,
        "max_new_tokens": wanted.max_new_tokens,
        "seed": wanted.seed,
    }
    notes = {"question_file": options.questions, "machine": machine(), "versions": versions()}
    for file in files:
        manifest = file.path.with_suffix(".manifest.json")
        open_manifest(manifest, file.path, partial_of(files), settings | own, notes)
    _answer(engine, questions, files, wanted)
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for flags that make no sense, before anything is loaded."""
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


def _some(questions: list, per_category: int | None) -> list:
    """The first `per_category` questions of each category."""
    seen: Counter[str] = Counter()
    chosen = []
    for question in questions:
        seen[question.category] += 1
        if per_category is None or seen[question.category] <= per_category:
            chosen.append(question)
    return chosen


def _files(options: argparse.Namespace) -> list:
    """The files to write: --out, and with --both the plain one beside it."""
    from mhc.evaluation.mt_bench import AnswerFile

    out = Path(options.out)
    name = options.model_id or out.stem
    files = [AnswerFile(out, name, options.plain)]
    if options.both:
        files.append(AnswerFile(out.with_name(f"{out.stem}-plain.jsonl"), f"{name}-plain", True))
    return files


def _engine(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Our engine, and what the manifest says of it."""
    from mhc.checkpoints.heads_folder import DESCRIPTION
    from mhc.text.chat_template import template_fingerprint
    from mhc.util.journal import digest

    engine, told = engine_of(options, "pocket"), {}
    if not options.plain:
        heads = json.loads((Path(options.checkpoint) / DESCRIPTION).read_text())["sha256"][:16]
        told = {"heads": heads, "tree": digest(engine.tree.describe())}
    backbone = engine.backbone
    told |= {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint(),
        "template": template_fingerprint(backbone.tokenizer),
        "device": backbone.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        "quantize": options.quantize,
        "compile": options.compile,
    }
    return engine, told


def _answer(engine, questions: list, files: list, wanted) -> None:
    """Answer them with a bar on the terminal, and tell what came out."""
    from mhc.evaluation.mt_bench import answer_questions
    from mhc.util.progress import counting_bar, say

    spent = [[0, 0.0] for _ in files]  # tokens and seconds of this run
    with counting_bar("{task.fields[rate]}") as progress:
        task = progress.add_task("answering", total=len(questions), rate="")

        def show(done: int, records) -> None:
            for sums, record in zip(spent, records):
                for choice in record["choices"]:
                    sums[0] += sum(choice["new_tokens"])
                    sums[1] += sum(choice["wall_time"])
            rates = [f"{tokens / seconds:,.0f}" for tokens, seconds in spent if seconds]
            progress.update(task, completed=done, rate=" and ".join(rates) + " tokens/s" if rates else "")

        above = partial(progress.console.print, markup=False, soft_wrap=True)  # lines go above the bar
        kept = answer_questions(engine, questions, files, wanted, above, show)
    for file, records, (tokens, seconds) in zip(files, kept, spent):
        new = f"{tokens:,} tokens in {seconds:.0f} s ({tokens / seconds:,.0f} tokens/s)" if seconds else "complete"
        say(f"{file.path}: {len(records)} questions, {new}")
    _tell_of_the_context(kept[0], engine.backbone.context, say)


def _tell_of_the_context(records: dict[int, dict[str, Any]], context: int, say) -> None:
    """Which answers ended for want of context."""
    for reason, what in (("context", "ended at"), ("no room", "did not fit into")):
        found = [
            number
            for number, record in sorted(records.items())
            for choice in record["choices"]
            for ended in choice.get("finish_reasons", [])
            if ended == reason
        ]
        if found:
            numbers = list(dict.fromkeys(found))
            named = ", ".join(map(str, numbers[:8])) + (", ..." if len(numbers) > 8 else "")
            say(f"{len(found)} turns {what} the backbone's context of {context} tokens: questions {named}")


def _parser() -> Parser:
    parser = Parser(
        prog="run.py answer",
        description="Answer a question file of MT-Bench's kind (question_id, category, turns a line) into an answer file "
        "that FastChat's judge and Spec-Bench's speed script read as it is. A stopped run goes on where it was: call the "
        "same command again. `run.py speed` compares two files.",
    )
    add = parser.add_argument
    add("--checkpoint", metavar="DIR", help="folder with drafter.json, e.g. runs/quickstart/cascade")
    add("--questions", required=True, metavar="FILE", help="e.g. MT-Bench's question.jsonl")
    add("--out", required=True, metavar="FILE", help="answers/MODEL.jsonl; its manifest stands beside it")
    add("--plain", action="store_true", help="decode without the heads, one token a step")
    add("--both", action="store_true", help="with the heads, and plainly into MODEL-plain.jsonl, question by question")
    add("--model_id", metavar="NAME", help="the model's name in the answers (default: the file's)")
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="0 is greedy (default by category, as FastChat: extraction, math, coding and reasoning 0, stem and "
        "humanities 0.1, every other 0.7)",
    )
    add("--seed", type=int, default=0, metavar="N", help="the same seed, the same text, with any heads or none")
    add("--choices", type=int, default=1, metavar="N", help="answers to each question (default 1)")
    add("--max_new_tokens", type=int, default=1024, metavar="N", help="length limit of a turn (default 1024)")
    add("--per_category", type=int, metavar="N", help="only the first N questions of each category (default: all)")
    add_compile(parser)
    add_backbone(parser)
    return parser
