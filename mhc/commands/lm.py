"""`run.py lm`: a language model from scratch, and heads that make it fast, in one command.

Corpus, tokenizer, pretraining, instruction tuning, preferences; then the model answers prompts itself, heads learn from
that, and decoding is measured. Every stage is one of the commands a user would type; it is printed. An interrupted run
resumes: stages that are complete are not repeated.
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mhc.commands import Parser
from mhc.commands.stages import CONFIGS, SETTINGS, add_trainer, best_trainer, distilling, run_stage, training
from mhc.errors import UserError
from mhc.util.manifest import open_settings
from mhc.util.verbs import shell_line

CORPUS = ("pretrain", "chats", "preferences")  # files of --data, each .jsonl
EPOCHS = {"pretrain": 2, "sft": 3, "dpo": 1}
HEADS_EPOCHS = 3
LONGEST = 96  # tokens of an answer
RIDDLE = "What am I thinking of? It is at home in cool northern forests. From it comes soft wood."


class Stage(NamedTuple):
    """title, arguments of run.py, and the file that exists once the stage is complete (None: the command checks by itself)."""

    title: str
    command: list[str]
    done: Path | None


def main(argv: list[str]) -> int:
    """Run all stages into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    for name in ("vocabulary", "answers"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be at least 1")
    if not Path(options.model).is_file():
        raise UserError(f"no model file '{options.model}': give one of configs/lm/models, or one like them")
    data = Path(options.data) if options.data else Path(options.out) / "data"
    for name in CORPUS if options.data else ():
        if not (data / f"{name}.jsonl").is_file():
            raise UserError(f"'{data}' has no {name}.jsonl: --data takes a folder with {', '.join(CORPUS)}.jsonl")

    from rich.console import Console

    from mhc.corpus.stages import write
    from mhc.lm.report import measure, show

    console, out, started = Console(), Path(options.out), time.perf_counter()
    settings = {name: getattr(options, name) for name in ("data", "vocabulary", "model", "answers")}
    open_settings(out / SETTINGS, out, settings)
    if not options.data and not all((data / f"{name}.jsonl").exists() for name in CORPUS):
        with console.status("writing the corpus"):
            write(data)
    stages = list(_stages(out, data, options, options.trainer or best_trainer()))
    for number, stage in enumerate(stages, 1):
        title = f"{number}/{len(stages)} {stage.title}"
        if stage.done and stage.done.exists():
            console.rule(f"{title}: done", align="left")
        elif status := run_stage(console, title, stage.command):
            return status
    console.rule("results of each stage", align="left")
    show(console, measure(out, data, LONGEST, time.perf_counter() - started), out)
    console.print(
        f"ask it: {shell_line('generate', '--checkpoint', str(out / 'heads'), '--prompt', RIDDLE)}",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _stages(out: Path, data: Path, options: argparse.Namespace, trainer: str) -> Iterator[Stage]:
    from callbacks.decode_benchmark import RESULT
    from callbacks.training_cost import RESULT as COST
    from mhc.checkpoints.heads_folder import TUNED

    files, tokenizer, heads = {name: str(data / f"{name}.jsonl") for name in CORPUS}, out / "tokenizer", out / "heads"
    yield Stage(
        "a tokenizer from the texts",
        [
            *("tokenizer", "--data", files["pretrain"], files["chats"]),
            *("--size", str(options.vocabulary), "--out", str(tokenizer)),
        ],
        tokenizer / "report.json",
    )
    compiled = ["--model.compile", "true"] if shutil.which("c++") or trainer == "gpu" else []
    fits = (
        ("pretrain", "the next token of plain texts", files["pretrain"], _new_model(options, tokenizer) + compiled),
        ("sft", "answers to questions", files["chats"], ["--model.model", str(out / "pretrain/model"), *compiled]),
        ("dpo", "better answers of two", files["preferences"], ["--model.model", str(out / "sft/model")]),
    )
    for name, title, file, more in fits:
        folder = out / name
        epochs = ["--trainer.max_epochs", str(EPOCHS[name])]
        command = ["fit", *lm_training(name, trainer, file, folder, *more, *epochs), *_resuming(folder)]
        yield Stage(f"{name}: {title}", command, folder / COST)
    backbone, answers = str(out / "dpo/model"), out / "answers.jsonl"
    distilled = distilling(
        files["chats"], str(answers), options.answers, "--backbone", backbone, "--max_new_tokens", str(LONGEST)
    )
    yield Stage("the model answers prompts itself", distilled, None)
    common = training("cascade", trainer, str(answers), heads, "--model.backbone", backbone)
    epochs = ["--trainer.max_epochs", str(HEADS_EPOCHS)]
    command = ["fit", *common, *epochs, *_resuming(heads)]
    yield Stage("MHC heads learn from these answers", command, heads / COST)
    tuned = ["tune", "--data", str(answers), "--prompts", "12", "--checkpoint", str(heads)]
    yield Stage("the tree that is fastest on this machine", tuned, heads / TUNED)
    yield Stage("decode held-out prompts with heads and plainly", ["test", *common], heads / RESULT)


def _resuming(folder: Path) -> list[str]:
    """The flags of a fit that resumes from the last checkpoint, where there is one."""
    return ["--ckpt_path", "last"] if any(folder.glob("last*.ckpt")) else []


def _new_model(options: argparse.Namespace, tokenizer: Path) -> list[str]:
    """The flags of an untrained model: its sizes and its vocabulary."""
    return [
        *("--config", options.model, "--model.tokenizer", str(tokenizer)),
        *("--model.model.vocab_size", str(options.vocabulary)),
    ]


def lm_training(stage: str, trainer: str, data: str, folder: Path, *more: str) -> list[str]:
    """The arguments of `fit` for one stage of configs/lm."""
    configs = (CONFIGS / "lm/training.yaml", CONFIGS / f"lm/{stage}.yaml", CONFIGS / f"trainer/{trainer}.yaml")
    config_flags = [part for config in configs for part in ("--config", str(config))]
    return [*config_flags, "--data.path", data, "--trainer.default_root_dir", str(folder), *more]


def _parser() -> Parser:
    parser = Parser(
        prog="run.py lm",
        description="A small language model from scratch: tokenizer, pretraining, instruction tuning, preferences, and MHC "
        "heads that make it fast; within half an hour on two CPU cores. An interrupted run resumes.",
    )
    add = parser.add_argument
    add("--out", default="runs/lm", metavar="DIR", help="where everything goes (default runs/lm)")
    add(
        "--data",
        metavar="DIR",
        help=f"a folder with {', '.join(CORPUS)}.jsonl of your own (default: a generated corpus)",
    )
    add("--vocabulary", type=int, default=2048, metavar="V", help="tokens of the tokenizer (default 2048)")
    add(
        "--model",
        default=str(CONFIGS / "lm/models/dense-5m.yaml"),
        metavar="YAML",
        help="a file of configs/lm/models (default dense-5m.yaml)",
    )
    add("--answers", type=int, default=3000, metavar="N", help="prompts to answer for the heads (default 3000)")
    add_trainer(parser)
    return parser
