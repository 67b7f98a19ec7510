"""A training step played through on tensors without contents: what it will hold and compute, before anything is loaded.

    B rows   T time   A anchors   K heads   D width   V vocabulary

PyTorch's fake tensors have shapes, types and storages of a size, but no bytes behind them. The real modules run on
them: what is counted is what this project's code allocates, operation by operation, not a formula beside it.
"""

import warnings
import weakref
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from mhc.backbone.model import Backbone
from mhc.drafters import Drafter
from mhc.training.losses import Teacher, chunked_loss


@dataclass(frozen=True)
class Rehearsal:
    """Of one step on one device. forward: most bytes held by the frozen forward beside the weights; heads: most bytes
    held by the heads, the loss and the backward, the features and the new gradients included. *_operations:
    floating-point operations, two a multiplication with addition. parameters and bytes: of the backbone and of the
    drafter, by part."""

    forward: int
    heads: int
    forward_operations: int
    heads_operations: int
    backbone: "Weights"
    drafter: "Weights"


@dataclass(frozen=True)
class Weights:
    """Parameters by part (embedding, layers, ...), how many of them lie in linear layers (the lm_head apart), how
    many of the largest single matrix, and of the largest layer."""

    parts: dict[str, int]
    linear: int = 0
    rows: int = 0  # outputs of all these linear layers: each has a scale of its own when quantised
    matrix: int = 0
    layer: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors made since it was entered that still live (`now`), and the most there ever were
    (`most`)."""

    def __init__(self, standing: Iterable[Tensor] = ()):
        super().__init__()
        self.now = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in standing}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        return result

    def _note(self, storage: torch.UntypedStorage) -> None:
        place, size = storage._cdata, storage.nbytes()
        if place not in self._known:
            self._known.add(place)
            weakref.finalize(storage, self._gone, place, size)
            self.now += size
            self.most = max(self.most, self.now)

    def _gone(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def rehearse(
    config: PretrainedConfig,
    build: Callable[[Backbone], Drafter],
    rows: int,
    length: int,
    anchors: int,
    objective: str = "ce",
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    heads_dtype: torch.dtype = torch.float32,
) -> Rehearsal:
    """Play through a step of DraftModule on `rows` rows of `length` tokens with so many anchors: a backbone of this
    config in `dtype`, the heads that `build` puts on it in `heads_dtype`, under autocast where that is given."""
    if dtype == torch.float32 and has_experts(config):  # PyTorch's grouped product is rehearsed in bf16 only
        half = rehearse(config, build, rows, length, anchors, objective, torch.bfloat16, torch.bfloat16)
        return replace(half, forward=2 * half.forward, heads=2 * half.heads)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that would be slower so: nothing is computed
        backbone = Backbone(AutoModelForCausalLM.from_config(config, dtype=dtype))
        torch.set_default_dtype(heads_dtype)  # modules cannot be converted once they are there
        try:
            drafter = build(backbone).train()
        finally:
            torch.set_default_dtype(torch.float32)
        return play(backbone, drafter, rows, length, anchors, objective, autocast)


def play(
    backbone: Backbone,
    drafter: Drafter,
    rows: int,
    length: int,
    anchors: int,
    objective: str,
    autocast: torch.dtype | None,
) -> Rehearsal:
    """The step of `rehearse` on modules that are there, with contents or without. (DraftModule's own asks tensors for
    their values, to find the anchors.)"""
    ids = torch.zeros(rows, length, dtype=torch.long)
    where = torch.zeros(anchors, dtype=torch.long)
    precision = torch.autocast("cpu", autocast) if autocast else nullcontext()
    held = Held([*backbone.parameters(), *backbone.buffers(), *drafter.parameters(), *drafter.buffers(), ids, where])
    with held, counting() as forward_operations, precision:
        features = backbone.features(ids, drafter.taps)
    forward, held.most = held.most, held.now
    with held, counting() as heads_operations:
        with precision:
            total = torch.zeros(())
            for head, guess in enumerate(drafter(features, ids, (where, where))):
                teacher = None
                if objective != "ce":
                    teacher = Teacher(torch.cat([features.hidden[where, where]]), backbone.unembedding)
                found = chunked_loss(
                    torch.cat([guess.hidden[where]]),
                    drafter.unembedding(head),
                    where,
                    objective,
                    None if guess.weight is None else guess.weight[where],
                    teacher,
                    drafter.vocabulary,
                    backbone.softcap,
                )
                total = total + found.loss
        total.backward()
    operations = sum(forward_operations), sum(heads_operations)
    return Rehearsal(forward, held.most, *operations, weigh(backbone.model), weigh(drafter))


def has_experts(config: PretrainedConfig) -> bool:
    """Whether layers are mixtures of experts."""
    text = config.get_text_config(decoder=True)
    return any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def weigh(module: nn.Module) -> Weights:
    """The parameters of a model or of a drafter, those that are shared counted once."""
    counts = {name: parameter.numel() for name, parameter in module.named_parameters()}
    unembedding = module.get_output_embeddings() if hasattr(module, "get_output_embeddings") else None
    linears = [part for part in module.modules() if isinstance(part, nn.Linear) and part is not unembedding]
    parts: dict[str, int] = {}
    layers: dict[str, int] = {}
    for name, count in counts.items():
        pieces = [piece for piece in name.split(".") if not piece.isdigit()]
        part = pieces[1] if pieces[0] in ("model", "transformer", "gpt_neox") else pieces[0]
        parts[part] = parts.get(part, 0) + count
        numbered = next((at for at, piece in enumerate(name.split(".")) if piece.isdigit()), None)
        if numbered is not None:
            layer = ".".join(name.split(".")[: numbered + 1])
            layers[layer] = layers.get(layer, 0) + count
    return Weights(
        parts,
        linear=sum(linear.weight.numel() for linear in linears),
        rows=sum(linear.out_features for linear in linears),
        matrix=max((linear.weight.numel() for linear in linears), default=0),
        layer=max([*layers.values(), *counts.values()], default=0),
    )


@contextmanager
def counting():
    """A list that holds, once the block is over, the floating-point operations that it computed."""
    unknown = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
        torch.ops.aten._grouped_mm: _grouped_operations,
    }
    found: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        yield found
    found.append(counter.get_total_flops())


def _attention_operations(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Two products of every query with every key and value (B,H,T,E), half of them masked."""
    rows, heads, queries, width = query
    return 2 * prod((rows, heads, queries, key[2], width))


def _grouped_operations(left, right, *args, out_shape=None, **kwargs) -> int:
    """Each of the rows (M,K) with the matrix (K,N) of one expert of E."""
    return 2 * prod(left) * right[-1]
