"""`run.py tune`: find the tree with which these heads decode fastest on this machine.

What a tree is worth hangs on the heads and on the machine: on a CPU every node costs, on a GPU dozens are
nearly free. Tuning times plain steps, rounds and drafting here, grows large trees over answers to held-out
prompts, replays thousands of decodings with smaller trees, and measures the most promising ones.
Where none is faster than plain decoding, that is what it settles on.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

from mhc.commands import Parser, add_backbone, add_sampling, engine_of, sampling_of
from mhc.errors import UserError

MEASURED_BUDGETS = (2, 4, 6, 8, 12, 16, 32, 64)


def main(argv: list[str]) -> int:
    """Tune the tree of --checkpoint; returns the exit status."""
    options = _parser().parse_args(argv)

    from datamodules import ConversationData
    from mhc.checkpoints.heads_folder import TUNED
    from mhc.reports.plots import draw_tuning
    from mhc.util.files import write_json
    from mhc.util.progress import bar, say

    sampling = sampling_of(options)
    engine = engine_of(options)
    backbone = engine.backbone
    if options.data is None and backbone.name != "pocket":
        raise UserError("--data is missing: give the conversations that the heads were trained on")
    data = ConversationData(options.data or "pocket", limit=20_000 if options.data is None else None)
    data.tokenizer = backbone.tokenizer
    prompts = [prompt.ids for prompt in data.prompts("validation", options.prompts)]
    if len(prompts) < 2:
        raise UserError(f"'{options.data}' has {len(prompts)} validation prompts: give more conversations")
    with bar() as progress:
        found = tune(engine, prompts, options.max_new_tokens, sampling, progress)
    folder = Path(options.checkpoint)
    write_json(folder / TUNED, found)
    draw_tuning(folder / "tree.png", found["example"], found["points"])
    show(found)
    say(f"-> {Path(options.checkpoint) / 'tree.json'} and tree.png; every command uses the tree from now on")
    return 0


def tune(engine, prompts: list[list[int]], max_new_tokens: int, sampling, progress) -> dict[str, Any]:
    """Record, time, search and measure; the winner and everything it was chosen from, as tree.json keeps it."""
    from mhc.engine import Engine
    from mhc.evaluation.decode_benchmark import compare, machine, versions
    from mhc.trees.shapes import FixedTree, shape_of
    from mhc.tuning.measure import example_round, measure_costs, record
    from mhc.tuning.replay import COUNTS, fixed_trees, search
    from mhc.util.progress import add_task

    traces = record(engine, prompts, max_new_tokens, sampling, add_task(progress, "what the heads guess"))
    if not traces:
        raise UserError("every answer ended at its first token: there is nothing to guess")
    fixed = fixed_trees(traces, COUNTS)
    costs = measure_costs(engine, prompts[0], fixed, sampling, progress=add_task(progress, "what a round costs"))
    candidates = search(traces, costs, fixed)
    chosen = _to_measure(candidates)
    points, update = [], add_task(progress, "measuring the most promising trees")
    for number, candidate in enumerate(chosen):
        figures = compare(
            Engine(engine.backbone, engine.drafter, candidate.shape), prompts, max_new_tokens, sampling=sampling
        )
        if figures["identical"] != figures["prompts"] and engine.backbone.full_precision:
            raise AssertionError("a tree changed the text")
        points.append(
            {
                "kind": candidate.kind,
                "nodes": candidate.shape.nodes,
                "predicted": round(candidate.speedup, 4),
                "measured": figures["speedup"],
                "low": figures["speedup_q1"],
                "high": figures["speedup_q3"],
                "predicted_tokens_per_step": round(candidate.tokens_per_step, 4),
                "tokens_per_step": figures["tokens_per_step"],
                "tree": candidate.shape.describe(),
            }
        )
        update(number + 1, len(chosen))
    # Measured on a few dozen prompts, trees within 3 % of each other are equal; then the replay decides.
    fastest = max(point["measured"] for point in points)
    best = max((p for p in points if p["measured"] > 0.97 * fastest), key=lambda point: point["predicted"])
    tree = best["tree"] if best["measured"] > 1 else FixedTree.chain(0).describe()
    return {
        "tree": tree,
        "example": example_round(Engine(engine.backbone, engine.drafter, shape_of(tree)), prompts[0], sampling),
        "speedup": max(1.0, best["measured"]),
        "tokens_per_step": best["tokens_per_step"] if best["measured"] > 1 else 1.0,
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "sampling": dataclasses.asdict(sampling),
        "plain_step_ms": round(1000 * costs.plain, 4),
        "verify_in_plain_steps": costs.verify,
        "draft_in_plain_steps": {f"width {w}, depth {d}": cost for (w, d), cost in costs.draft.items()},
        "draft_fixed_in_plain_steps": costs.fixed,
        "candidates": len(candidates),
        "points": points,
        "machine": machine(),
        "versions": versions(),
    }


def _to_measure(candidates: list) -> list:
    """The fixed tree of each measured size, the best dynamic one, some of its smaller budgets and another width."""
    dynamic = [candidate for candidate in candidates if candidate.kind == "dynamic"]
    chosen = [candidate for candidate in candidates if candidate.kind == "fixed"]
    chosen = [candidate for candidate in chosen if candidate.shape.nodes in MEASURED_BUDGETS]
    best = dynamic[0]
    others = [next((c for c in dynamic if c.shape.width != best.shape.width), None)]
    others += [next((c for c in dynamic if c.shape.nodes == budget), None) for budget in (4, 8, 16)]
    return chosen + [best] + [other for other in others if other is not None and other is not best]


def show(found: dict[str, Any]) -> None:
    """The measured trees as a table, the winner marked."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="trees for these heads on this machine", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("tree", "nodes", "tok/step", "replayed", "measured", "quartiles", ""):
        table.add_column(heading, justify="left" if heading == "tree" else "right", no_wrap=True)
    table.add_row("plain decoding", "1", "1.00", "", "1.00x", "", "<-" if found["speedup"] == 1 else "")
    for point in sorted(found["points"], key=lambda point: point["measured"]):
        tree = point["tree"]
        name = "fixed" if "choices" in tree else f"dynamic {tree['width']}x{tree['depth']}"
        table.add_row(
            name,
            str(point["nodes"]),
            f"{point['tokens_per_step']:.2f}",
            f"{point['predicted']:.2f}x",
            f"{point['measured']:.2f}x",
            f"{point['low']:.2f} - {point['high']:.2f}",
            "<-" if tree == found["tree"] else "",
        )
    Console().print(table)


def _parser() -> Parser:
    parser = Parser(
        prog="run.py tune",
        description="Find the tree with which trained heads decode fastest on this machine, 'do not speculate' "
        "included. Writes tree.json (which every command then uses) and tree.png beside the heads. Tune again after "
        "moving to another machine; the text is the same with any tree.",
    )
    add = parser.add_argument
    add("--checkpoint", required=True, metavar="DIR", help="folder with drafter.json, e.g. runs/quickstart/cascade")
    add(
        "--data",
        metavar="PATH",
        help="conversations, best those the heads were trained on (default for pocket: its own)",
    )
    add("--prompts", type=int, default=24, metavar="N", help="validation prompts to record (default 24)")
    add("--max_new_tokens", type=int, default=128, metavar="N", help="tokens of an answer (default 128)")
    add_sampling(parser)
    add_backbone(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
