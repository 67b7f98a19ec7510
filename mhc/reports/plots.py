"""Pictures of trees, of what they are worth, and of how training went. Needs matplotlib, which is only imported here."""

import io
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from math import ceil, isfinite
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GREEN, GREY, BLUE = "#2ca02c", "#9a9a9a", "#1f77b4"
SERIES = (
    "#3b82f6",
    "#0d9488",
    "#65a30d",
    "#d97706",
    "#ef4444",
    "#a855f7",
    "#ec4899",
    "#64748b",
)  # on white and on black
INK, RULE = "#010203", "#040506"  # stand in an SVG for what the page's style decides
MOST_POINTS = 400  # of a curve
FAMILY_COLOURS = ("#7f7f7f", "#1f77b4", "#2ca02c", "#d62728", "#9467bd", "#8c564b")
SPEED = "mhc: run.py speed"  # by which such a picture is known again


def draw_tree(axis: Any, parents: Sequence[int], labels: Sequence[str], strong: Sequence[bool], title: str) -> None:
    """A tree (node 0 the root, parents before children) with a label a node; `strong` ones are green."""
    children: dict[int, list[int]] = {}
    for node in range(1, len(parents)):
        children.setdefault(parents[node], []).append(node)
    across: dict[int, float] = {}
    down = {0: 0}
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
            parent = parents[node]
            axis.plot([down[parent], down[node]], [-across[parent], -across[node]], color=colour, linewidth=1, zorder=1)
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
    return [below for child in children.get(node, []) for below in _postorder(child, children)] + [node]


