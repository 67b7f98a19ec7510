"""What came of the road: every stage's own measure on held-out data, a table, a picture, and the same prompts answered by
each stage's model."""

import json
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mhc.backbone.model import Backbone, load_tokenizer
from mhc.lm.evaluation import perplexity
from mhc.lm.measures import NGrams, answers, preference_accuracy, standard_errors
from mhc.reports.run_logs import read_logs
from mhc.util.files import write_atomically, write_json
from mhc.util.provenance import machine, versions

REPORT, TABLE, PICTURE = "report.json", "report.md", "road.png"
PROMPTS = 100  # held-out prompts that are answered
SHOWN = 10
WINDOW = 256  # tokens of a row, as in configs/lm
MODELS = ("pretrain", "sft", "dpo")


def measure(out: Path, data: Path, longest: int, seconds: float) -> dict[str, Any]:
    """All measures of a road in `out` whose corpus is in `data`; written to report.json. longest: tokens of an answer. seconds: since the command began, that is,
    without what was done before where it went on."""
    from datamodules import ConversationData

    tokenizer = load_tokenizer(str(out / "tokenizer"))
    texts = ConversationData(str(data / "pretrain.jsonl"), max_length=WINDOW, supervise="all")
    chats = ConversationData(str(data / "chats.jsonl"), max_length=WINDOW)
    texts.tokenizer = chats.tokenizer = tokenizer
    train, held = texts.rows("train"), texts.rows("validation")
    prompts = chats.prompts("test", PROMPTS)
    models = {name: Backbone.load(str(out / name / "model")) for name in MODELS}
    said = {name: answers(model, [prompt.ids for prompt in prompts], longest) for name, model in models.items()}
    held_chats = [conversation.messages for conversation in chats.conversations("test")]
    losses = {name: perplexity(models[name], held_chats, WINDOW)["loss"] for name in ("pretrain", "sft")}
    accuracy, pairs = preference_accuracy(
        str(out / "dpo/model"), str(out / "sft/model"), str(data / "preferences.jsonl")
    )
    decoded = json.loads((out / "heads" / "decode_benchmark.json").read_text())
    costs = {name: json.loads((out / name / "training.json").read_text()) for name in (*MODELS, "heads")}
    curves = {name: read_logs(out / name)[0] for name in MODELS}
    found = {
        "minutes": round(seconds / 60, 1),
        "parameters": costs["pretrain"]["parameters"],
        "vocabulary": len(tokenizer),
        "pretrain": {
            "loss": last(curves["pretrain"]["val/loss"]),
            "unigram_loss": NGrams(train, 1, len(tokenizer)).loss(held),
            "5gram_loss": NGrams(train, 5, len(tokenizer)).loss(held),
        },
        "sft": {
            "loss": losses["sft"],
            "loss_before": losses["pretrain"],
            "well_formed_share": said["sft"].well_formed,
            "well_formed_share_before": said["pretrain"].well_formed,
            "prompts": len(prompts),
        },
        "dpo": {
            "loss": last(curves["dpo"]["val/loss"]),
            "preference_accuracy": accuracy,
            "preference_accuracy_z": standard_errors(accuracy, pairs),
            "pairs": pairs,
            "well_formed_share": said["dpo"].well_formed,
        },
        "heads": {name: decoded[name] for name in ("tokens_per_step", "speedup", "identical", "prompts")},
        "seconds": {name: round(cost["seconds"], 1) for name, cost in costs.items()},
        "tokens": {name: cost["tokens"] for name, cost in costs.items()},
        "answers": [
            {"prompt": prompt.messages[-1]["content"], **{name: said[name].texts[number] for name in MODELS}}
            for number, prompt in enumerate(prompts[:SHOWN])
        ],
        "curves": {
            name: {split: curve.get(f"{split}/loss", {}) for split in ("train", "val")}
            for name, curve in curves.items()
        },
        "machine": machine(),
        "versions": versions(),
    }
    write_json(out / REPORT, found)
    return found


def last(curve: dict[int, float]) -> float:
    """The value of the last step."""
    return curve[max(curve)]


def rows(found: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Stage, what it was for, and how it came out."""
    pre, sft, dpo, heads = (found[name] for name in (*MODELS, "heads"))
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
            "held-out pairs told apart",
            f"{dpo['preference_accuracy']:.0%} of {dpo['pairs']}, {dpo['preference_accuracy_z']:.1f} standard errors above "
            f"a half; loss {dpo['loss']:.3f} (0.693 at the start)",
        ),
        (
            "heads",
            "the same answers, sooner",
            f"{heads['tokens_per_step']:.2f} tokens per step, {heads['speedup']:.2f}x, "
            f"{heads['identical']} of {heads['prompts']} identical",
        ),
    ]


def show(console: Console, found: dict[str, Any], out: Path) -> None:
    """The table on the terminal, report.md and road.png."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("stage", "for", "on held-out data"):
        table.add_column(heading)
    for row in rows(found):
        table.add_row(*row)
    console.print(table)
    write_atomically(out / TABLE, lambda at: at.write_text(as_markdown(found)))
    draw(out / PICTURE, found["curves"])
    console.print(f"-> {out / REPORT}, {TABLE} (with what each model says), {PICTURE}", highlight=False, soft_wrap=True)


def as_markdown(found: dict[str, Any]) -> str:
    """The table, and the same prompts answered by each model."""
    lines = [
        "| stage | for | on held-out data |",
        "|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows(found)),
        "",
    ]
    for answer in found["answers"]:
        lines += [f"> {' '.join(answer['prompt'].split())}", ""]
        lines += [
            line
            for name in MODELS
            for line in (f"**{name}**", "", "```", answer[name].replace("```", "'''"), "```", "")
        ]
    return "\n".join(lines)


def draw(path: Path, curves: dict[str, dict[str, dict[int, float]]]) -> None:
    """The loss of each stage over its steps, training and validation, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(4 * len(curves), 3.2), layout="constrained")
    for axis, (name, losses) in zip(axes, curves.items()):
        for split, style in (("train", "-"), ("val", "o-")):
            steps = sorted(losses[split], key=int)
            axis.plot(
                [int(step) for step in steps], [losses[split][step] for step in steps], style, label=split, markersize=4
            )
        axis.set(title=name, xlabel="step", ylabel="loss" if axis is axes[0] else "")
        axis.grid(alpha=0.3)
        axis.legend(frameon=False)
    figure.savefig(path, dpi=140)
    plt.close(figure)
