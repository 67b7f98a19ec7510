"""`run.py inspect`: what a data file holds, and one sample with the supervised tokens marked."""

import inspect as python_inspect
from pathlib import Path

from mhc.commands import Parser
from mhc.errors import UserError


def main(argv: list[str]) -> int:
    """Print the report of a data set and one of its samples; returns the exit status."""
    arguments = _parser().parse_args(argv)
    if bool(arguments.config) == bool(arguments.data):
        raise UserError("inspect needs either --config FILE or --data FILE with --backbone NAME")

    from rich.console import Console

    from datamodules.conversations import ConversationData
    from mhc.backbone.model import load_tokenizer
    from mhc.text.splits import SPLITS

    if arguments.config:
        settings, backbone = _from_configs(arguments.config)
        backbone = arguments.backbone or backbone
    else:
        settings, backbone = {"path": arguments.data}, arguments.backbone
    if arguments.max_length:
        settings["max_length"] = arguments.max_length
    if not backbone:
        raise UserError("no backbone, so no tokenizer: give --backbone pocket, a directory or a hub name")
    known = list(python_inspect.signature(ConversationData).parameters)
    for key in settings:
        if key not in known:
            raise UserError(f"unknown key data.{key}: ConversationData takes {', '.join(known)}")
    data = ConversationData(**settings)
    data.tokenizer = load_tokenizer(backbone)
    console = Console(highlight=False)
    try:
        data.conversations(arguments.split)
    finally:  # an error names the first fault only
        for line in data.report.lines() if data.report and data.report.read else []:
            console.print(line, soft_wrap=True)
    sizes = ", ".join(f"{name} {len(data.conversations(name)):,}" for name in SPLITS)
    console.print(f"splits: {sizes}", soft_wrap=True)
    _show(console, data, arguments.split, arguments.index)
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


def _from_configs(files: list[str]) -> tuple[dict, str | None]:
    """The arguments of the data module and the name of the backbone, from YAML files merged in order."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    merged = OmegaConf.create()
    for file in files:
        if not Path(file).is_file():
            raise UserError(f"{file} does not exist: give the path of a YAML config")
        try:
            merged = OmegaConf.merge(merged, OmegaConf.load(file))
        except (OmegaConfBaseException, YAMLError, OSError, ValueError, TypeError) as problem:
            raise UserError(f"{file} is not a valid YAML config: {_one_line(problem)}") from problem
    try:
        data = _section(merged, "data")
        model = _section(merged, "model")
    except OmegaConfBaseException as problem:
        raise UserError(f"{files[-1]}: {_one_line(problem)}") from problem
    if data is None:
        raise UserError(f"no data section in {', '.join(files)}: add one, or use --data FILE")
    kind = str(data.get("class_path", "ConversationData"))
    if kind.rpartition(".")[2] != "ConversationData":
        raise UserError(f"inspect shows conversations, but the config's data is {kind}")
    settings = data.get("init_args") or {} if "class_path" in data or "init_args" in data else data
    model = model or {}
    backbone = (model.get("init_args") or model).get("backbone")
    if isinstance(backbone, dict):
        backbone = (backbone.get("init_args") or backbone).get("name")
    return settings, backbone


def _one_line(problem: Exception) -> str:
    return " ".join(str(problem).split())


def _section(config, name: str) -> dict | None:
    """One section as plain values, its references resolved."""
    from omegaconf import OmegaConf

    section = config.get(name)
    if section is None:
        return None
    if not OmegaConf.is_dict(section):
        raise UserError(f"{name} must be a mapping in the config, not {section!r}")
    return OmegaConf.to_container(section, resolve=True)


def _show(console, data, split: str, index: int) -> None:
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


def _painted(tokenizer, ids: list[int], mask: list[bool], terminal: bool):
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