def draw_tuning(path: Path, example: dict[str, Any], points: Sequence[dict[str, Any]]) -> None:
    """The tuned tree on a real position (left) and replayed against measured speedups (right), to a PNG.

    points: {"kind", "nodes", "predicted", "measured", "low", "high"}.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained", width_ratios=[1.35, 1])
    draw_tree(left, **example)
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    for kind, colour in (("fixed", GREY), ("dynamic", BLUE)):
        of_kind = sorted((point for point in points if point["kind"] == kind), key=lambda point: point["nodes"])
        if not of_kind:
            continue
        nodes, measured = [point["nodes"] for point in of_kind], [point["measured"] for point in of_kind]
        right.plot(nodes, [point["predicted"] for point in of_kind], "--", color=colour, label=f"{kind}: replayed")
        spread = [
            [point["measured"] - point["low"] for point in of_kind],
            [point["high"] - point["measured"] for point in of_kind],
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
    """What `mhc.evaluation.comparison` measured: accuracy by head, tokens per step against the time of a round, speedups; a PNG."""
    families = comparison["families"]
    colours = dict(zip(families, FAMILY_COLOURS))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    for name, family in families.items():
        left.plot(
            [head["top1"] for head in family["head_accuracy"]], "o-", color=colours[name], label=name, markersize=4
        )
    left.set(xlabel="head k (guesses token t+2+k)", ylabel="top-1 on held-out answers", ylim=(0, 1))
    left.set_title("how often each head is right", fontsize=11)
    left.set_xticks(range(max(len(family["head_accuracy"]) for family in families.values())))
    left.legend(frameon=False)
    plain = min(
        family["chain_ms"]["plain_ms"] for family in families.values()
    )  # the step that reads least for its drafter
    for name, family in families.items():
        for kind, mark in (("chain", "o"), ("tuned", "D")):
            if f"{kind}_ms" in family:
                parts = family[f"{kind}_ms"]
                middle.scatter(
                    parts["round_ms"] / plain,
                    family[f"{kind}/T=0"]["tokens_per_step"],
                    color=colours[name],
                    marker=mark,
                )
    most = max(family[f"{kind}/T=0"]["tokens_per_step"] for family in families.values() for kind in ("chain", "tuned"))
    right_end, top = middle.get_xlim()[1], 1.15 * most
    for speed in (1.0, 1.5, 2.0):  # tokens per step over plain steps is speed
        end = min(right_end, top / speed)
        middle.plot([1, end], [speed, speed * end], color=GREY, linewidth=0.7, linestyle=":")
        middle.annotate(f"{speed:g}x", (end, speed * end), fontsize=8, color=GREY, ha="right", va="top")
    middle.set(xlabel="a round in plain steps", ylabel="tokens per step, T=0", xlim=(1, right_end), ylim=(1, top))
    middle.set_title("what a round brings and costs (o chain, \u25c6 tuned tree)", fontsize=11)
    bars = [f"{kind}/{label}" for label in ("T=0", "T=1") for kind in ("chain", "tuned")]
    wide = 0.8 / len(families)
    for number, (name, family) in enumerate(families.items()):
        values = [family[bar]["speedup"] for bar in bars]
        spread = [
            [family[bar]["speedup"] - family[bar]["speedup_q1"] for bar in bars],
            [family[bar]["speedup_q3"] - family[bar]["speedup"] for bar in bars],
        ]
        places = [group + (number - (len(families) - 1) / 2) * wide for group in range(len(bars))]
        right.bar(places, values, wide, yerr=spread, color=colours[name], capsize=2, error_kw={"linewidth": 0.8})
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.set_xticks(range(len(bars)), labels=[bar.replace("/", "\n") for bar in bars])
    right.set(ylabel="speedup over plain decoding", title="speed (medians, quartiles)")
    for axis in (left, middle, right):
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=140)
    plt.close(figure)


def draw_speed(path: Path, table: dict[str, Any]) -> None:
    """What `mhc.evaluation.speedup.speed_table` measured: speedup and tokens per step by category with their intervals; PNG, SVG or PDF."""
    rows = [("overall", table["overall"]), *reversed(table["categories"].items())]
    figure, axes = plt.subplots(1, 2, figsize=(9, 1.3 + 0.32 * len(rows)), layout="constrained", sharey=True)
    for axis, name, title in zip(
        axes, ("speedup", "tokens_per_step"), ("speedup over plain decoding", "tokens per step, bonus token counted")
    ):
        values = [figures[name] for _, figures in rows]
        intervals = [figures[f"{name}_interval"] or [figures[name]] * 2 for _, figures in rows]
        spread = [
            [max(0, value - low) for value, (low, _) in zip(values, intervals)],
            [max(0, high - value) for value, (_, high) in zip(values, intervals)],
        ]
        colours = [GREEN] + [BLUE] * (len(rows) - 1)
        axis.barh(range(len(rows)), values, xerr=spread, color=colours, height=0.7, capsize=2, alpha=0.85)
        axis.axvline(1, color="black", linewidth=0.8, linestyle=":")
        axis.set_xlim(0, 1.18 * max(high for _, high in intervals))
        for row, (value, (_, high)) in enumerate(zip(values, intervals)):
            axis.text(max(value, high), row, f" {value:.2f}", fontsize=8, va="center")
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3, axis="x")
    labels = [f"{name} ({figures['questions']})" for name, figures in rows]
    axes[0].set_yticks(range(len(rows)), labels=labels, parse_math=False)
    note = f"(questions); {table['confidence']:.0%} bootstrap intervals over questions"
    figure.supxlabel(note, fontsize=8)
    figure.savefig(path, dpi=140, metadata={"Title": SPEED})
    plt.close(figure)


# -- for a page: inline SVG whose ink, lines and background are the page's own -------------------------


def curves_svg(title: str, series: Mapping[str, Mapping[int, float]], logarithmic: bool = False) -> str:
    """Lines over steps, {label: {step: value}}; long ones as means of neighbours, values that are not finite as gaps."""

    def draw(axis: Any) -> None:
        for number, (label, points) in enumerate(series.items()):
            colour = SERIES[number % len(SERIES)]
            steps, values = _thinned(points)
            mark = "o" if len(steps) < 25 else ""
            axis.plot(
                steps, values, color=colour, label=label, marker=mark, markersize=3, linewidth=1.5, zorder=9 - number
            )
        axis.set_xlabel("step")
        axis.grid(alpha=1, linewidth=0.6)
        finite = [v for points in series.values() for v in points.values() if isfinite(v)]
        if logarithmic and finite and max(finite) > 20 * min(finite) > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5, integer=True))
        if any(series):
            axis.legend(
                frameon=False, ncols=3, fontsize=8, loc="lower left", bbox_to_anchor=(-0.1, 1), borderaxespad=0.2
            )

    return _svg(draw, title, (4.2, 2.8))


def histogram_svg(title: str, counts: Sequence[int]) -> str:
    """How often 0, 1, 2, ... came, as shares."""

    def draw(axis: Any) -> None:
        shares = [count / max(1, sum(counts)) for count in counts]
        bars = axis.bar(range(len(counts)), shares, color=SERIES[0], width=0.7)
        axis.bar_label(bars, [f"{share:.0%}" for share in shares], fontsize=8, padding=2)
        axis.set_xticks(range(len(counts)))
        axis.set_yticks([])
        axis.spines["left"].set_visible(False)

    return _svg(draw, title, (4.2, 2.1))


def tree_svg(parents: Sequence[int], labels: Sequence[str], strong: Sequence[bool]) -> str:
    """A tree as `draw_tree` draws it, as tall as it has leaves and as wide as it is deep."""
    leaves, deep = len(parents) - len(set(parents[1:])), [0]
    for parent in parents[1:]:
        deep.append(deep[parent] + 1)
    inches = (max(4, 1.1 * max(deep) + 1), max(1.5, 0.3 * leaves))
    return _svg(lambda axis: draw_tree(axis, parents, labels, strong, ""), "", inches)


def _thinned(points: Mapping[int, float]) -> tuple[list[float], list[float]]:
    """Steps and values, at most MOST_POINTS of them: each the mean of as many neighbours."""
    steps, values = list(points), list(points.values())
    many = ceil(len(steps) / MOST_POINTS)
    groups = [slice(start, start + many) for start in range(0, len(steps), many)]
    return [sum(steps[g]) / len(steps[g]) for g in groups], [sum(values[g]) / len(values[g]) for g in groups]


def _svg(draw: Callable[[Any], None], title: str, inches: tuple[float, float]) -> str:
    """What `draw` puts on an axis, as an <svg> element without addresses or ids of its own."""
    style: Any = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    style |= {"axes.edgecolor": RULE, "grid.color": RULE, "axes.spines.top": False, "axes.spines.right": False}
    style |= {"svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the browser has a font for it
        figure, axis = plt.subplots(figsize=inches, layout="constrained")
        draw(axis)
        if title:
            axis.figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        plt.close(figure)
    text = file.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"| xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"', "", text)
    for colour, variable in ((INK, "--ink"), (RULE, "--rule"), ("#ffffff", "--card")):
        text = text.replace(colour, f"var({variable})")
    return text
