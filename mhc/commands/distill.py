"""`run.py distill`: the frozen backbone answers every prompt itself, and heads learn from its answers.

Heads speed up what the model says, so the model's own words are the data to learn from: every assistant turn of the
conversations is regenerated in order, many at once, by this project's engine or by a server that runs the model already. The
result is JSONL in the `messages` format, written as it is made; a stopped run resumes where it was.
"""

import argparse
import time
from array import array
from pathlib import Path
from typing import Any

from mhc.commands import (
    Parser,
    add_backbone,
    add_checkpoint,
    add_compile,
    add_limit,
    add_max_new_tokens,
    add_sampling,
    engine_of,
    identity_of,
    sampling_of,
)
from mhc.errors import UserError
from mhc.util.locks import alone, beside

WINDOW = 64  # times the answers made at once: conversations that are worked on together


def main(argv: list[str]) -> int:
    """Distil --data into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    for name in ("batch_size", "max_new_tokens", "concurrency", "timeout"):
        if getattr(options, name) <= 0:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be above 0")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit is {options.limit}: it must be at least 1")
    if options.retries < 0:
        raise UserError(f"--retries is {options.retries}: it must be 0 or above")
    out = Path(options.out)
    with alone(beside(out), "--out"):
        _open(options, out)
    return 0


def _open(options: argparse.Namespace, out: Path) -> None:
    """Resume `out`, or begin it, with these settings."""
    from mhc.distill.answers import partial_of
    from mhc.util.manifest import open_manifest

    settings: dict[str, Any] = {"data": options.data, "seed": options.seed, "max_new_tokens": options.max_new_tokens}
    settings |= {name: getattr(options, name) for name in ("temperature", "top_p", "top_k")}
    jobs = _jobs(options)
    answerer, own = (_server if options.server else _in_process)(options)
    manifest = _manifest_of(options)
    notes = {"limit": options.limit, "server": getattr(answerer, "shown_url", None)}
    open_manifest(manifest, out, partial_of(out), settings | own, notes)
    _distill(jobs, answerer, out, manifest, options)


def _jobs(options: argparse.Namespace) -> list:
    """Every conversation of the data, at most --limit in all."""
    from datamodules.readers import Report, iterate
    from mhc.distill.answers import Job
    from mhc.text.splits import prompt_number, split_conversations
    from mhc.util.progress import say

    if options.data == "pocket":
        from mhc.corpus import POCKET_COUNT, dialogues

        return [Job(d["id"], d["messages"]) for d in dialogues(options.limit or POCKET_COUNT, options.seed)]
    report, jobs, numbers = Report(options.data), [], array("Q")
    for conversation in iterate(options.data, report, answered=False):
        jobs.append(Job(conversation.id, conversation.messages))
        numbers.append(prompt_number(conversation.prompt))
    say("\n".join(report.lines()), markup=True)
    return [jobs[place] for places in split_conversations(numbers, options.limit).values() for place in places]


def _manifest_of(options: argparse.Namespace) -> Path:
    return Path(options.out).with_suffix(".manifest.json")


def _in_process(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """The engine, with heads where given, and its settings for the manifest."""
    from mhc.distill.answers import InProcess

    if options.model is not None:
        raise UserError("--model needs --server: give --backbone instead")
    engine = engine_of(options, "pocket").with_large_batch_tree()
    recorded = identity_of(engine.backbone, _manifest_of(options))
    recorded |= {name: value for name in ("dtype", "quantize") if (value := getattr(options, name))}
    return InProcess(engine, sampling_of(options), options.max_new_tokens, options.batch_size), recorded


def _server(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """A server that answers, and its settings for the manifest."""
    from mhc.distill.openai_server import OpenAIAnswerer

    if options.checkpoint or options.backbone:
        raise UserError("--server answers by itself: leave --backbone and --checkpoint out")
    if options.temperature < 0 or not 0 < options.top_p <= 1 or options.top_k < 0:
        raise UserError("--temperature must be 0 or above, --top_p above 0 and at most 1, --top_k 0 or above")
    sampling: dict[str, Any] = {"temperature": options.temperature, "top_p": options.top_p}
    if options.top_k:
        sampling["extra_body"] = {"top_k": options.top_k}
    server = OpenAIAnswerer(
        options.server,
        options.model,
        sampling,
        options.max_new_tokens,
        options.concurrency,
        options.timeout,
        options.retries,
    )
    options.batch_size = options.concurrency
    return server, {"model": server.model}


def _distill(jobs: list, answerer, out: Path, manifest: Path, options: argparse.Namespace) -> None:
    """Answer them with a bar on the terminal, and leave the counts in the manifest."""
    import json
    from contextlib import suppress

    from mhc.distill.answers import Counts, answer_all
    from mhc.util.files import write_json
    from mhc.util.progress import counting_bar, say

    counts, started = Counts(), time.perf_counter()
    opened = False  # whether this run got the lock of the file
    try:
        with counting_bar("{task.fields[rate]}") as progress:
            task = progress.add_task("distilling", total=len({job.key for job in jobs}), rate="")

            def show(now: Counts) -> None:
                nonlocal counts, opened
                counts, opened = now, True
                rate = f"{now.tokens / (time.perf_counter() - started):,.0f} tokens/s"
                progress.update(task, completed=now.kept_before + now.kept + now.rejected, rate=rate)

            answer_all(jobs, answerer, out, options.seed, WINDOW * options.batch_size, say, show)
    finally:  # also where the run was stopped
        seconds = time.perf_counter() - started
        recorded = json.loads(manifest.read_text(encoding="utf-8"))
        recorded["counts"] = {"conversations": counts.kept_before + counts.kept, "rejected": counts.rejected}
        recorded["runs"] = [
            *recorded.get("runs", []),
            {"kept": counts.kept, "answers": counts.answers, "tokens": counts.tokens, "seconds": round(seconds, 1)},
        ]
        with suppress(OSError):  # a full disk was reported already
            if opened:
                write_json(manifest, recorded)
    if not counts.kept and not counts.rejected:
        say(f"{out} is complete: {counts.kept_before} conversations")
        return
    for name, number in getattr(answerer, "unwritten", {}).items():
        say(f"{number:,} prompts have `{name}` that the chat template does not write: the model was not given it")
    rejected = f", {counts.rejected} rejected (see {out.with_suffix('.rejects.jsonl')})" if counts.rejected else ""
    say(
        f"{counts.kept} conversations, {counts.tokens:,} tokens in {seconds:.0f} s "
        f"({counts.tokens / seconds:,.0f} tokens/s){rejected} -> {out}"
    )


def _parser() -> Parser:
    parser = Parser(
        prog="run.py distill",
        description="Let the frozen backbone answer the prompts of a conversation file itself: by this engine, or by any "
        "OpenAI-compatible server. A stopped run resumes: call the same command again.",
    )
    add = parser.add_argument
    add(
        "--data",
        default="pocket",
        metavar="PATH",
        help="conversations or prompts: a file, a folder, hf:NAME (default: pocket, the generated dialogues)",
    )
    add("--out", required=True, metavar="FILE", help="JSONL to write; manifest and rejects stand beside it")
    add_checkpoint(parser, use="heads to answer faster with (the text is the same)")
    add_limit(parser)
    add("--batch_size", type=int, default=32, metavar="B", help="answers made at once (default 32)")
    add_max_new_tokens(parser, 256)
    add_compile(parser)
    add_sampling(parser)
    parser.set_defaults(seed=1)
    add_backbone(parser)
    server = parser.add_argument_group("a server in place of the engine (its key: OPENAI_API_KEY)")
    server.add_argument("--server", metavar="URL", help="e.g. http://localhost:8000/v1")
    server.add_argument("--model", metavar="NAME", help="which of its models (default: the first)")
    server.add_argument("--concurrency", type=int, default=32, metavar="N", help="requests at once (default 32)")
    server.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds for an answer (default 120)")
    server.add_argument("--retries", type=int, default=8, metavar="N", help="further attempts (default 8)")
    return parser
