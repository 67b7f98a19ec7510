"""Heads as they are, for the Hub: the checkpoint's own files and no more of the run."""

import json
import shlex
from pathlib import Path

import torch

from mhc.backbone import Backbone
from mhc.checkpoint import DESCRIPTION, TUNED, WEIGHTS, load_drafter
from mhc.drafters import Drafter
from mhc.files import write_json

COPIED = (DESCRIPTION, WEIGHTS, TUNED)


def hf(drafter: Drafter, folder: Path) -> str:
    """What `export` has copied from the checkpoint, under the name that the backbone was given here (a Hub name, say, in place
    of a folder of this machine); returns the command that uses it."""
    name = drafter.backbone.name
    description = json.loads((folder / DESCRIPTION).read_text())
    if description["backbone"] != name:
        write_json(folder / DESCRIPTION, description | {"backbone": name})
    return shlex.join(
        ["python", "run.py", "generate", "--checkpoint", str(folder), "--backbone", name, "--prompt", "Hello!"]
    )


def read_hf(folder: Path, backbone: Backbone) -> Drafter:
    """The heads as every command loads them."""
    return load_drafter(folder, backbone)[0].to(backbone.dtype)


@torch.no_grad()
def heads_difference(drafter: Drafter, other: Drafter, length: int = 32, seed: int = 0) -> float:
    """The largest difference between two drafters' logits over random tokens, as a share of the largest logit; infinite
    where one can propose a token and the other cannot."""
    backbone = drafter.backbone
    dice = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, backbone.vocabulary_size, (1, length + drafter.heads + 1), generator=dice)
    ids = ids.to(backbone.device)
    positions = torch.arange(length, device=ids.device)
    features = backbone.features(ids, drafter.taps)
    anchors = torch.zeros_like(positions), positions
    apart = largest = 0.0
    for head, (ours, theirs) in enumerate(zip(drafter(features, ids, anchors), other(features, ids, anchors))):
        ours, theirs = drafter.unembed(head, ours.hidden).float(), other.unembed(head, theirs.hidden).float()
        apart = max(apart, float(torch.where(ours == theirs, 0.0, (ours - theirs).abs()).max()))
        largest = max(largest, float(ours[ours.isfinite()].abs().max()))
    return apart / largest
