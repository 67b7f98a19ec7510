"""`run.py quickstart`: the main job from end to end on the embedded backbone, in a few minutes.

Distil answers, collect what the backbone says of them, train Medusa and MHC heads on that with the same budget, tune the
tree that each grows, decode held-out prompts with both, and say what came of it. Every stage is one of the commands a
user would type; it is printed.
"""

import json
import time
from pathlib import Path
from typing import Any

from mhc.commands import Parser
from mhc.commands.stages import add_trainer, best_trainer, distilling, run_stage, training
from mhc.util.verbs import shell_line

DRAFTERS = ("medusa", "cascade")
QUESTION = "Write a thank-you letter from Luis to Leo. It is for the teddy bear."


def main(argv: list[str]) -> int:
    """Run all stages into --out; returns the exit status."""
    options = _parser().parse_args(argv)

    from rich.console import Console

    from callbacks.decode_benchmark import RESULT, show
    from mhc.util.files import write_json

    console, out, started = Console(), Path(options.out), time.perf_counter()
    stages = list(_stages(out, options.conversations, options.trainer or best_trainer()))
    for number, (what, command) in enumerate(stages, 1):
        status = run_stage(console, f"{number}/{len(stages)} {what}", command)
        if status:
            return status
    drafters = {name: json.loads((out / name / RESULT).read_text(encoding="utf-8")) for name in DRAFTERS}
    seconds = round(time.perf_counter() - started, 1)
    report = {"seconds": seconds, "drafters": drafters}
    write_json(out / "report.json", report)
    draw_accuracy(drafters, out / "head_accuracy.png")
    show(drafters)
    console.print(
        f"done in {seconds / 60:.1f} minutes: {out / 'report.json'}, {out / 'head_accuracy.png'}\n"
        f"ask it something: {shell_line('generate', '--checkpoint', str(out / 'cascade'), '--prompt', QUESTION)}",
        markup=False,
        soft_wrap=True,
        highlight=False,
    )
    return 0


def _stages(out: Path, conversations: int, trainer: str):
    """(title, arguments of run.py) of every stage, in order."""
    answers = str(out / "answers.jsonl")
    features = str(out / f"features-{conversations}")  # other features where there are more answers
    yield "the backbone answers prompts itself", distilling("pocket", answers, conversations)
    collecting = ["collect", "--data", answers, "--max_length", "512", "--out", features]
    yield "it reads the answers once, so that heads train without it", collecting
    for name in DRAFTERS:
        common = training(name, trainer, features, out / name, collected=True)
        yield f"train {name} heads on the answers", ["fit", *common, "--checkpoint.overwrite", "true"]
        yield (
            f"find the tree that is fastest with {name} heads here",
            ["tune", "--data", answers, "--prompts", "12", "--checkpoint", str(out / name)],
        )
        yield f"decode held-out prompts with {name} heads and plainly", ["test", *common]


def draw_accuracy(drafters: dict[str, dict[str, Any]], path: Path) -> None:
    """Top-1 and top-5 accuracy by head, one line a drafter, to a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for (name, figures), colour in zip(drafters.items(), ("#7f7f7f", "#1f77b4", "#2ca02c", "#d62728")):
        heads = range(len(figures["head_accuracy"]))
        for kind, style in (("top1", "-o"), ("top5", ":o")):
            values = [head[kind] for head in figures["head_accuracy"]]
            label = f"{name} top-{kind[3:]}"
            axis.plot(heads, values, style, color=colour, label=label, markersize=4, alpha=1 if kind == "top1" else 0.6)
    axis.set(xlabel="head k (guesses token t+2+k)", ylabel="accuracy on held-out answers", ylim=(0, 1))
    axis.set_xticks(list(heads))
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    axis.set_title("how often each head guesses the backbone's own token", fontsize=11)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def _parser() -> Parser:
    parser = Parser(
        prog="run.py quickstart",
        description="Distil, train and tune Medusa and MHC heads, and compare decoding: from end to end on the embedded "
        "backbone. Distilled answers and features of an earlier run are kept; heads are trained anew.",
    )
    add = parser.add_argument
    add("--out", default="runs/quickstart", metavar="DIR", help="where results go (default runs/quickstart)")
    add("--conversations", type=int, default=4000, metavar="N", help="prompts to distil (default 4000)")
    add_trainer(parser)
    return parser
