"""README.md of an export: what the heads are, how to use them, and what the run's own files say was measured."""

import re
from pathlib import Path
from typing import Any

import yaml

from mhc.backbone.loading import BUILT_IN, is_here
from mhc.checkpoints.heads_folder import DESCRIPTION, TUNED, WEIGHTS
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.export import folders
from mhc.util.files import read_json
from mhc.version import __version__

CARD, DECODED, TRAINED = "README.md", "decode_benchmark.json", "training.json"


def card(checkpoint: Path, drafter: Drafter, format: str, command: str, license: str | None = None) -> str:
    """The model card of the heads in `checkpoint`, exported in `format` and used with `command`. Every figure comes from
    the checkpoint's files; what was not measured is said not to be. license: a Hub identifier such as apache-2.0; without,
    what the backbone's own folder says.

    Raises UserError for a file that cannot be read."""
    backbone = drafter.backbone.name
    on_hub = bool(re.fullmatch(r"[\w.-]+(/[\w.-]+)?", backbone)) and not is_here(backbone)
    shown = backbone if on_hub or backbone in BUILT_IN else Path(backbone).name
    place = shown if on_hub else f"PATH/TO/{shown}"
    family = type(drafter).__name__
    about = {
        "base_model": backbone if on_hub else BUILT_IN.get(backbone),
        "license": license or _license(drafter),
        "library_name": "mhc",
        "pipeline_tag": "text-generation",
        "tags": ["speculative-decoding", "draft-heads", family.lower(), format],
    }
    front = yaml.safe_dump({name: value for name, value in about.items() if value}, sort_keys=False)
    arguments = ", ".join(f"{name} {value}" for name, value in drafter.arguments.items())
    return (
        f"---\n{front}---\n\n# {family} draft heads for {shown}\n\n"
        f"{drafter.draft_length} draft heads with which {shown} decodes several tokens a step, with the text it gives anyway: every "
        f"guess is checked by the model itself. Written by `run.py export --format {format}` of mhc {__version__}; "
        f"{arguments}.\n\n## Use\n\nWith these files in a folder `heads`:\n\n```\n"
        f"{command.replace(folders.target(drafter.backbone), place)}\n```\n\n## Measured\n\n{_measured(checkpoint)}"
    )


def _license(drafter: Drafter) -> str | None:
    """What the backbone's own card says, if it lies beside it; those with names here are under Apache's licence."""
    if drafter.backbone.name in BUILT_IN:
        return "apache-2.0"
    try:
        text = (Path(drafter.backbone.name) / CARD).read_text(encoding="utf-8")
        front = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else None
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        return None
    found = front.get("license") if isinstance(front, dict) else None
    return found if isinstance(found, str) else None


def _measured(checkpoint: Path) -> str:
    """Paragraphs and a table from decode_benchmark.json, tree.json, training.json and the metrics of drafter.json."""
    decoded, tuned, trained = (read_json(checkpoint / name) for name in (DECODED, TUNED, TRAINED))
    try:
        parts = [_decoded(decoded, checkpoint), _accuracy(read_json(checkpoint / DESCRIPTION).get("metrics") or {})]
        if tuned:
            parts.append(
                f"The tree that `run.py tune` found on its machine gave {tuned['tokens_per_step']:.2f} tokens per step and "
                f"{tuned['speedup']:.2f}x over {tuned['prompts']} other prompts ({_machine(tuned)}); tune again on yours."
            )
        if trained:
            parts.append(
                f"Trained for {trained['steps']:,} steps on {trained['tokens']:,} tokens in {trained['seconds'] / 60:.1f} "
                f"minutes ({_machine(trained)}); {trained['parameters']:,} parameters."
            )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"a measurement in '{checkpoint}' is damaged ({error!r}): delete it or measure again"
        ) from error
    return "\n\n".join(part for part in parts if part) + "\n"


def _decoded(decoded: dict[str, Any], checkpoint: Path) -> str:
    if not decoded:
        return "Decoding was not measured before this export (`run.py test` does)."
    weights = checkpoint / WEIGHTS
    if weights.exists() and weights.stat().st_mtime > (checkpoint / DECODED).stat().st_mtime:
        return "Decoding was measured with earlier heads only, and not with these (`run.py test` does)."
    quartiles = f"quartiles {decoded['speedup_q1']:.2f} - {decoded['speedup_q3']:.2f}"
    rows = [
        ("tokens per step, the bonus token counted (plain decoding: 1.00)", f"{decoded['tokens_per_step']:.2f}"),
        ("speedup over plain decoding, median of paired ratios", f"{decoded['speedup']:.2f}x ({quartiles})"),
        ("texts identical to plain decoding's", f"{decoded['identical']} of {decoded['prompts']}"),
        ("nodes verified per step", f"{decoded['tree_nodes']}"),
    ]
    table = "".join(f"| {name} | {value} |\n" for name, value in rows)
    return (
        f"Greedy decoding of {decoded['prompts']} held-out prompts, at most {decoded['max_new_tokens']} tokens each, by mhc, "
        f"not by another engine ({_machine(decoded)}):\n\n| | |\n|---|---|\n{table}".rstrip()
    )


def _accuracy(metrics: dict[str, float]) -> str:
    """Accuracy by head in validation, as the checkpoint keeps it."""
    top1 = [metrics[f"val/head{head}_top1"] for head in range(len(metrics)) if f"val/head{head}_top1" in metrics]
    if not top1:
        return ""
    shown = " ".join(f"{value:.2f}" for value in top1)
    return f"Top-1 accuracy in validation of heads 0 to {len(top1) - 1} (head k guesses token t+2+k): {shown}."


def _machine(measured: dict[str, Any]) -> str:
    machine, versions = measured["machine"], measured["versions"]
    threads = "1 thread" if machine["threads"] == 1 else f"{machine['threads']} threads"
    where = machine["gpu"] or f"{threads} of {machine['processor']}"
    return f"{where}, torch {versions['torch']}"
