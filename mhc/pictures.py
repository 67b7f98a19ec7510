"""Pictures of trees and of what they are worth. Needs matplotlib, which is only imported here."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GREEN, GREY, BLUE = "#2ca02c", "#9a9a9a", "#1f77b4"
FAMILY_COLOURS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#8c564b")


def draw_tree(axis: Any, parents: Sequence[int], labels: Sequence[str], strong: Sequence[bool], title: str) -> None:
    """A tree (node 0 the root, parents before children) with a label a node; `strong` ones are green."""
    children: dict[int, list[int]] = {}
    for node in range(1, len(parents)):
        children.setdefault(parents[node], []).append(node)
    across, down = {}, {0: 0}
    for node in range(1, len(parents)):
        down[node] = down[parents[node]] + 1
    leaves = 0
    for node in _postorder(0, children):  # leaves side by side, parents above the middle of their children
        if node in children:
            across[node] = sum(across[child] for child in children[node]) / len(children[node])
        else:
            across[node], leaves = leaves, leaves + 1
    for node in range(len(parents)):
        colour = GREEN if strong[node] else GREY
        if node:
            at = parents[node]
            axis.plot([down[at], down[node]], [-across[at], -across[node]], color=colour, linewidth=1, zorder=1)
        axis.text(
            down[node],
            -across[node],
            labels[node],
            ha="center",
            va="center",
            fontsize=7,
            zorder=2,
            bbox={"boxstyle": "round,pad=0.25", "facecolor": "white", "edgecolor": colour},
        )
    axis.set_xlim(-0.5, max(down.values()) + 0.5)
    axis.set_ylim(-leaves + 0.3, 0.7)
    axis.axis("off")
    axis.set_title(title, fontsize=10)


def _postorder(node: int, children: dict[int, list[int]]) -> list[int]:
    """All nodes below `node` and itself, children before their parent."""
    return [found for child in children.get(node, []) for found in _postorder(child, children)] + [node]


def draw_tuning(path: Path, example: dict[str, Any], points: Sequence[dict[str, Any]]) -> None:
    """The tuned tree on a real position (left) and replayed against measured speedups (right), to a PNG.

    points: {"kind", "nodes", "predicted", "measured", "low", "high"}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", width_ratios=[1.35, 1])
    draw_tree(left, **example)
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    for kind, colour in (("fixed", GREY), ("dynamic", BLUE)):
        here = sorted((point for point in points if point["kind"] == kind), key=lambda point: point["nodes"])
        if not here:
            continue
        nodes, measured = [point["nodes"] for point in here], [point["measured"] for point in here]
        right.plot(nodes, [point["predicted"] for point in here], "--", color=colour, label=f"{kind}: replayed")
        spread = [
            [point["measured"] - point["low"] for point in here],
            [point["high"] - point["measured"] for point in here],
        ]
        right.errorbar(
            nodes,
            measured,
            spread,
            fmt="o-",
            color=colour,
            markersize=4,
            capsize=2,
            label=f"{kind}: measured, quartiles",
        )
    right.text(0.99, 1, "plain decoding ", fontsize=8, ha="right", va="bottom", transform=right.get_yaxis_transform())
    right.set_xscale("log", base=2)
    ticks = [2**power for power in range(1, 8) if 2**power <= max(point["nodes"] for point in points)]
    right.set_xticks(ticks, labels=map(str, ticks))
    right.minorticks_off()
    right.set(xlabel="nodes at most", ylabel="speedup over plain decoding", title="which tree pays here")
    right.grid(alpha=0.3)
    right.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.11))
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_comparison(path: Path, comparison: dict[str, Any]) -> None:
    """What `mhc.comparison` found: accuracy by head, tokens per step against the time of a round, speedups; a PNG."""
    families = comparison["families"]
    colours = dict(zip(families, FAMILY_COLOURS))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for name, found in families.items():
        left.plot(
            [head["top1"] for head in found["head_accuracy"]], "o-", color=colours[name], label=name, markersize=4
        )
    left.set(xlabel="head k (guesses token t+2+k)", ylabel="top-1 on held-out answers", ylim=(0, 1))
    left.set_title("how often each head is right", fontsize=11)
    left.set_xticks(range(max(len(found["head_accuracy"]) for found in families.values())))
    left.legend(frameon=False)
    plain = min(
        found["chain_ms"]["plain_ms"] for found in families.values()
    )  # the step that reads least for its drafter
    for name, found in families.items():
        for kind, mark in (("chain", "o"), ("tuned", "D")):
            if f"{kind}_ms" in found:
                parts = found[f"{kind}_ms"]
                middle.scatter(
                    parts["round_ms"] / plain,
                    found[f"{kind}/T=0"]["tokens_per_step"],
                    color=colours[name],
                    marker=mark,
                )
    most = max(found[f"{kind}/T=0"]["tokens_per_step"] for found in families.values() for kind in ("chain", "tuned"))
    right_end, top = middle.get_xlim()[1], 1.15 * most
    for speed in (1.0, 1.5, 2.0):  # tokens per step over plain steps is speed
        end = min(right_end, top / speed)
        middle.plot([1, end], [speed, speed * end], color=GREY, linewidth=0.7, linestyle=":")
        middle.annotate(f"{speed:g}x", (end, speed * end), fontsize=8, color=GREY, ha="right", va="top")
    middle.set(xlabel="a round in plain steps", ylabel="tokens per step, T=0", xlim=(1, right_end), ylim=(1, top))
    middle.set_title("what a round brings and costs (o chain, \u25c6 tuned tree)", fontsize=11)
    bars = [f"{kind}/{label}" for label in ("T=0", "T=1") for kind in ("chain", "tuned")]
    wide = 0.8 / len(families)
    for number, (name, found) in enumerate(families.items()):
        values = [found[bar]["speedup"] for bar in bars]
        spread = [
            [found[bar]["speedup"] - found[bar]["speedup_q1"] for bar in bars],
            [found[bar]["speedup_q3"] - found[bar]["speedup"] for bar in bars],
        ]
        places = [at + (number - (len(families) - 1) / 2) * wide for at in range(len(bars))]
        right.bar(places, values, wide, yerr=spread, color=colours[name], capsize=2, error_kw={"linewidth": 0.8})
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_xticks(range(len(bars)), labels=[bar.replace("/", "\n") for bar in bars])
    right.set(ylabel="speedup over plain decoding", title="speed (medians, quartiles)")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=140)
    plt.close(figure)
