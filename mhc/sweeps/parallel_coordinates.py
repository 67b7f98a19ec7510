"""A sweep in parallel coordinates: a vertical axis for each parameter, the metric last, a line for each trial.

Heights run from 0 to 1 on every axis. Lines have the colour of their metric; failed trials are dashed and end below the
metric's axis, so that a region that always fails can be seen.
"""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Curve
from matplotlib.patheffects import Stroke
from matplotlib.ticker import LogLocator, MaxNLocator

from mhc.reports.plots import GREY
from mhc.sweeps.schema import Parameter, Sweep, short_names, shown

RED, COLOURS = "#c4383a", matplotlib.colormaps["viridis"]
FAILED_AT = -0.13  # below the metric's axis
SPACING = 0.022  # between lines that meet at the same value
MAX_NAMED = 15  # trials; of more, the five best are named


class Scale:
    """Heights of an axis's values, and its ticks."""

    def __init__(self, parameter: Parameter):
        self.values, self.logarithmic = parameter.values, parameter.logarithmic
        self.low, self.high = parameter.low, parameter.high
        if self.values and all(type(value) in (int, float) for value in self.values):
            self.values = sorted(self.values)

    def height(self, value: Any) -> float:
        """The height of a value, 0 to 1; the values of a list are evenly spaced."""
        if self.values:
            return (self.values.index(value) + 0.5) / len(self.values)
        low, high, value = (np.log(number) if self.logarithmic else number for number in (self.low, self.high, value))
        return float((value - low) / (high - low))

    def ticks(self) -> list[tuple[float, str]]:
        """(height, label) of some values."""
        if self.values:
            return [(self.height(value), shown(value)) for value in self.values]
        if self.logarithmic:
            steps = (1.0, 2.0, 5.0) if self.high / self.low < 1e3 else (1.0,)
            places = LogLocator(subs=steps, numticks=20).tick_values(self.low, self.high)
        else:
            places = MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        inside = [value for value in places if self.low * (1 - 1e-9) <= value <= self.high * (1 + 1e-9)]
        return [(self.height(value), shown(value)) for value in inside]


