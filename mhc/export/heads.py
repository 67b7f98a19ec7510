"""Heads as they are, for the Hub: the checkpoint's own files and no more of the run."""

import json
import shlex
from pathlib import Path

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import DESCRIPTION, TUNED, WEIGHTS, load_drafter
from mhc.drafters import Drafter
from mhc.export.folders import apart, said
from mhc.util.files import write_json

COPIED = (DESCRIPTION, WEIGHTS, TUNED)


def hf(drafter: Drafter, folder: Path) -> str:
    """What `export` has copied from the checkpoint, under the name that the backbone was given here (a Hub name, say, in place
    of a folder of this machine); returns the command that uses it."""
    name = drafter.backbone.name
    description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    if description["backbone"] != name:
        write_json(folder / DESCRIPTION, description | {"backbone": name})
    return shlex.join(
        ["python", "run.py", "generate", "--checkpoint", str(folder), "--backbone", name, "--prompt", "Hello!"]
    )


def read_hf(folder: Path, backbone: Backbone) -> Drafter:
    """The heads as every command loads them."""
    return load_drafter(folder, backbone)[0].to(backbone.dtype)


def heads_difference(drafter: Drafter, other: Drafter, length: int = 32, seed: int = 0) -> float:
    """How far `apart` two drafters on one backbone are, over random tokens."""
    return apart(said(drafter, length, seed)[2], said(other, length, seed)[2])
