"""One page about a run: `report(folder)` reads the files a run leaves and gives the text of report.html.

    logs/*/metrics.csv, config.yaml    curves and settings       drafter.json             the best heads in validation
    training.json                      what training cost        decode_benchmark.json    decoding, once `test` has run
    tree.json                          the tree, once tuned

The page stands alone: pictures are inline SVG, nothing is fetched. Everything that comes from a file is escaped.
"""

import re
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader
from markupsafe import Markup

from mhc.reports.plots import curves_svg, histogram_svg, tree_svg
from mhc.reports.run_logs import Curves, read_logs
from mhc.util.duration import duration
from mhc.util.files import read_json

TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
).get_template("run_page.html.j2")
TRAINER = (
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "max_steps", "max_time"),
    *("accumulate_grad_batches", "gradient_clip_val", "val_check_interval", "check_val_every_n_epoch"),
)


def report(folder: Path) -> str:
    """The page about the run in `folder`, of what is there. Raises UserError for a file that cannot be read."""
    curves, config = read_logs(folder)
    names = ("drafter.json", "training.json", "decode_benchmark.json", "tree.json", "samples.json")
    heads, cost, decoded, tuned, samples = (read_json(folder / name) for name in names)
    step = max(samples, key=int, default="0")
    columns, rows = _heads(heads, decoded)
    shape, picture, caption = _tree(heads, decoded, tuned)
    return TEMPLATE.render(
        title=_title(config, heads),
        folder=folder,
        tiles=_tiles(curves, heads, cost, decoded),
        unfinished=(curves or heads) and not cost,
        decoded=decoded,
        stale=_newer(folder / "drafter.safetensors", folder / "decode_benchmark.json"),
        decoding=_decoding(decoded) if decoded else [],
        histogram=Markup(histogram_svg("draft tokens accepted in a step", decoded["accepted_histogram"]))
        if decoded
        else "",
        heads=heads,
        head_columns=columns,
        head_rows=rows,
        tuned=tuned,
        tree_shape=shape,
        tree_picture=Markup(picture),
        tree_title=caption,
        cost=cost,
        training=_training(cost) if cost else "",
        charts=[(Markup(svg), caption) for svg, caption in _charts(curves)],
        samples=samples.get(step, []),
        step=f"{int(step):,}",
        config=yaml.safe_dump(config, sort_keys=False) if config else "",
        settings=_settings(config, heads),
        machines={
            name: flat(figures["machine"] | figures["versions"])
            for name, figures in (("Trained on", cost), ("Decoded on", decoded))
            if "machine" in figures
        },
    )


def _newer(path: Path, other: Path) -> bool:
    return path.exists() and other.exists() and path.stat().st_mtime > other.stat().st_mtime


def _title(config: dict[str, Any], heads: dict[str, Any]) -> str:
    if heads:
        return f"{heads['drafter']} heads on {heads['backbone']}"
    model = config.get("model", {}).get("init_args", {}).get("model") or {}
    return f"Training of {model if isinstance(model, str) else model.get('model_type', 'a model')}"


def _tiles(
    curves: Curves, heads: dict[str, Any], cost: dict[str, Any], decoded: dict[str, Any]
) -> list[tuple[str, str]]:
    """The figures that count, which are shown large."""
    tiles = []
    if decoded:
        tiles.append((f"{decoded['speedup']:.2f}×", "speed of plain decoding"))
        tiles.append((f"{decoded['tokens_per_step']:.2f}", "tokens per step, held-out prompts"))
    elif "val/tokens_per_step" in heads.get("metrics", {}):
        tiles.append((f"{heads['metrics']['val/tokens_per_step']:.2f}", "tokens per step in validation, at best"))
    if not heads and "train/loss" in curves:
        tiles.append((f"{list(curves['train/loss'].values())[-1]:.3f}", "training loss at the end"))
        if "val/loss" in curves:
            tiles.append((f"{min(curves['val/loss'].values()):.3f}", "validation loss, at best"))
    if cost:
        tiles.append((duration(cost["seconds"]), f"of training, {cost['steps']:,} steps"))
        if cost.get("tokens"):
            tiles.append((f"{cost['tokens'] / cost['seconds']:,.0f}", "tokens a second in training"))
        tiles.append((f"{cost['peak_memory_mib'] / 1024:.1f} GiB", "memory at most"))
    return tiles


def _decoding(decoded: dict[str, Any]) -> list[list[str]]:
    """The rows of plain decoding and of decoding with heads."""
    return [
        ["plain", f"{decoded['plain_tokens_per_second']:.0f}", "1.00", "1.00×", "", "", ""],
        [
            decoded["drafter"],
            f"{decoded['tokens_per_second']:.0f}",
            f"{decoded['tokens_per_step']:.2f}",
            f"{decoded['speedup']:.2f}×",
            f"{decoded['speedup_q1']:.2f} - {decoded['speedup_q3']:.2f}",
            f"{decoded['speedup_min']:.2f} - {decoded['speedup_max']:.2f}",
            f"{decoded['identical']} / {decoded['prompts']}",
        ],
    ]


