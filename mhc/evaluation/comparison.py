"""A comparison of drafter families: trained alike, decoded on the same prompts in one run, one table and one plot.

A comparison is a mapping: what was compared (backbone, data, budget, machine), and under "families" for each one

    parameters, steps, training_seconds, peak_memory_mib
    head_accuracy           top-1 and top-5 of each head over held-out answers, teacher forced
    predicted               tokens per step of a chain at T=0, as predicted from the training forward
    chain/T=0, tuned/T=0, chain/T=1, tuned/T=1
                            what `mhc.evaluation.decode_benchmark.race` reports; "tuned" is the fastest tree at that temperature
    chain_ms, tuned_ms      `mhc.evaluation.decode_benchmark.round_parts` of the trees for T=0

Tokens per step count the bonus token throughout.
"""

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from mhc.drafters import Drafter
from mhc.engine import Engine
from mhc.evaluation.decode_benchmark import race, round_parts
from mhc.evaluation.teacher_forced import PredictedAcceptance, accuracy_by_head, predict_all, predicted_tokens_per_step
from mhc.sampling import GREEDY, Sampling
from mhc.trees.shapes import FixedTree, TreeShape

SAMPLINGS = {"T=0": GREEDY, "T=1": Sampling(temperature=1.0, seed=0)}
TIMED = 3  # prompts at which the parts of a round are timed


def measure(
    drafters: dict[str, Drafter],
    tuned: dict[str, dict[str, TreeShape]],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Callable[[str, int, int], None],
) -> tuple[dict[str, dict[str, Any]], dict[str, list[PredictedAcceptance]]]:
    """Decode the prompts with every family, by chain and by tuned tree (tuned[family]["T=0" or "T=1"]), at both
    temperatures, interleaved. Returns the families' figures and their heads' predictions at T=0. Raises AssertionError
    where a text differs from plain decoding's, in full precision."""
    families: dict[str, dict[str, Any]] = {name: {} for name in drafters}
    predictions: dict[str, list[PredictedAcceptance]] = {}
    for label, sampling in SAMPLINGS.items():
        engines = {}
        for name, drafter in drafters.items():
            engines[name, "chain"] = Engine(drafter.backbone, drafter, FixedTree.chain(drafter.draft_length))
            engines[name, "tuned"] = Engine(drafter.backbone, drafter, tuned[name][label])
        figures, plain = race(engines, prompts, max_new_tokens, partial(progress, f"decoding at {label}"), sampling)
        for (name, kind), engine in engines.items():
            result = families[name][f"{kind}/{label}"] = figures[name, kind]
            if result["identical"] != result["prompts"] and engine.backbone.full_precision:
                raise AssertionError(f"{name} changed the text")
            if sampling is GREEDY and engine.tree.nodes > 1:
                parts = [round_parts(engine, prompt) for prompt in prompts[:TIMED]]
                families[name][f"{kind}_ms"] = {key: round(median(part[key] for part in parts), 4) for key in parts[0]}
        if sampling is GREEDY:
            answers = [answer.token_ids for answer in plain]
            for number, (name, drafter) in enumerate(drafters.items()):
                predictions[name] = predict_all(drafter, prompts, answers)
                families[name]["head_accuracy"] = accuracy_by_head(predictions[name])
                families[name]["predicted"] = round(
                    predicted_tokens_per_step(predictions[name], drafter.draft_length), 4
                )
                progress("predicting", number + 1, len(drafters))
    return families, predictions


def as_markdown(comparison: dict[str, Any]) -> str:
    """The table, for a README or a terminal."""
    lines = [
        "| | parameters | trained | memory | top-1 by head | chain: tokens per step (predicted), T=1 | tuned: tokens per step, T=1 "
        "| drafting, chain | speedup: chain, tuned | at T=1 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, family in comparison["families"].items():
        top1 = " ".join(f"{head['top1']:.2f}".lstrip("0") for head in family["head_accuracy"])
        chain, tuned, chain_drawn, tuned_drawn = (
            family[f"{kind}/{label}"] for label in SAMPLINGS for kind in ("chain", "tuned")
        )
        lines.append(
            f"| {name} | {family['parameters'] / 1e6:.2f} M | {family['steps']:,} steps, {family['training_seconds'] / 60:.1f} min "
            f"| {family['peak_memory_mib'] / 1024:.1f} GiB | {top1} "
            f"| {chain['tokens_per_step']:.2f} ({family['predicted']:.2f}), {chain_drawn['tokens_per_step']:.2f} "
            f"| {tuned['tokens_per_step']:.2f}, {tuned_drawn['tokens_per_step']:.2f} | {family['chain_ms']['draft_ms']:.2f} ms "
            f"| {chain['speedup']:.2f}x, **{tuned['speedup']:.2f}x** | {chain_drawn['speedup']:.2f}x, {tuned_drawn['speedup']:.2f}x |"
        )
    return "\n".join(lines) + "\n"


def explain(comparison: dict[str, Any]) -> str:
    """One line: which family leads in tokens per step, which in speed, and what each gains per millisecond of drafting."""
    families = comparison["families"]
    tokens = max(families, key=lambda name: families[name]["chain/T=0"]["tokens_per_step"])
    speed = max(families, key=lambda name: families[name]["tuned/T=0"]["speedup"])
    per_ms = {
        name: (family["chain/T=0"]["tokens_per_step"] - 1) / family["chain_ms"]["draft_ms"]
        for name, family in families.items()
    }
    cheapest = max(per_ms, key=per_ms.__getitem__)
    others = "".join(f", {name} {value:.2f}" for name, value in per_ms.items() if name != cheapest)
    return (
        f"{tokens} accepts most ({families[tokens]['chain/T=0']['tokens_per_step']:.2f} tokens per step by chain), {speed} is "
        f"fastest ({families[speed]['tuned/T=0']['speedup']:.2f}x tuned). Accepted draft tokens per millisecond of drafting: "
        f"{cheapest} {per_ms[cheapest]:.2f}{others}"
    )
