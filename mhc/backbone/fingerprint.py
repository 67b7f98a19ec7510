"""Fingerprints of a model: of every value of every tensor, the same in every process, on every device and in every layout.

A fingerprint is EXACT-ROUNDED, 16 hex digits each. EXACT is of the values as they are held, however small a difference: a
model that is loaded in more bits than it was stored in keeps it. ROUNDED is of the values in bfloat16: it is what a model
in fewer bits than it was stored in still shares with itself.

Until version 2 it was 16 hex digits of some rows of the unembedding; heads and features that carry one are recognised by it.
"""

import hashlib
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import hardshrink, pad
from transformers import PreTrainedModel

from mhc.backbone.weight_layout import PackedLinear
from mhc.distributed.sharding import whole, whole_weight

BLOCK = 1 << 18  # bytes that are summed to one number
TOGETHER = 1 << 20  # values that are read at once
TINY = 2.0**-17  # below it float16 has fewer bits than bfloat16: smaller values count as 0 in ROUNDED
ASIDE = ("dtype", "torch_dtype", "transformers_version", "architectures")  # of a config: how it is stored or loaded


def fingerprint(model: PreTrainedModel) -> str:
    """EXACT-ROUNDED of the model's config, parameters and persistent buffers (a collective call where they are split over
    processes). Two tenths of a second for 10^8 weights; the memory of one tensor."""
    exact, rounded = (hashlib.sha256(_architecture(model)) for _ in range(2))
    for name, tensor in _tensors(model):
        label = f"{name}{list(tensor.shape)}".encode()
        for digest, sums in zip((exact, rounded), _sums_of(tensor)):
            digest.update(label + sums)
    return f"{exact.hexdigest()[:16]}-{rounded.hexdigest()[:16]}"


def same_model(stored: str, dtype: str | None, here: str, model: PreTrainedModel) -> bool:
    """Whether a stored fingerprint, of a model loaded in `dtype` (where that is known), may be of this model, whose own is
    `here`."""
    if "-" not in stored:
        return stored == _of_some_rows(model)
    (exact, rounded), own = stored.split("-"), here.split("-")
    other_dtype = dtype not in (None, str(model.dtype).removeprefix("torch."))
    return exact == own[0] or (other_dtype and rounded == own[1])


def _architecture(model: PreTrainedModel) -> bytes:
    return json.dumps(_without(model.config.to_diff_dict()), sort_keys=True, default=_plain).encode()


def _without(config: Any) -> Any:
    """A config without what differs by where it is stored or how it is loaded, its sub-configs too."""
    if isinstance(config, dict):
        config = {str(key): value for key, value in config.items()}
        return {k: _without(v) for k, v in config.items() if not k.startswith("_") and k not in ASIDE}
    return config


def _plain(value: Any) -> Any:
    """A value that JSON has no form for; sets in an order of their own."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and persistent buffer, whole, tied ones once; packed ones under the name and in the layout that they had."""
    seen: set[int] = set()
    for path, module in model.named_modules():
        held: dict[str, Tensor | None] = dict(module._parameters)
        held |= {n: b for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set}
        if isinstance(module, PackedLinear):
            held = {"weight": module.original, "bias": module.bias}
            if module.original is None:
                yield f"{path}.weight", module.weight
        for name, tensor in held.items():
            if tensor is not None and id(tensor) not in seen:
                seen.add(id(tensor))
                yield from _parts(f"{path}.{name}", whole(tensor))


def _parts(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensor, or the plain ones that a quantised one is made of."""
    if hasattr(tensor, "__tensor_flatten__"):
        for part in tensor.__tensor_flatten__()[0]:
            yield from _parts(f"{name}.{part}", getattr(tensor, part))
    else:
        yield name, tensor.detach()


def _sums_of(tensor: Tensor) -> tuple[bytes, bytes]:
    """Sums over blocks of a tensor's values, as they are and in bfloat16 (of whole numbers both as they are)."""
    exact, rounded = [], []
    for values in tensor.reshape(-1).split(TOGETHER) if tensor.numel() else ():
        if values.is_floating_point():
            values = values.float()
            rounded.append(_sums(hardshrink(values.bfloat16(), TINY)))
        exact.append(_sums(values))
    joined = [torch.cat(sums).cpu().numpy().tobytes() if sums else b"" for sums in (exact, rounded or exact)]
    return joined[0], joined[1]


def _sums(values: Tensor) -> Tensor:
    """One number for each block of bytes, which any change of one value changes: products with odd factors, modulo 2^64.
    Sums of whole numbers do not depend on their order, so it is the same on every device."""
    raw = values.contiguous().view(torch.uint8)
    factors = _factors(values.device)
    short = -len(raw) % (8 if len(raw) < BLOCK else BLOCK)
    if short or raw.storage_offset() % 8:
        raw = pad(raw, (0, short)) if short else raw.clone()
    words = raw.view(torch.int64)
    return (words.view(-1, min(len(words), len(factors))) * factors[: len(words)]).sum(1)


@lru_cache(maxsize=8)
def _factors(device: torch.device) -> Tensor:
    """Odd numbers of 64 bits without a pattern, one for each word of a block."""
    mixed = torch.arange(1, BLOCK // 8 + 1, dtype=torch.int64, device=device) * 0x1E3779B97F4A7C15
    for shift, factor in ((30, 0x3F58476D1CE4E5B9), (27, 0x14D049BB133111EB)):  # as splitmix64 mixes
        mixed = (mixed ^ (mixed >> shift)) * factor
    return mixed | 1


def _of_some_rows(model: PreTrainedModel) -> str:
    """The fingerprint of earlier versions."""
    config = model.config.to_diff_dict()
    aside = ("dtype", "torch_dtype", "transformers_version")
    architecture = {key: value for key, value in config.items() if not key.startswith("_") and key not in aside}
    digest = hashlib.sha256(json.dumps(architecture, sort_keys=True, default=str).encode())
    weight = whole_weight(model.get_output_embeddings()).detach()
    digest.update(weight[:: max(1, len(weight) // 64)].bfloat16().float().cpu().numpy().round(3).tobytes())
    return digest.hexdigest()[:16]
