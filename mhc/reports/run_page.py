"""One page about a run: `report(folder)` reads the files a run leaves and gives the text of report.html.

    logs/*/metrics.csv, config.yaml    curves and settings       drafter.json             the best heads in validation
    training.json                      what training cost        decode_benchmark.json    decoding, once `test` has run
    tree.json                          the tree, once tuned

The page stands alone: pictures are inline SVG, nothing is fetched. Everything that comes from a file is escaped.
"""

import re
from html import escape
from pathlib import Path
from typing import Any

import yaml

from mhc.reports.html import STYLE, duration, figure, flat, last_name, pairs, section, table
from mhc.reports.plots import curves_svg, histogram_svg, tree_svg
from mhc.reports.run_logs import Curves, read_logs
from mhc.util.files import read_json

TRAINER = (
    *("accelerator", "devices", "num_nodes", "strategy", "precision", "max_epochs", "max_steps", "max_time"),
    *("accumulate_grad_batches", "gradient_clip_val", "val_check_interval", "check_val_every_n_epoch"),
)


def report(folder: Path) -> str:
    """The page about the run in `folder`, of what is there. Raises UserError for a file that cannot be read."""
    curves, config = read_logs(folder)
    names = ("drafter.json", "training.json", "decode_benchmark.json", "tree.json")
    heads, cost, decoded, tuned = (read_json(folder / name) for name in names)
    title = _title(config, heads)
    stale = bool(decoded) and _newer(folder / "drafter.safetensors", folder / "decode_benchmark.json")
    sections = [
        _summary(curves, heads, cost, decoded),
        _decoding(decoded, bool(heads), stale),
        _heads(heads, decoded),
        _tree(heads, decoded, tuned),
        _training(curves, cost),
        _samples(read_json(folder / "samples.json")),
        _settings(config, heads),
        _machine(cost, decoded),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>\n<h1>{escape(title)}</h1>"
        f'<p class="quiet">{escape(str(folder))}</p>\n{"".join(sections)}</main></body></html>\n'
    )


# -- files -------------------------------------------------------------------------------------------


def _newer(path: Path, other: Path) -> bool:
    return path.exists() and path.stat().st_mtime > other.stat().st_mtime


# -- sections ----------------------------------------------------------------------------------------


def _title(config: dict[str, Any], heads: dict[str, Any]) -> str:
    if heads:
        return f"{heads['drafter']} heads on {heads['backbone']}"
    model = config.get("model", {}).get("init_args", {}).get("model") or {}
    return f"Training of {model if isinstance(model, str) else model.get('model_type', 'a model')}"


def _summary(curves: Curves, heads: dict[str, Any], cost: dict[str, Any], decoded: dict[str, Any]) -> str:
    """The figures that count, large."""
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
    shown = "".join(
        f"<div><strong>{escape(number)}</strong><span>{escape(what)}</span></div>" for number, what in tiles
    )
    unfinished = (
        '<p class="note">The run has not finished: this is what it had logged.</p>'
        if (curves or heads) and not cost
        else ""
    )
    return f'<div class="tiles">{shown}</div>{unfinished}\n'


def _decoding(decoded: dict[str, Any], heads: bool, stale: bool) -> str:
    if not decoded:
        hint = "<p class='quiet'>Not measured yet: <code>run.py test</code> with the flags of <code>fit</code> adds it.</p>"
        return section("Decoding", hint) if heads else ""
    count, guesses = decoded["prompts"], decoded["accepted_histogram"]
    both = table(
        ["", "tokens / s", "tokens / step", "speed", "quartiles", "min - max", "same text"],
        [
            ["plain", f"{decoded['plain_tokens_per_second']:.0f}", "1.00", "1.00×", "", "", ""],
            [
                decoded["drafter"],
                f"{decoded['tokens_per_second']:.0f}",
                f"{decoded['tokens_per_step']:.2f}",
                f"{decoded['speedup']:.2f}×",
                f"{decoded['speedup_q1']:.2f} - {decoded['speedup_q3']:.2f}",
                f"{decoded['speedup_min']:.2f} - {decoded['speedup_max']:.2f}",
                f"{decoded['identical']} / {count}",
            ],
        ],
    )
    told = (
        f"<p>{count} held-out prompts, up to {decoded['max_new_tokens']} tokens each, decoded plainly and with a tree of at "
        f"most {decoded['tree_nodes']} nodes in turn, greedy, batch 1. Speeds are medians over prompts.</p>"
    )
    note = '<p class="note">Newer heads lie in the folder: run <code>test</code> again.</p>' if stale else ""
    return section(
        "Decoding",
        note + both + told + figure(histogram_svg("guesses accepted in a step", guesses), "share of all steps"),
    )


