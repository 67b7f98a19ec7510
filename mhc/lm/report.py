"""The report of `run.py lm`: each stage's own measure on held-out data, a table, a plot of the losses, and the same prompts
answered by each stage's model."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from datamodules import ConversationData
from mhc.backbone.loading import load_tokenizer
from mhc.backbone.model import Backbone
from mhc.lm.evaluation import perplexity
from mhc.lm.measures import NGrams, answers, preference_accuracy, standard_errors
from mhc.reports.run_logs import read_logs
from mhc.util.files import write_atomically, write_json
from mhc.util.provenance import machine, versions

REPORT, TABLE, PLOT = "report.json", "report.md", "losses.png"
PROMPTS = 100  # held-out prompts that are answered
SHOWN = 10  # of them in the report
WINDOW = 256  # tokens of a row, as in configs/lm
MODELS = ("pretrain", "sft", "dpo")


def measure(out: Path, data: Path, longest: int, seconds: float) -> dict[str, Any]:
    """All measures of the stages in `out` whose corpus is in `data`; written to report.json. longest: tokens of an answer.
    seconds: since the command began, without the stages of an earlier run that it resumed."""
    tokenizer = load_tokenizer(str(out / "tokenizer"))
    texts = ConversationData(str(data / "pretrain.jsonl"), max_length=WINDOW, supervise="all")
    chats = ConversationData(str(data / "chats.jsonl"), max_length=WINDOW)
    texts.tokenizer = chats.tokenizer = tokenizer
    train, held = texts.rows("train"), texts.rows("validation")
    prompts = chats.prompts("test", PROMPTS)
    models = {name: Backbone.load(str(out / name / "model")) for name in MODELS}
    answered = {name: answers(model, [prompt.ids for prompt in prompts], longest) for name, model in models.items()}
    held_chats = [conversation.messages for conversation in chats.conversations("test")]
    losses = {name: perplexity(models[name], held_chats, WINDOW)["loss"] for name in ("pretrain", "sft")}
    accuracy, pairs = preference_accuracy(
        str(out / "dpo/model"), str(out / "sft/model"), str(data / "preferences.jsonl")
    )
    decoded = json.loads((out / "heads" / "decode_benchmark.json").read_text(encoding="utf-8"))
    costs = {
        name: json.loads((out / name / "training.json").read_text(encoding="utf-8")) for name in (*MODELS, "heads")
    }
    curves = {name: read_logs(out / name)[0] for name in MODELS}
    report = {
        "minutes": round(seconds / 60, 1),
        "parameters": costs["pretrain"]["parameters"],
        "vocabulary": len(tokenizer),
        "pretrain": {
            "loss": final_value(curves["pretrain"]["val/loss"]),
            "unigram_loss": NGrams(train, 1, len(tokenizer)).loss(held),
            "5gram_loss": NGrams(train, 5, len(tokenizer)).loss(held),
        },
        "sft": {
            "loss": losses["sft"],
            "loss_before": losses["pretrain"],
            "well_formed_share": answered["sft"].well_formed,
            "well_formed_share_before": answered["pretrain"].well_formed,
            "prompts": len(prompts),
        },
        "dpo": {
            "loss": final_value(curves["dpo"]["val/loss"]),
            "preference_accuracy": accuracy,
            "preference_accuracy_z": standard_errors(accuracy, pairs),
            "pairs": pairs,
            "well_formed_share": answered["dpo"].well_formed,
        },
        "heads": {name: decoded[name] for name in ("tokens_per_step", "speedup", "identical", "prompts")},
        "seconds": {name: round(cost["seconds"], 1) for name, cost in costs.items()},
        "tokens": {name: cost["tokens"] for name, cost in costs.items()},
        "answers": [
            {"prompt": prompt.messages[-1]["content"], **{name: answered[name].texts[number] for name in MODELS}}
            for number, prompt in enumerate(prompts[:SHOWN])
        ],
        "curves": {
            name: {split: curve.get(f"{split}/loss", {}) for split in ("train", "val")}
            for name, curve in curves.items()
        },
        "machine": machine(),
        "versions": versions(),
    }
    write_json(out / REPORT, report)
    return report


def final_value(curve: dict[int, float]) -> float:
    """The value at the last step."""
    return curve[max(curve)]


def rows(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Stage, its measure, and the result."""
    pre, sft, dpo, heads = (report[name] for name in (*MODELS, "heads"))
    return [
        (
            "pretrain",
            "loss of held-out texts",
            f"{pre['loss']:.3f} (unigrams {pre['unigram_loss']:.3f}, 5-grams {pre['5gram_loss']:.3f})",
        ),
        (
            "sft",
            "answers that end and keep to the template",
            f"{sft['well_formed_share']:.0%} of {sft['prompts']}; loss of held-out answers {sft['loss']:.3f} "
            f"(before: {sft['loss_before']:.3f})",
        ),
        (
            "dpo",
            "held-out pairs ordered correctly",
            f"{dpo['preference_accuracy']:.0%} of {dpo['pairs']}, {dpo['preference_accuracy_z']:.1f} standard errors above "
            f"a half; loss {dpo['loss']:.3f} (0.693 at the start)",
        ),
        (
            "heads",
            "the same answers, faster",
            f"{heads['tokens_per_step']:.2f} tokens per step, {heads['speedup']:.2f}x, "
            f"{heads['identical']} of {heads['prompts']} identical",
        ),
    ]


def show(console: Console, report: dict[str, Any], out: Path) -> None:
    """The table on the terminal, report.md and losses.png."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("stage", "for", "on held-out data"):
        table.add_column(heading)
    for row in rows(report):
        table.add_row(*row)
    console.print(table)
    write_atomically(out / TABLE, lambda path: path.write_text(as_markdown(report), encoding="utf-8"))
    draw(out / PLOT, report["curves"])
    console.print(f"-> {out / REPORT}, {TABLE} (with each model's answers), {PLOT}", highlight=False, soft_wrap=True)


def as_markdown(report: dict[str, Any]) -> str:
    """The table, and the same prompts answered by each model."""
    lines = [
        "| stage | for | on held-out data |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows(report)),
        "",
    ]
    for answer in report["answers"]:
        lines += [f"> {' '.join(answer['prompt'].split())}", ""]
        lines += [
            line
            for name in MODELS
            for line in (f"**{name}**", "", "```", answer[name].replace("```", "'''"), "```", "")
        ]
    return "\n".join(lines)


def draw(path: Path, curves: dict[str, dict[str, dict[int, float]]]) -> None:
    """The loss of each stage over its steps, training and validation, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(curves), 3.2), layout="constrained")
    for number, (name, losses) in enumerate(curves.items()):
        axis = figure.add_subplot(1, len(curves), number + 1)
        for split, style in (("train", "-"), ("val", "o-")):
            steps = sorted(losses[split])
            axis.plot(steps, [losses[split][step] for step in steps], style, label=split, markersize=4)
        axis.set(title=name, xlabel="step", ylabel="" if number else "loss")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=140)
