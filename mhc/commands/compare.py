"""`run.py compare`: train every family of draft heads alike and see which one pays on this backbone and this machine.

Every family gets the same backbone, data, number of heads and budget (steps, or minutes of training); then trees are
tuned, and all of them decode the same held-out prompts in turn. What was done is not done again: a stopped comparison
resumes where it was.
"""

import json
from functools import cache, partial
from pathlib import Path
from typing import Any

from mhc.commands import FAMILIES, Parser, add_backbone, add_limit, add_max_new_tokens, loading_of
from mhc.commands.stages import SETTINGS, add_trainer, best_trainer, distilling, run_stage, training
from mhc.errors import UserError
from mhc.util.manifest import open_settings

STEPS = 375  # three epochs of 4,000 conversations
VALIDATIONS = 5  # over a training; the best of them is kept
TRIAL = 20  # steps that tell how long one takes
TUNED_ON = 12  # validation prompts
RESULT = "comparison.json"


def main(argv: list[str]) -> int:
    """Train, tune and measure into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    for name in ("steps", "minutes", "heads", "prompts", "conversations", "max_new_tokens"):
        if getattr(options, name) is not None and getattr(options, name) <= 0:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be above 0")
    if options.steps is None and options.minutes is None:
        options.steps = STEPS
    if options.data is None and options.backbone != "pocket":
        raise UserError("--data is missing: give answers of this backbone (run.py distill makes them)")
    from rich.console import Console

    console, out = Console(), Path(options.out)
    trainer = options.trainer or best_trainer()
    options.device = options.device or ("cuda" if trainer == "gpu" else "cpu")
    settings = {
        name: getattr(options, name) for name in ("backbone", "data", "limit", "heads", "steps", "minutes", "more")
    }
    answers = options.data or str(out / "answers.jsonl")
    if options.data is None:
        made = distilling("pocket", answers, options.conversations)
        if status := run_stage(console, "the backbone answers prompts itself", made):
            return status
    prompts = _held_out(options.backbone, answers, options.prompts)  # what is wrong with the data shows before training
    open_settings(out / SETTINGS, out, settings)
    for family in options.families:
        if status := _train(console, family, trainer, answers, out / family, options):
            return status
    comparison = compare(out, options.families, prompts, options.max_new_tokens, **loading_of(options)) | settings
    write_results(out, comparison)
    console.print(f"-> {out / RESULT}, comparison.md and comparison.png", highlight=False)
    return 0


def compare(
    out: Path, families: list[str], prompts: dict[str, list[list[int]]], max_new_tokens: int, **loading: Any
) -> dict[str, Any]:
    """Tune (on prompts["validation"]) and measure (on prompts["test"]) the heads that stand in out/<family>, all on one
    backbone. loading: device, dtype, quantize as in `Backbone.load`."""
    from callbacks.decode_benchmark import GUESSES
    from callbacks.training_cost import RESULT as COST
    from mhc.checkpoints.heads_folder import for_decoding, load_drafter
    from mhc.evaluation.comparison import measure
    from mhc.evaluation.teacher_forced import save_guesses
    from mhc.util.progress import add_task, bar
    from mhc.util.provenance import machine, versions

    drafters, tuned, parameters = {}, {}, {}
    backbone = load_drafter(out / families[0], **loading)[0].backbone
    for family in families:
        loaded, _ = load_drafter(out / family, backbone, **loading)
        drafters[family] = for_decoding(loaded)
        parameters[family] = sum(parameter.numel() for parameter in loaded.parameters())
    with bar() as progress:
        for family, drafter in drafters.items():
            tuned[family] = _tuned(out / family, drafter, prompts["validation"][:TUNED_ON], max_new_tokens, progress)
        move = cache(partial(add_task, progress))

        def update(title: str, done: int, total: int) -> None:
            move(title)(done, total)

        found, guesses = measure(drafters, tuned, prompts["test"], max_new_tokens, update)
    for family in families:
        save_guesses(out / family / GUESSES, guesses[family], backbone.tokenizer)
        cost = json.loads((out / family / COST).read_text(encoding="utf-8"))
        found[family] |= {
            "parameters": parameters[family],
            "steps": cost["steps"],
            "training_seconds": cost["seconds"],
            "peak_memory_mib": cost["peak_memory_mib"],
        }
    return {
        "backbone_parameters": backbone.parameter_count,
        "prompts": len(prompts["test"]),
        "max_new_tokens": max_new_tokens,
        "machine": machine(),
        "versions": versions(),
        "families": found,
    }


def _held_out(backbone: str, data: str, count: int) -> dict[str, list[list[int]]]:
    """Prompts to tune on and prompts to measure, as token ids; UserError where the data have none."""
    from datamodules import ConversationData
    from mhc.backbone.loading import load_tokenizer

    source = ConversationData(data)
    source.tokenizer = load_tokenizer(backbone)
    found = {split: [prompt.ids for prompt in source.prompts(split, count)] for split in ("validation", "test")}
    if min(map(len, found.values())) < 2:
        raise UserError(f"'{data}' holds out fewer than two prompts: give more conversations")
    return found


def write_results(out: Path, comparison: dict[str, Any]) -> None:
    """comparison.json, .md and .png, and the table on the terminal."""
    from rich.console import Console

    from mhc.evaluation.comparison import as_markdown, explain
    from mhc.reports.plots import draw_comparison
    from mhc.util.files import write_json

    write_json(out / RESULT, comparison)
    table = as_markdown(comparison)
    (out / "comparison.md").write_text(f"{table}\n{explain(comparison)}\n", encoding="utf-8")
    draw_comparison(out / "comparison.png", comparison)
    show(comparison["families"])
    Console().print(explain(comparison), highlight=False)


def show(families: dict[str, Any]) -> None:
    """A table with one row a family, 80 columns wide."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the same held-out prompts; tokens per step, and speedup", box=SIMPLE_HEAD, padding=(0, 1))
    table.add_column("drafter", no_wrap=True)
    for heading in ("head 0", "chain", "predicted", "draft", "tuned", "speedup", "T=1"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, found in families.items():
        table.add_row(
            name,
            f"{found['head_accuracy'][0]['top1']:.0%}",
            f"{found['chain/T=0']['tokens_per_step']:.2f}",
            f"{found['predicted']:.2f}",
            f"{found['chain_ms']['draft_ms']:.1f} ms",
            f"{found['tuned/T=0']['tokens_per_step']:.2f}",
            f"{found['tuned/T=0']['speedup']:.2f}x",
            f"{found['tuned/T=1']['speedup']:.2f}x",
        )
    Console().print(table)


def _tuned(folder: Path, drafter, prompts: list[list[int]], max_new_tokens: int, progress) -> dict[str, Any]:
    """The fastest tree of these heads at each temperature; what was found stays beside the heads."""
    from mhc.checkpoints.heads_folder import TUNED
    from mhc.commands.tune import tune
    from mhc.engine import Engine
    from mhc.evaluation.comparison import SAMPLINGS
    from mhc.trees.shapes import parse_tree
    from mhc.util.files import write_json

    trees = {}
    for label, sampling in SAMPLINGS.items():
        path = folder / (TUNED if label == "T=0" else f"tree.{label}.json")
        if not path.exists():
            write_json(path, tune(Engine(drafter.backbone, drafter), prompts, max_new_tokens, sampling, progress))
        trees[label] = parse_tree(json.loads(path.read_text(encoding="utf-8"))["tree"])
    return trees


def _train(console, family: str, trainer: str, data: str, folder: Path, options) -> int:
    """Train one family for the budget, or resume it, or leave it if it is done; the exit status."""
    from callbacks.training_cost import RESULT as COST

    key = "heads" if family in ("medusa", "cascade") else "draft_length"
    length = (f"--model.init_args.drafter.init_args.{key}", str(options.heads))
    common = [*length, "--model.backbone", options.backbone, "--trainer.max_epochs", "-1"]
    for flag, value in (
        ("data.limit", options.limit),
        ("model.dtype", options.dtype),
        ("model.quantize", options.quantize),
    ):
        common += [f"--{flag}", str(value)] if value else []
    common += options.more
    if (folder / COST).exists():
        console.rule(f"{family} heads are trained", align="left")
        return 0
    steps = options.steps
    if options.minutes:
        steps = _steps_in(console, family, trainer, data, folder, common, options.minutes)
        if steps is None:
            return 1
    every = max(1, steps // VALIDATIONS)
    budget = ["--trainer.max_steps", str(every * (steps // every)), "--trainer.val_check_interval", str(every)]
    budget += ["--trainer.check_val_every_n_epoch", "null"]
    resumed = ["--ckpt_path", "last"] if any(folder.glob("last*.ckpt")) else []
    command = ["fit", *training(family, trainer, data, folder, *common, *budget, *resumed)]
    return run_stage(console, f"train {family} heads", command)


def _steps_in(console, family, trainer, data, folder, common, minutes: float) -> int | None:
    """How many steps fit into so many minutes, by a short trial (kept, so that a resumed run has the same schedule)."""
    from callbacks.training_cost import RESULT as COST

    trial = folder / "trial"
    if not (trial / COST).exists():
        short = ["--trainer.max_steps", str(TRIAL), "--trainer.limit_val_batches", "0"]
        command = ["fit", *training(family, trainer, data, trial, *common, *short), "--checkpoint.overwrite", "true"]
        if run_stage(console, f"how long a step with {family} heads takes", command):
            return None
    cost = json.loads((trial / COST).read_text(encoding="utf-8"))
    return max(VALIDATIONS, int(60 * minutes / (cost["seconds"] / cost["steps"])))


def _parser() -> Parser:
    parser = Parser(
        prog="run.py compare",
        description="Train Medusa, MHC, diffusion and EAGLE-3 heads with the same backbone, data and budget, tune a tree "
        "for each and decode the same held-out prompts: one table and one picture. A stopped comparison resumes.",
    )
    add = parser.add_argument
    add(
        "--data",
        metavar="PATH",
        help="the backbone's own answers, as `run.py distill` writes them (default for pocket: made here)",
    )
    add("--out", default="runs/compare", metavar="DIR", help="where results go (default runs/compare)")
    add("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES), help="default: all four")
    add("--heads", type=int, default=5, metavar="K", help="heads of every family (default 5)")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--steps", type=int, metavar="N", help="training steps of every family (default 375)")
    budget.add_argument("--minutes", type=float, metavar="M", help="minutes of training for every family instead")
    add_limit(parser)
    add("--conversations", type=int, default=4000, metavar="N", help="prompts to distil where --data is not given")
    add("--prompts", type=int, default=40, metavar="N", help="held-out prompts to decode (default 40)")
    add_max_new_tokens(parser, 128)
    add_trainer(parser)
    add_backbone(parser)
    parser.set_defaults(backbone="pocket", device=None)
    add("more", nargs="*", metavar="-- FLAGS", help="flags for every `run.py fit`, e.g. -- --data.batch_size 8")
    return parser
