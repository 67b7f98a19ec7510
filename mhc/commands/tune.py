"""`run.py tune`: find the tree with which these heads decode fastest on this machine.

The best tree depends on the heads and on the machine: on a CPU every node costs, on a GPU dozens are
nearly free. Tuning times plain steps, rounds and drafting, grows large trees over answers to held-out
prompts, replays decoding with thousands of smaller trees, and measures the most promising ones.
Where none is faster than plain decoding, it chooses plain decoding.
"""

import dataclasses
from pathlib import Path
from typing import Any

from mhc.commands import (
    Parser,
    add_backbone,
    add_checkpoint,
    add_max_new_tokens,
    add_sampling,
    engine_of,
    sampling_of,
)
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
        result = tune(engine, prompts, options.max_new_tokens, sampling, progress)
    folder = Path(options.checkpoint)
    write_json(folder / TUNED, result)
    draw_tuning(folder / "tree.png", result["example"], result["points"])
    show(result)
    say(f"-> {Path(options.checkpoint) / 'tree.json'} and tree.png; every command uses the tree from now on")
    return 0


def tune(engine, prompts: list[list[int]], max_new_tokens: int, sampling, progress) -> dict[str, Any]:
    """Record, time, search and measure; the fastest tree and all that were measured, as stored in tree.json."""
    from mhc.engine import Engine
    from mhc.evaluation.decode_benchmark import compare
    from mhc.trees.shapes import FixedTree, parse_tree
    from mhc.tuning.measure import example_round, measure_costs, record
    from mhc.tuning.search import COUNTS, fixed_trees, search
    from mhc.util.progress import add_task
    from mhc.util.provenance import machine, versions

    traces = record(engine, prompts, max_new_tokens, sampling, add_task(progress, "recording drafts"))
    if not traces:
        raise UserError("every answer ended at its first token, so there is nothing to draft: give other --data")
    fixed = fixed_trees(traces, COUNTS)
    costs = measure_costs(engine, prompts[0], fixed, sampling, progress=add_task(progress, "timing rounds"))
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
    # Measured on a few dozen prompts, trees within 3 % of each other count as equal; then the prediction decides.
    fastest = max(point["measured"] for point in points)
    best = max((p for p in points if p["measured"] > 0.97 * fastest), key=lambda point: point["predicted"])
    tree = best["tree"] if best["measured"] > 1 else FixedTree.chain(0).describe()
    return {
        "tree": tree,
        "example": example_round(Engine(engine.backbone, engine.drafter, parse_tree(tree)), prompts[0], sampling),
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


def show(result: dict[str, Any]) -> None:
    """Print the measured trees as a table, with the fastest marked."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    table = Table(title="trees for these heads on this machine", box=SIMPLE_HEAD, padding=(0, 1))
    for heading in ("tree", "nodes", "tok/step", "predicted", "measured", "quartiles", ""):
        table.add_column(heading, justify="left" if heading == "tree" else "right", no_wrap=True)
    table.add_row("plain decoding", "1", "1.00", "", "1.00x", "", "<-" if result["speedup"] == 1 else "")
    for point in sorted(result["points"], key=lambda point: point["measured"]):
        tree = point["tree"]
        name = "fixed" if "choices" in tree else f"dynamic {tree['width']}x{tree['depth']}"
        table.add_row(
            name,
            str(point["nodes"]),
            f"{point['tokens_per_step']:.2f}",
            f"{point['predicted']:.2f}x",
            f"{point['measured']:.2f}x",
            f"{point['low']:.2f} - {point['high']:.2f}",
            "<-" if tree == result["tree"] else "",
        )
    Console().print(table)


def _parser() -> Parser:
    parser = Parser(
        prog="run.py tune",
        description="Find the tree with which trained heads decode fastest on this machine, or plain decoding "
        "if it is faster. Writes tree.json (which every command then uses) and tree.png into the heads folder. Tune again "
        "after moving to another machine; the text is the same with any tree.",
    )
    add = parser.add_argument
    add_checkpoint(parser, required=True)
    add(
        "--data",
        metavar="PATH",
        help="conversations, preferably those the heads were trained on (default for pocket: its own)",
    )
    add("--prompts", type=int, default=24, metavar="N", help="validation prompts to record (default 24)")
    add_max_new_tokens(parser, 128)
    add_sampling(parser)
    add_backbone(parser)
    return parser
