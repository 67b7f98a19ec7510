"""`run.py distill`: the frozen backbone answers every prompt itself, and heads learn from its answers.

Heads speed up what the model says, so the model's own words are the data to learn from: every
assistant turn of the conversations is regenerated in order, many at once. The result is JSONL in
the `messages` format, written as it is made; a run that was stopped goes on where it was.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

from mhc.commands import Parser, add_backbone, loading_of
from mhc.errors import UserError

WAVES = 8  # times the batch size: conversations between two writes


def main(argv: list[str]) -> int:
    """Distil --data into --out; returns the exit status."""
    options = _parser().parse_args(argv)

    from datamodules import ConversationData
    from mhc.backbone import Backbone
    from mhc.engine import Engine

    if options.checkpoint:
        engine = Engine.from_checkpoint(options.checkpoint, options.backbone, **loading_of(options))
    else:
        engine = Engine(Backbone.load(options.backbone or "pocket", device=options.device, quantize=options.quantize))
    data = ConversationData(options.data, limit=options.limit, seed=options.seed)
    data.tokenizer = engine.backbone.tokenizer
    conversations = [row for split in ("train", "validation", "test") for row in data.conversations(split)]
    settings = {
        "data": options.data,
        "seed": options.seed,
        "backbone": engine.backbone.name,
        "fingerprint": engine.backbone.fingerprint(),
        "max_new_tokens": options.max_new_tokens,
    }
    settings |= {name: value for name in ("dtype", "quantize") if (value := getattr(options, name))}
    distill(engine, conversations, Path(options.out), settings, options.batch_size)
    return 0


def distill(engine, conversations: list, out: Path, settings: dict[str, Any], batch_size: int) -> None:
    """Append to `out` one line a conversation whose assistant turns are the engine's own answers.

    Conversations already in the file are skipped. Raises UserError where the file was made with
    other settings.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    done = _resume(out, settings)
    waiting = [row for row in conversations if row.id not in done]
    tokens, started = 0, time.perf_counter()
    columns = (TextColumn("distilling"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress, open(out, "a") as file:
        task = progress.add_task("", total=len(conversations), completed=len(done), rate="")
        for first in range(0, len(waiting), WAVES * batch_size):
            wave = waiting[first : first + WAVES * batch_size]

            def advance(count: int) -> None:
                nonlocal tokens
                tokens += count
                rate = tokens / (time.perf_counter() - started)
                progress.update(task, rate=f"{rate:,.0f} tokens/s")

            for row, messages in zip(wave, _answer(engine, wave, settings["max_new_tokens"], batch_size, advance)):
                if messages:
                    file.write(json.dumps({"id": row.id, "messages": messages}, ensure_ascii=False) + "\n")
            file.flush()
            progress.update(task, advance=len(wave))
    seconds = time.perf_counter() - started
    if not waiting:
        console.print(f"{out} is complete: {len(done)} conversations")
        return
    console.print(f"{len(waiting)} conversations, {tokens:,} tokens in {seconds:.0f} s -> {out}")


def _answer(engine, wave: list, max_new_tokens: int, batch_size: int, advance) -> list[list[dict]]:
    """The conversations with every assistant turn replaced: all first answers, then all second ones, ...

    A conversation that outgrows the backbone's context ends with its last answer (maybe none).
    """
    from mhc.chat import prompt_ids

    done: list[list[dict]] = [[] for _ in wave]
    active = list(range(len(wave)))
    while active:
        prompts: dict[int, list[int]] = {}
        for number in active:
            asked = list(done[number])
            for message in wave[number].messages[len(asked) :]:
                if message["role"] == "assistant":
                    break
                asked.append(message)
            ids = prompt_ids(engine.backbone.tokenizer, asked)
            if len(asked) < len(wave[number].messages) and len(ids) < engine.backbone.context - 1:
                done[number], prompts[number] = asked, ids
        active = list(prompts)
        for index, answer in engine.generate_ids(list(prompts.values()), max_new_tokens, batch_size):
            done[active[index]].append({"role": "assistant", "content": answer.text})
            advance(len(answer.token_ids))
    return done


def _resume(out: Path, settings: dict[str, Any]) -> set[str]:
    """Ids already in `out`; a torn last line is cut off. Writes the manifest of a new file."""
    from mhc.checkpoint import write_json

    manifest = out.with_suffix(".manifest.json")
    if out.exists() != manifest.exists():
        present = out if out.exists() else manifest
        raise UserError(f"'{present}' stands alone (a file and its manifest belong together): choose another --out")
    if not out.exists():
        write_json(manifest, settings)
        out.touch()
        return set()
    made_with = json.loads(manifest.read_text())
    changed = [key for key in settings if made_with.get(key) != settings[key]]
    if changed:
        raise UserError(
            f"'{out}' was made with other settings ({', '.join(f'{key}: {made_with.get(key)}' for key in changed)}): "
            "choose another --out, or delete it"
        )
    content = out.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        print(f"cut a half-written line from the end of {out}", file=sys.stderr)
        out.write_bytes(whole)
    return {json.loads(line)["id"] for line in whole.splitlines()}


def _parser() -> Parser:
    parser = Parser(
        prog="run.py distill",
        description="Let the frozen backbone answer the prompts of a conversation file itself. Stopped runs go on "
        "where they were: call the same command again.",
    )
    add = parser.add_argument
    add(
        "--data",
        default="pocket",
        metavar="PATH",
        help="conversations (default: pocket, the generated dialogues)",
    )
    add("--out", required=True, metavar="FILE", help="JSONL to write; its manifest stands beside it")
    add("--checkpoint", metavar="DIR", help="heads to answer faster with (the text is the same)")
    add("--limit", type=int, metavar="N", help="at most N conversations of each split (pocket: N in all)")
    add("--batch_size", type=int, default=32, metavar="B", help="answers made at once (default 32)")
    add("--max_new_tokens", type=int, default=256, metavar="N", help="length limit of an answer (default 256)")
    add("--seed", type=int, default=1, help="for pocket: which dialogues are generated (default 1)")
    add_backbone(parser)
    return parser