def _heads(heads: dict[str, Any], decoded: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns, and a row for each head: the best heads in validation, and in `test`."""
    metrics = heads.get("metrics", {})
    numbers = sorted({int(match[1]) for name in metrics if (match := re.fullmatch(r"val/head(\d+)_\w+", name))})
    titles = {"loss": "loss", "top1": "top-1", "top5": "top-5", "overlap": "overlap"}
    kinds = [kind for kind in titles if numbers and f"val/head{numbers[0]}_{kind}" in metrics]
    tested = decoded.get("head_accuracy", [])
    rows = []
    for number in numbers:
        cells = [f"{metrics.get(f'val/head{number}_{kind}', float('nan')):.3f}" for kind in kinds]
        cells += [f"{tested[number][kind]:.3f}" for kind in ("top1", "top5")] if number < len(tested) else []
        rows.append([f"head {number}", *cells])
    return ["", *(titles[kind] for kind in kinds), *(["top-1, test", "top-5, test"] if tested else [])], rows


def _tree(heads: dict[str, Any], decoded: dict[str, Any], tuned: dict[str, Any]) -> tuple[str, str, str]:
    """What kind of tree it is; a picture of a real round or of its shape as SVG, and its caption."""
    tree = tuned.get("tree") or heads.get("tree") or {}
    if "choices" in tree:
        shape = f"A fixed tree of {len(tree['choices']) + 1} nodes, the root among them"
    else:
        settings = (f"{name} {tree[name]}" for name in ("width", "depth", "budget", "confidence") if name in tree)
        shape = f"Grown by the heads' probabilities: {', '.join(settings)}"
    example = decoded.get("example") or tuned.get("example")
    if example:
        return shape, tree_svg(example["parents"], example["labels"], example["strong"]), example["title"]
    if "choices" not in tree:
        return shape, "", ""
    paths = sorted([[], *map(list, tree["choices"])], key=len)  # parents first
    parents = [paths.index(path[:-1]) if path else -1 for path in paths]
    labels = [f"#{path[-1] + 1}" if path else "root" for path in paths]
    return shape, tree_svg(parents, labels, [False] * len(paths)), "each node by its rank among its head's tokens"


def _charts(curves: Curves) -> list[tuple[str, str]]:
    """The curves there are as SVG, each with a sentence or none."""

    def by_head(kind: str) -> dict[str, str]:
        matches = (re.fullmatch(rf"val/head(\d+)_{kind}", name) for name in curves)
        numbers = sorted(int(match[1]) for match in matches if match)
        return {f"head {number}": f"val/head{number}_{kind}" for number in numbers}

    step = {"decoded": "val/tokens_per_step", "predicted": "val/predicted_tokens_per_step"}
    step["from any position"] = "val/expected_tokens_per_step"
    charts = [
        ("loss", {"training": "train/loss", "validation": "val/loss"}, ""),
        ("tokens per step, validation", step, "Where drafting does as in training, decoded lies on predicted."),
        ("loss of each head, validation", by_head("loss"), ""),
        ("top-1 of each head, validation", by_head("top1"), ""),
        ("learning rate", {"": "train/learning_rate"}, ""),
        ("gradient norm", {"": "train/gradient_norm"}, "Before clipping."),
        ("tokens a second", {"": "train/tokens_per_second"}, "Padding not counted."),
        ("updates left out", {"": "train/skipped_updates"}, "Their loss or gradient was not finite."),
    ]
    known = {name for _, names, _ in charts for name in names.values()}
    for name in curves:  # what an objective of a language model logs besides
        what = name.removeprefix("val/")
        if name.startswith("val/") and name not in known and not what.startswith("head"):
            charts.append((what.replace("_", " "), {"training": f"train/{what}", "validation": name}, ""))
    shown = []
    for title, names, caption in charts:
        series = {label: curves[name] for label, name in names.items() if name in curves}
        if series:
            shown.append((curves_svg(title, series, logarithmic="norm" in title), caption))
    return shown


def _training(cost: dict[str, Any]) -> str:
    goal = f" of {cost['max_steps']:,}" if cost["max_steps"] > 0 else ""
    seen = f", {cost['tokens']:,} tokens seen" if "tokens" in cost else ""
    return (
        f"{cost['steps']:,}{goal} steps in {duration(cost['seconds'])} (validation and loading apart){seen}; "
        f"{cost['parameters']:,} trained parameters."
    )


def _settings(config: dict[str, Any], heads: dict[str, Any]) -> dict[str, dict[str, Any]]:
    model, data, trainer = config.get("model", {}), config.get("data", {}), config.get("trainer", {})
    arguments = dict(model.get("init_args", {}))
    drafter = arguments.pop("drafter", None)
    return {
        "Model": {"class": last_name(model.get("class_path", "")), **flat(arguments)},
        "Heads": flat(drafter or {}) | ({"backbone's fingerprint": heads["fingerprint"]} if heads else {}),
        "Data": {"class": last_name(data.get("class_path", "")), **flat(data.get("init_args", {}))},
        "Trainer": flat({name: trainer.get(name) for name in TRAINER} | {"seed": config.get("seed_everything")}),
    }


def flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, without those that are not set."""
    level: dict[str, Any] = {}
    for key, setting in value.items():
        if isinstance(setting, dict):
            level |= flat(setting, "" if key == "init_args" else f"{prefix}{key}.")
        elif setting is not None:
            name = f"{prefix}{key}".replace("class_path", "class")
            level[name] = last_name(setting) if key == "class_path" else setting
    return level


def last_name(path: str) -> str:
    return path.rpartition(".")[2]
