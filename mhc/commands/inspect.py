"""`run.py inspect`: what a data file holds, and one sample with the supervised tokens marked."""

import argparse
from typing import TYPE_CHECKING

from mhc.commands import Parser
from mhc.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from datamodules.conversations import ConversationData


def main(argv: list[str]) -> int:
    """Print the report of a data set and one of its samples; returns the exit status."""
    options = _parser().parse_args(argv)
    if bool(options.config) == bool(options.data):
        raise UserError("inspect needs either --config FILE or --data FILE with --backbone NAME")

    from rich.console import Console

    from mhc.text.splits import SPLITS

    data = _data(options)
    console = Console(highlight=False)
    try:
        data.conversations(options.split)
    finally:  # an error names the first fault only
        for line in data.report.lines() if data.report and data.report.read else []:
            console.print(line, soft_wrap=True)
    sizes = ", ".join(f"{name} {len(data.conversations(name)):,}" for name in SPLITS)
    console.print(f"splits: {sizes}", soft_wrap=True)
    _show(console, data, options.split, options.index)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="run.py inspect",
        description="Show what a data set holds and which tokens of it are learned. "
        "Supervised tokens are green on a terminal, and [[between brackets]] in a log.",
    )
    add = parser.add_argument
    add("--config", action="append", default=[], metavar="YAML", help="a run's config; repeatable")
    add("--data", metavar="PATH", help="a file or folder of conversations, hf:NAME, or pocket")
    add("--backbone", metavar="NAME", help="whose tokenizer: pocket, a directory or a hub name")
    add("--index", type=int, default=0, metavar="N", help="which row to show, from 0 (default 0)")
    add("--max_length", type=int, metavar="N", help="cut rows at N tokens (default: the config's, else 512)")
    add("--split", choices=("train", "validation", "test"), default="train", help="default: train")
    return parser


def _data(options: argparse.Namespace) -> "ConversationData":
    """The data module of the flags or configs, made as `fit` makes it, with its tokenizer."""
    from jsonargparse import Namespace

    from datamodules.conversations import ConversationData
    from mhc.backbone.loading import load_tokenizer
    from mhc.cli import ParsedCLI, check_files, quiet

    flags = [part for file in options.config for part in ("--config", file)]
    for key, value in (
        ("data.path", options.data),
        ("data.max_length", options.max_length),
        ("model.backbone", options.backbone),
    ):
        flags += [] if value is None else [f"--{key}", str(value)]
    quiet()
    check_files(flags)
    heads = {"backbone": "", "drafter": {"class_path": "mhc.drafters.Medusa"}}
    cli = ParsedCLI(
        flags,
        {
            "data": {"class_path": "datamodules.ConversationData", "init_args": {"path": ""}},
            "model": {"class_path": "mhc.training.draft_module.DraftModule", "init_args": heads},
        },
    )
    settings, model = cli.config, cli.config.model.init_args
    if not settings.data.init_args.path:
        raise UserError(f"no data section in {', '.join(options.config)}: add one, or use --data FILE")
    data = cli.instantiate(Namespace(data=settings.data)).data
    if not isinstance(data, ConversationData):
        raise UserError(f"inspect shows conversations, but the config's data is {settings.data.class_path}")
    tokenizer = model.get("backbone") or model.get("tokenizer") or model.get("model")
    if not isinstance(tokenizer, str) or not tokenizer:
        raise UserError("no backbone, so no tokenizer: give --backbone pocket, a directory or a hub name")
    data.tokenizer = load_tokenizer(tokenizer)
    return data


def _show(console: "Console", data: "ConversationData", split: str, index: int) -> None:
    """Print one row with its supervised spans, and the totals of the split."""
    from rich.text import Text

    rows = data.rows(split)
    if not 0 <= index < len(rows):
        last = f"0 to {len(rows) - 1}" if rows else "there is none"
        raise UserError(f"no row {index} in the {split} split ({last}): choose another --index or --split")
    ids, mask = rows[index]
    console.rule(f"{split} row {index}")
    console.print(_painted(data.tokenizer, ids.tolist(), mask.tolist(), console.is_terminal), soft_wrap=True)
    console.rule()
    legend = Text.assemble(("green", "green"), " or [[brackets]]: learned   plain: context only")
    console.print(legend, soft_wrap=True)
    console.print(f"this row: {len(ids):,} tokens, {int(mask.sum()):,} supervised")
    totals = data.totals[split]
    share, cut = totals.supervised / totals.tokens, totals.truncated / totals.conversations
    console.print(
        f"{split}: {totals.conversations:,} conversations in {len(rows):,} rows, {totals.tokens:,} tokens, "
        f"{totals.supervised:,} supervised ({share:.0%}), longest {int(rows.lengths.max()):,}",
        soft_wrap=True,
    )
    text = f"{totals.truncated:,} conversations ({cut:.0%}) cut at {data.max_length:,} tokens (data.max_length)"
    if totals.dropped:
        text += f", {totals.dropped:,} of them left out because no token before that is learned"
    console.print(text, soft_wrap=True)
    for line in data.unwritten_lines():
        console.print(line, soft_wrap=True)


def _painted(tokenizer, ids: list[int], mask: list[bool], terminal: bool) -> "Text":
    """The decoded row as Rich text; supervised runs are green, and bracketed where colour is lost."""
    from itertools import groupby

    from rich.text import Text

    text, position = Text(), 0
    for supervised, run in groupby(mask):
        length = len(list(run))
        piece = tokenizer.decode(ids[position : position + length], skip_special_tokens=False)
        piece = piece if terminal or not supervised else f"[[{piece}]]"
        text.append(piece, style="green" if supervised else "")
        position += length
    return text