def parallel_figure(sweep: Sweep, records: Sequence[dict[str, Any]], best: int | None) -> Figure:
    """The figure. records: trials as results.json has them; best: the number of the best one."""
    scales = {parameter.name: Scale(parameter) for parameter in sweep.varied}
    finished = sorted((r for r in records if r["value"] is not None), key=lambda r: r["value"])
    failed = [record for record in records if record["value"] is None]
    values = [record["value"] for record in finished]
    low, high = _limits(values)
    measured = Scale(Parameter(sweep.metric, "uniform", low=low, high=high))
    colour = Normalize(low, high)

    figure = Figure(figsize=(max(6.5, 2.2 * len(scales) + 2.6), 5.2), layout="constrained")
    axis = figure.add_subplot()
    last = len(scales)
    heights = _heights(scales, [*finished, *failed])
    for record in failed:
        _line(axis, [*heights[record["trial"]], FAILED_AT], RED, f"trial {record['trial']}", linestyle=(0, (4, 3)))
        axis.plot(last, FAILED_AT, "x", color=RED, markersize=6, clip_on=False)
    for record in finished if sweep.maximise else finished[::-1]:  # the best on top
        is_best = record["trial"] == best
        line = _line(
            axis,
            [*heights[record["trial"]], measured.height(record["value"])],
            COLOURS(colour(record["value"])),
            f"trial {record['trial']}",
            linewidth=3.2 if is_best else 1.6,
        )
        if is_best:
            line.set_path_effects([Stroke(linewidth=5.2, foreground="black"), Stroke(linewidth=3.2)])
    axis.imshow(
        np.linspace(0, 1, 256)[:, None], cmap=COLOURS, extent=(last - 0.025, last + 0.025, 0, 1), aspect="auto",
        origin="lower", zorder=3,
    )  # fmt: skip
    for place, scale in enumerate([*scales.values(), *([measured] if values else [])]):
        axis.plot([place, place], [0, 1], color="black", linewidth=1, zorder=2)
        for height, label in scale.ticks():
            axis.plot([place - 0.025, place], [height, height], color="black", linewidth=1, zorder=4)
            axis.text(
                place - 0.04, height, label, ha="right", va="center", fontsize=8, zorder=5,
                bbox={"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
            )  # fmt: skip
    named = finished if len(finished) <= MAX_NAMED else (finished[-5:] if sweep.maximise else finished[:5])
    ends = [measured.height(record["value"]) for record in named]
    for record, height, beside in zip(named, ends, spread(ends, 0.045)):
        axis.plot([last + 0.03, last + 0.1], [height, beside], color=GREY, linewidth=0.6)
        weight = "bold" if record["trial"] == best else "normal"
        label = f"trial {record['trial']}: {record['value']:.4g}"
        axis.text(last + 0.12, beside, label, fontsize=8, va="center", fontweight=weight)
    if failed:
        label = "failed: trial " + ", ".join(str(r["trial"]) for r in failed[:8]) + (", ..." if len(failed) > 8 else "")
        axis.text(last + 0.12, FAILED_AT, label, fontsize=8, va="center", color=RED)
    short = short_names(scales)
    for place, name in enumerate([*(short[name] for name in scales), sweep.metric]):
        axis.text(
            place, 1.06, name, ha="center", va="bottom", fontsize=9, fontweight="bold" if place == last else "normal"
        )
    direction = "more" if sweep.maximise else "less"
    axis.set_title(
        f"{sweep.name}\n{len(finished)} trials by {sweep.metric} ({direction} is better)"
        + (f", {len(failed)} failed" if failed else ""),
        fontsize=11,
    )
    axis.set_xlim(-0.45, last + 0.75)
    axis.set_ylim(FAILED_AT - 0.05 if failed else -0.05, 1.14)
    axis.axis("off")
    return figure


def draw_parallel(path: Path, sweep: Sweep, records: Sequence[dict[str, Any]], best: int | None) -> None:
    """The figure as a PNG."""
    parallel_figure(sweep, records, best).savefig(path, dpi=140, format="png")


def _heights(scales: dict[str, Scale], records: Sequence[dict[str, Any]]) -> dict[int, list[float]]:
    """The heights at which the line of each trial meets the parameters' axes; lines at the same value are side by side."""
    heights: dict[int, list[float]] = {record["trial"]: [] for record in records}
    for name, scale in scales.items():
        together: dict[float, list[int]] = {}
        for record in records:  # by metric, so that neighbours are alike
            together.setdefault(scale.height(record["parameters"][name]), []).append(record["trial"])
        for height, trials in together.items():
            step = min(SPACING, 0.7 / len(together) / len(trials))
            for place, trial in enumerate(trials):
                heights[trial].append(height + (place - (len(trials) - 1) / 2) * step)
    return heights


def _line(axis: Axes, heights: Sequence[float], colour: Any, label: str, **style: Any) -> PathPatch:
    """A curve through these heights at 0, 1, 2, ..., horizontal at each axis, so that lines can be followed."""
    points, codes = [(0.0, heights[0])], [Curve.MOVETO]
    for place, (start, end) in enumerate(pairwise(heights)):
        points += [(place + 0.4, start), (place + 0.6, end), (place + 1.0, end)]
        codes += [Curve.CURVE4] * 3
    patch = PathPatch(Curve(points, codes), fill=False, edgecolor=colour, label=label, **({"linewidth": 1.4} | style))
    axis.add_patch(patch)
    return patch


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """The metric's axis: a little more than what was measured."""
    if not values:
        return 0.0, 1.0
    margin = 0.04 * (max(values) - min(values)) or 0.05 * abs(values[0]) or 1.0
    return min(values) - margin, max(values) + margin


def spread(heights: Sequence[float], least: float) -> list[float]:
    """These ascending heights, moved as little as possible so that neighbours are at least so far apart."""
    groups: list[list[float]] = []  # of heights that touch: they stand around their mean
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _bottom(groups[-1], least) < _bottom(groups[-2], least) + least * len(groups[-2]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return [_bottom(group, least) + place * least for group in groups for place in range(len(group))]


def _bottom(group: Sequence[float], least: float) -> float:
    return sum(group) / len(group) - least * (len(group) - 1) / 2