def _heads(heads: dict[str, Any], decoded: dict[str, Any]) -> str:
    """One row a head: the best heads in validation, and in `test`."""
    found = heads.get("metrics", {})
    numbers = sorted({int(match[1]) for name in found if (match := re.fullmatch(r"val/head(\d+)_\w+", name))})
    if not numbers:
        return ""
    kinds = [kind for kind in ("loss", "top1", "top5", "acceptance") if f"val/head{numbers[0]}_{kind}" in found]
    titles = {"loss": "loss", "top1": "top-1", "top5": "top-5", "acceptance": "acceptance"}
    tested = decoded.get("head_accuracy", [])
    rows = []
    for number in numbers:
        cells = [f"{found.get(f'val/head{number}_{kind}', float('nan')):.3f}" for kind in kinds]
        cells += [f"{tested[number][kind]:.3f}" for kind in ("top1", "top5")] if number < len(tested) else []
        rows.append([f"head {number}", *cells])
    columns = ["", *(f"{titles[kind]}" for kind in kinds), *(["top-1, test", "top-5, test"] if tested else [])]
    told = "<p class='quiet'>Head k guesses token t+2+k from position t. Validation figures unless it says test.</p>"
    return section("The best heads", table(columns, rows) + told)


def _tree(heads: dict[str, Any], decoded: dict[str, Any], tuned: dict[str, Any]) -> str:
    if not heads:
        return ""
    tree = tuned.get("tree") or heads["tree"]
    shape = (
        f"A fixed tree of {len(tree['choices']) + 1} nodes, the root among them"
        if "choices" in tree
        else "Grown by the heads' probabilities: "
        + ", ".join(f"{name} {tree[name]}" for name in ("width", "depth", "budget", "confidence") if name in tree)
    )
    found = "found by <code>run.py tune</code>" if tuned else "not tuned yet: <code>run.py tune</code>"
    told = f"<p>{escape(shape)}; {found}.</p>"
    example = decoded.get("example") or tuned.get("example")
    if example:
        picture = figure(tree_svg(example["parents"], example["labels"], example["strong"]), example["title"], "wide")
    elif "choices" in tree:
        paths = sorted([[], *map(list, tree["choices"])], key=len)  # parents first
        parents = [paths.index(path[:-1]) if path else -1 for path in paths]
        labels = [f"#{path[-1] + 1}" if path else "root" for path in paths]
        picture = figure(tree_svg(parents, labels, [False] * len(paths)), "each node by its rank among guesses", "wide")
    else:
        picture = "<p class='quiet'>A round of it is drawn once <code>run.py test</code> has run.</p>"
    return section("The tree", told + picture)


def _training(curves: Curves, cost: dict[str, Any]) -> str:
    """The curves there are, each with a sentence."""

    def by_head(kind: str) -> dict[str, str]:
        found = (re.fullmatch(rf"val/head(\d+)_{kind}", name) for name in curves)
        numbers = sorted(int(match[1]) for match in found if match)
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
    for name in curves:  # what an objective of a language model tells besides
        what = name.removeprefix("val/")
        if name.startswith("val/") and name not in known and not what.startswith("head"):
            charts.append((what.replace("_", " "), {"training": f"train/{what}", "validation": name}, ""))
    shown = ""
    for title, names, caption in charts:
        series = {label: curves[name] for label, name in names.items() if name in curves}
        if series:
            shown += figure(curves_svg(title, series, logarithmic="norm" in title), caption)
    told = ""
    if cost:
        goal = f" of {cost['max_steps']:,}" if cost["max_steps"] > 0 else ""
        seen = f", {cost['tokens']:,} tokens seen" if "tokens" in cost else ""
        told = (
            f"<p>{cost['steps']:,}{goal} steps in {duration(cost['seconds'])} (validation and loading apart){seen}; "
            f"{cost['parameters']:,} trained parameters.</p>"
        )
    return section("Training", f'{told}<div class="grid">{shown}</div>') if shown or told else ""


def _samples(told: dict[str, Any]) -> str:
    """What a language model answered at the last validation."""
    if not told:
        return ""
    step = max(told, key=int)
    return section(f"What it says, step {int(step):,}", table(["prompt", "answer"], told[step], "text"))


def _settings(config: dict[str, Any], heads: dict[str, Any]) -> str:
    if not config:
        return ""
    model, data, trainer = config.get("model", {}), config.get("data", {}), config.get("trainer", {})
    arguments = dict(model.get("init_args", {}))
    drafter = arguments.pop("drafter", None)
    groups = {
        "Model": {"class": last_name(model.get("class_path", "")), **flat(arguments)},
        "Heads": flat(drafter or {}) | ({"backbone's fingerprint": heads["fingerprint"]} if heads else {}),
        "Data": {"class": last_name(data.get("class_path", "")), **flat(data.get("init_args", {}))},
        "Trainer": flat({name: trainer.get(name) for name in TRAINER} | {"seed": config.get("seed_everything")}),
    }
    cards = "".join(f"<div><h3>{name}</h3>{pairs(found)}</div>" for name, found in groups.items() if found)
    whole = escape(yaml.safe_dump(config, sort_keys=False))
    more = f"<details><summary>The whole configuration</summary><pre>{whole}</pre></details>"
    return section("What was run", f'<div class="grid small">{cards}</div>{more}')


def _machine(cost: dict[str, Any], decoded: dict[str, Any]) -> str:
    cards = "".join(
        f"<div><h3>{name}</h3>{pairs(flat(found['machine'] | found['versions']))}</div>"
        for name, found in (("Trained on", cost), ("Decoded on", decoded))
        if "machine" in found
    )
    return section("Machine and versions", f'<div class="grid small">{cards}</div>') if cards else ""
