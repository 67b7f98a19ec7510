"""Heads in the formats that other engines serve: written, read back by the engine's rules, and compared, or not there."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import for_decoding, load_drafter
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.export import folders
from mhc.export.card import CARD, card
from mhc.export.eagle3 import eagle3_sglang, eagle3_vllm, speculators
from mhc.export.eagle3_reading import eagle3_difference, read_eagle3_sglang, read_eagle3_vllm, read_speculators
from mhc.export.heads import COPIED, heads_difference, hf, read_hf
from mhc.export.medusa import read_tgi_medusa, read_vllm_medusa, tgi_medusa, vllm_medusa
from mhc.export.vllm_cascade import read_vllm_cascade, read_vllm_tied_cascade, vllm_cascade, vllm_tied_cascade
from mhc.util.files import write_atomically


class Format(NamedTuple):
    """write(drafter, folder) -> serving command; read(folder, backbone) -> what the engine makes of it;
    difference(drafter, what was read) -> largest difference of logits, as a share of the largest logit; copied: files of the
    checkpoint that are taken over, where they are there."""

    write: Callable[[Drafter, Path], str]
    read: Callable[[Path, Backbone], Any]
    difference: Callable[[Any, Any], float] = folders.difference
    copied: tuple[str, ...] = ()


FORMATS = {
    "tgi-medusa": Format(tgi_medusa, read_tgi_medusa),
    "vllm-medusa": Format(vllm_medusa, read_vllm_medusa),
    "vllm-cascade": Format(vllm_cascade, read_vllm_cascade),
    "vllm-tied-cascade": Format(vllm_tied_cascade, read_vllm_tied_cascade),
    "eagle3-vllm": Format(eagle3_vllm, read_eagle3_vllm, eagle3_difference),
    "eagle3-sglang": Format(eagle3_sglang, read_eagle3_sglang, eagle3_difference),
    "speculators": Format(speculators, read_speculators, eagle3_difference),
    "hf": Format(hf, read_hf, heads_difference, COPIED),
}


class Exported(NamedTuple):
    """An export: its folder, its files with their bytes, the largest difference of logits, the serving command."""

    folder: Path
    files: dict[str, int]
    difference: float
    command: str


def export(
    checkpoint: str | Path,
    format: str,
    out: str | Path,
    backbone: str | Backbone | None = None,
    license: str | None = None,
    **loading: Any,
) -> Exported:
    """Write the heads in `checkpoint` to the new folder `out` in this format, with a model card. It is there only once an
    independent reader has given the drafter's own logits. license: for the card, a Hub identifier; loading: how to load
    the backbone, as in `Backbone.load`.

    Raises UserError for an unknown format, an `out` that exists, and heads that the engine cannot run as they are.
    """
    if format not in FORMATS:
        raise UserError(f"unknown format '{format}': choose from {', '.join(FORMATS)}")
    out, chosen = Path(out).absolute(), FORMATS[format]
    if os.path.lexists(out):
        raise UserError(f"'{out}' exists and is left alone: choose another --out")
    drafter, _ = load_drafter(checkpoint, backbone, **loading)
    unfinished = f".exporting-{os.getpid()}"
    building = out.with_name(out.name + unfinished)
    try:
        building.mkdir(parents=True)
        for name in chosen.copied:
            if (source := Path(checkpoint) / name).exists():
                shutil.copyfile(source, building / name)
        command = chosen.write(drafter, building).replace(unfinished, "")
        apart = chosen.difference(for_decoding(drafter), chosen.read(building, drafter.backbone))
        if not apart <= (folders.TOLERANCE if drafter.backbone.full_precision else folders.ROUNDED):
            raise UserError(
                f"{format} read back differs from the heads by {apart:.1e} of the largest logit: nothing was written; "
                "please report this with the heads' drafter.json"
            )
        text = card(Path(checkpoint), drafter, format, command.replace(str(out), "heads"), license)
        write_atomically(building / CARD, lambda at: at.write_text(text, encoding="utf-8"))
        os.rename(building, out)
    except OSError as error:
        raise UserError(f"cannot write '{out}' ({error.strerror or error}): choose another --out") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Exported(out, {file.name: file.stat().st_size for file in sorted(out.iterdir())}, apart, command)
