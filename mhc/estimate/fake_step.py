"""Run a training step on fake tensors, to estimate its memory and operations before anything is loaded.

PyTorch's fake tensors have shapes, types and storages of a size, but no bytes behind them. The real modules run on
them: what is counted is what this project's code allocates, operation by operation, not a formula beside it.
"""

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig, PreTrainedModel

aten = torch.ops.aten


@dataclass(frozen=True)
class Weights:
    """Parameters by part (embedding, layers, ...). linear: how many lie in linear layers (the lm_head apart);
    linear_outputs: outputs of these, each of which has a scale of its own when quantised; largest_linear, largest_layer
    and largest: how many the largest of these matrices, of the layers and of all parameters holds."""

    parts: dict[str, int]
    linear: int = 0
    linear_outputs: int = 0
    largest_linear: int = 0
    largest_layer: int = 0
    largest: int = 0

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class StepEstimate:
    """One training step on one device. forward_bytes: the most that the frozen forward holds beside the weights;
    step_bytes: the most that loss and backward hold, the features and the new gradients included. *_operations:
    floating-point operations, two a multiplication with addition."""

    forward_bytes: int
    step_bytes: int
    forward_operations: int
    step_operations: int
    frozen: Weights
    trained: Weights


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of all tensors made since it was entered that still live (`now`), and the most there ever were
    (`peak`).

    existing: tensors that do not count. selected: fake tensors have no values, so that a mask cannot say what it selects:
    where this is given, a mask selects so many elements, or all where it has fewer, and a value that is read is 1.
    """

    def __init__(self, existing: Iterable[Tensor] = (), selected: int | None = None):
        super().__init__()
        self.now = self.peak = 0
        self.selected = selected
        self._known = {tensor.untyped_storage()._cdata for tensor in existing}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self._without_values(func, args) if self.selected is not None else None
        if result is None:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._record(leaf.untyped_storage())
        return result

    def _without_values(self, func: Any, args: Any) -> Any:
        """The result of an operation that depends on values, None for all others."""
        match func.overloadpacket:
            case aten._local_scalar_dense:
                return 1
            case aten.nonzero:
                return torch.stack(self._selection(args[0]), dim=1)
            case aten.index | aten.index_put | aten.index_put_ if any(_is_mask(index) for index in args[1]):
                indices: list[Tensor | None] = []
                for index in args[1]:
                    indices += self._selection(index) if _is_mask(index) else [index]
                return func(args[0], indices, *args[2:])
        return None

    def _selection(self, mask: Tensor) -> list[Tensor]:
        count = min(mask.numel(), self.selected or 0)
        return [torch.zeros(count, dtype=torch.long, device=mask.device) for _ in range(mask.ndim)]

    def _record(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            weakref.finalize(storage, self._freed, address, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _freed(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.now -= size


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype == torch.bool


def without_contents(module: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Replace the parameters and buffers of a module, which may lie on the meta device, by empty ones on the CPU: fake
    ones under a FakeTensorMode. dtype: convert to it what is floating-point. (`Module.to` cannot convert fake tensors.)"""
    made: dict[Tensor, Tensor] = {}  # what is shared stays shared
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                if parameter not in made:
                    made[parameter] = nn.Parameter(_empty(parameter, dtype), parameter.requires_grad)
                part._parameters[name] = made[parameter]  # type: ignore[assignment]
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = made.setdefault(buffer, _empty(buffer, dtype))


def _empty(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype if dtype and tensor.is_floating_point() else tensor.dtype)


def casting(autocast: torch.dtype | None) -> AbstractContextManager[object]:
    """Autocast as a trainer's precision makes it, where it does."""
    return torch.autocast("cpu", autocast) if autocast else nullcontext()


def has_experts(config: PretrainedConfig) -> bool:
    """Whether layers are mixtures of experts."""
    text = config.get_text_config(decoder=True)
    return any(getattr(text, name, None) for name in ("num_experts", "num_local_experts", "n_routed_experts"))


def weigh(module: nn.Module, wanted: Callable[[nn.Parameter], bool] = lambda parameter: True) -> Weights:
    """The wanted parameters of a model or of a drafter, those that are shared counted once."""
    counts = {name: parameter.numel() for name, parameter in module.named_parameters() if wanted(parameter)}
    unembedding = module.get_output_embeddings() if isinstance(module, PreTrainedModel) else None
    linears = [part for part in module.modules() if isinstance(part, nn.Linear) and part is not unembedding]
    parts: dict[str, int] = {}
    layers: dict[str, int] = {}
    for name, count in counts.items():
        pieces = name.split(".")
        words = [piece for piece in pieces if not piece.isdigit()]
        part = words[1] if words[0] in ("model", "transformer", "gpt_neox") else words[0]
        parts[part] = parts.get(part, 0) + count
        numbered = next((place for place, piece in enumerate(pieces) if piece.isdigit()), None)
        if numbered is not None:
            layer = ".".join(pieces[: numbered + 1])
            layers[layer] = layers.get(layer, 0) + count
    return Weights(
        parts,
        linear=sum(linear.weight.numel() for linear in linears),
        linear_outputs=sum(linear.out_features for linear in linears),
        largest_linear=max((linear.weight.numel() for linear in linears), default=0),
        largest_layer=max([*layers.values(), *counts.values()], default=0),
        largest=max(counts.values(), default=0),
    )


@contextmanager
def counted_operations() -> Iterator[list[int]]:
    """A list that holds, once the block is over, the floating-point operations that it computed."""
    unknown = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_operations,
        torch.ops.aten._grouped_mm: _grouped_operations,
    }
    operations: list[int] = []
    with FlopCounterMode(display=False, custom_mapping=unknown) as counter:
        yield operations
    operations.append(counter.get_total_flops())


def _attention_operations(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """Two products of every query with every key and value (B,H,T,E), half of them masked."""
    rows, heads, queries, width = query
    return 2 * prod((rows, heads, queries, key[2], width))


def _grouped_operations(left, right, *args, out_shape=None, **kwargs) -> int:
    """Each of the rows (M,K) with the matrix (K,N) of one expert of E."""
    return 2 * prod(left) * right[-1]
