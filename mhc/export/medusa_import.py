"""Published Medusa heads turned into ours.

FasterDecoding's names are `{head}.{block}.linear.*` and `{head}.{blocks}.weight`, in later releases behind `medusa_head.`; vLLM's are
`blocks.{head}.layers.{block}.*` and `lm_heads.{head}.weight`. The tensors say how many heads there are: config.json of the
published Vicuna heads counts two of its five.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from mhc.backbone.model import Backbone
from mhc.drafters import Medusa
from mhc.errors import UserError
from mhc.export.folders import first_of, read_config, read_weights, require_shapes

PREFIX = re.compile(r"^(medusa_heads?\.)+")
BLOCK = re.compile(r"(?:blocks\.)?(\d+)\.(?:layers\.)?(\d+)\.(?:linear\.)?(weight|bias)")
LM_HEAD = re.compile(r"lm_heads\.(\d+)\.weight")
MEDUSA = ("medusa_lm_head.safetensors", "medusa_lm_head.pt", "model.safetensors")  # the first that is there


def import_medusa(folder: Path, backbone: Backbone) -> Medusa:
    """Medusa heads from FasterDecoding's or vLLM's names; with lm_heads of their own where these are not the backbone's.

    Raises UserError for missing, unknown or wrongly shaped tensors."""
    config, where = read_config(folder), f"'{folder}'"
    path = first_of(folder, MEDUSA)
    tensors = _our_names(read_weights(path), f"'{path}'")
    heads, blocks = (_count(tensors, rf"stacks\.{place}\.") for place in (r"(\d+)", r"\d+\.(\d+)"))
    if not heads or not blocks:
        raise UserError(f"'{path}' holds no Medusa heads: it has {', '.join(sorted(tensors)[:5]) or 'no tensors'}")
    said = config.get("medusa_num_layers", config.get("num_hidden_layers", blocks))
    if said != blocks:
        raise UserError(f"{where}: config.json says {said} blocks a head, the tensors have {blocks}")
    owned = [name for name in tensors if name.startswith("unembeddings.")]
    if config.get("original_lm_head") and owned == ["unembeddings.own.0"]:  # vLLM's heads share the first
        tensors |= {f"unembeddings.own.{head}": tensors[owned[0]] for head in range(heads)}
    width, vocabulary = backbone.width, backbone.vocabulary_size
    shapes: dict[str, tuple[int, ...]] = {}
    for head in range(heads):
        for block in range(blocks):
            shapes[f"stacks.{head}.{block}.linear.weight"] = (width, width)
            shapes[f"stacks.{head}.{block}.linear.bias"] = (width,)
        if owned:
            shapes[f"unembeddings.own.{head}"] = (vocabulary, width)
    require_shapes(tensors, shapes, f"{where} for backbone '{backbone.name}'")
    broken = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise UserError(f"{where} has numbers that are not finite in {broken[0]}: get the file again")
    lm_head = backbone.unembedding.detach()
    own = any(
        not torch.equal(tensors[f"unembeddings.own.{head}"].to(lm_head), lm_head) for head in range(heads) if owned
    )
    drafter = Medusa(backbone, heads=heads, blocks=blocks, own_lm_head=own)
    kept = {name: tensor.float() for name, tensor in tensors.items() if own or not name.startswith("unembeddings.")}
    drafter.load_state_dict(kept)
    return drafter.to(backbone.device).eval()


def _our_names(tensors: dict[str, Tensor], where: str) -> dict[str, Tensor]:
    """Published names as ours; UserError for one that is none."""
    renamed: dict[str, Tensor] = {}
    lm_heads = {}
    for name, tensor in tensors.items():
        plain = PREFIX.sub("", name)
        block, lm_head = BLOCK.fullmatch(plain), LM_HEAD.fullmatch(plain)
        if lm_head is not None:
            lm_heads[int(lm_head[1])] = tensor
        elif block is not None and (plain.startswith("blocks.") or ".linear." in plain):
            renamed[f"stacks.{block[1]}.{block[2]}.linear.{block[3]}"] = tensor
        elif block is not None and block[3] == "weight" and int(block[1]) not in lm_heads:
            lm_heads[int(block[1])] = tensor
        else:
            raise UserError(f"{where} has {name}, which is not a tensor of Medusa heads")
    return renamed | {f"unembeddings.own.{head}": lm_heads[head] for head in sorted(lm_heads)}


def _count(tensors: dict[str, Tensor], pattern: str) -> int:
    """One more than the largest number in this place of the names."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(pattern, name))]
    return max(numbers, default=-1) + 1
