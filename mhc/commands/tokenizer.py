"""`run.py tokenizer`: a byte-level BPE tokenizer trained on text or conversations.

It writes a stock Hugging Face tokenizer with a chat template, and report.json: how well it compresses documents
that it was not trained on, by script, compared with the pocket's tokenizer.
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhc.commands import Parser
from mhc.errors import UserError
from mhc.util.files import write_json
from mhc.util.manifest import require_same_settings
from mhc.util.progress import say

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LARGEST = 1_000_000  # tokens
REPORT = "report.json"


def main(argv: list[str]) -> int:
    """Train a tokenizer on --data into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    from mhc.lm.tokenizer import SMALLEST

    if not SMALLEST <= options.size <= LARGEST:
        raise UserError(
            f"--size is {options.size}: it must be between {SMALLEST} (every byte, three control tokens) and {LARGEST:,}"
        )
    out = Path(options.out).absolute()
    settings = {"data": options.data, "size": options.size, "source": _source(options.data)}
    with _writing(out):
        report = _previous_report(out, settings)
    if report is None:
        report = _make(out, settings)
        say(f"tokenizer -> {options.out}")
    else:
        say(f"{options.out} is complete")
    _show(report)
    return 0


# -- the folder ------------------------------------------------------------------------------------


def _source(data: list[str]) -> str:
    """A hash of the state of the data: it changes when the text does."""
    from datamodules.files import source_state
    from mhc.util.journal import digest

    return digest([path if path == "pocket" else source_state(path) for path in data])


def _previous_report(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The report of the tokenizer already in `out`, if any. Raises UserError where it was made with other settings, or `out`
    is something else."""
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir():
        raise UserError(f"'{out}' is a file: --out must be a folder")
    if not any(out.iterdir()):
        return None
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
        was = dict(report["settings"])
        report["vocabulary"], report["held_out"]["scripts"]
    except (OSError, ValueError, KeyError, TypeError) as problem:
        raise UserError(f"'{out}' exists and is not a tokenizer of this command: choose another --out") from problem
    require_same_settings(out, was | {"source": settings["source"]}, settings)
    if was.get("source") != settings["source"]:
        raise UserError(f"'{out}' was made before its data changed: choose another --out, or delete it")
    return report


def _make(out: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Train the tokenizer, write it and its report beside `out` and rename, so that `out` is complete or absent. Returns the
    report."""
    folder = out.with_name(out.name + ".writing")
    try:
        with _writing(out):
            shutil.rmtree(folder, ignore_errors=True)  # what a killed run left
            folder.mkdir(parents=True)
        tokenizer, figures = _train(settings["data"], settings["size"])
        report = {"settings": settings} | figures
        with _writing(out):
            tokenizer.save_pretrained(folder)
            write_json(folder / REPORT, report)
            folder.replace(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as problem:
        if not isinstance(problem, OSError) and "os error" not in str(problem):  # as the tokenizers library reports it
            raise
        reason = getattr(problem, "strerror", None) or problem
        raise UserError(f"cannot write --out {out} ({reason}): choose another, or free disk space") from problem


# -- training --------------------------------------------------------------------------------------


def _train(data: list[str], size: int) -> tuple["PreTrainedTokenizerFast", dict[str, Any]]:
    """The tokenizer, and its figures for the report."""
    from mhc.backbone.loading import load_tokenizer
    from mhc.lm.compression import compression
    from mhc.lm.tokenizer import train_tokenizer
    from mhc.text.splits import split_conversations
    from mhc.util.progress import counting_bar

    with counting_bar() as progress:
        task = progress.add_task("reading", total=None)
        texts, numbers = [], []
        for contents, number in _read(data):
            texts.append(contents)
            numbers.append(number)
            progress.update(task, completed=len(texts))
        places = split_conversations(numbers)
        train, held_out = places["train"], sorted([*places["validation"], *places["test"]])
        progress.update(task, total=len(texts))

        task = progress.add_task("counting words", total=len(train))

        def training_texts() -> Iterator[str]:
            for place in train:
                yield from texts[place]
                progress.advance(task)
            progress.update(task, description="merging pairs")

        tokenizer = train_tokenizer(training_texts(), size)
        if len(tokenizer) < size:
            raise UserError(
                f"{' '.join(data)}: the text is enough for {len(tokenizer):,} tokens only, not {size:,}: "
                f"add more text, or ask for --size {len(tokenizer)}"
            )
        task = progress.add_task("measuring", total=len(held_out))
        documents = ["\n".join(texts[place]) for place in held_out]
        tokenizers = {"this": tokenizer, "pocket": load_tokenizer("pocket")}
        scripts, exact = compression(documents, tokenizers, lambda count: progress.advance(task, count))
    return tokenizer, {
        "vocabulary": len(tokenizer),
        "trained_on": {
            "documents": len(train),
            "bytes": sum(len(text.encode()) for place in train for text in texts[place]),
        },
        "held_out": {
            "documents": len(documents),
            "exact_round_trips": exact,
            "scripts": {script: size.figures() for script, size in scripts.items()},
        },
    }


def _read(data: list[str]) -> Iterator[tuple[list[str], int]]:
    """The contents of each conversation or document of the sources, and its number for the splits."""
    from datamodules.readers import Report, iterate
    from mhc.text.splits import prompt_number

    for path in data:
        if path == "pocket":
            from mhc.corpus import POCKET_COUNT, dialogues

            for dialogue in dialogues(POCKET_COUNT):
                contents = [message["content"] for message in dialogue["messages"]]
                yield contents, prompt_number(contents[0])
            continue
        report = Report(path)
        for conversation in iterate(path, report, answered=False):  # a question alone is text as well
            contents = [message["content"] for message in conversation.messages if message["content"]]
            yield contents, prompt_number(conversation.prompt)
        say("\n".join(report.lines()), markup=True)


# -- output ----------------------------------------------------------------------------------


def _show(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    held_out, trained_on = report["held_out"], report["trained_on"]
    title = f"{report['vocabulary']:,} tokens, from {trained_on['documents']:,} documents ({trained_on['bytes'] / 1e6:,.1f} MB)"
    console = Console(highlight=False)
    if not held_out["documents"]:
        console.print(f"{title}; none is held out, so compression was not measured", soft_wrap=True)
        return
    table = Table(title=title, caption="held-out documents by script; in brackets the pocket's tokenizer")
    table.add_column("script")
    for name in ("documents", "bytes per token", "characters per token"):
        table.add_column(name, justify="right")
    for script, size in held_out["scripts"].items():
        figures = [
            f"{size['this'][figure]:.2f} ({size['pocket'][figure]:.2f})"
            for figure in ("bytes_per_token", "characters_per_token")
        ]
        if script == "all":
            table.add_section()
        table.add_row(script, f"{size['documents']:,}", *figures)
    console.print(table)
    console.print(f"{held_out['exact_round_trips']:,} of {held_out['documents']:,} come back unchanged", soft_wrap=True)


def _parser() -> Parser:
    parser = Parser(
        prog="run.py tokenizer",
        description="Train a byte-level BPE tokenizer: any text can be encoded and decoded exactly, digits are single tokens, and its chat template "
        "has system and tool turns and thinking. It is measured on documents that it was not trained on.",
    )
    add = parser.add_argument
    data = "conversations or text: files, folders, hf:NAME, pocket (the generated dialogues)"
    add("--data", required=True, nargs="+", metavar="PATH", help=data)
    add("--size", type=int, default=6400, metavar="V", help="tokens in all (default 6400)")
    add("--out", required=True, metavar="DIR", help="folder of the tokenizer, loaded by any Hugging Face program")
    return parser
