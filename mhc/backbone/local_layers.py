"""GPT-Neo's local layers: its window counts cache slots, in which a tree's nodes lie side by side; here it counts positions.

The model takes one mask for all layers, and each layer masks by slot once more. So that second mask is opened, and a hook
gives the local layers theirs.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


def local_window(config: Any) -> int | None:
    """The window of a model's local layers, if it is of this kind and has some."""
    return config.window_size if "local" in getattr(config, "attention_layers", ()) else None


class LocalLayers:
    """The local layers of a model, once they count positions. mask (B,1,T,S): what they see in the forward under way; None for
    whole rows, in which slots are positions."""

    def __init__(self, model: PreTrainedModel, window: int):
        self.mask: Tensor | None = None
        self.window = window
        module: Any
        for module in model.modules():
            if not hasattr(module, "attention_type") or not hasattr(module, "attention"):
                continue
            inner = module.attention
            size = 2 * inner.bias.shape[-1]  # slots may exceed the positions by those of a tree
            opened = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=inner.bias.device).expand(1, 1, size, size)
            inner.register_buffer("bias", opened, persistent=False)
            if module.attention_type == "local":
                inner.register_forward_pre_hook(self._narrow, with_kwargs=True)

    @contextmanager
    def given(self, masks: Any) -> Iterator[Tensor | None]:
        """A forward under masks by layer type, or None: yields the one that the model is to be given."""
        self.mask = None if masks is None else masks["sliding_attention"]
        try:
            yield None if masks is None else masks["full_attention"]
        finally:
            self.mask = None

    def _narrow(self, module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        mask = kwargs["attention_mask"] if self.mask is None else self.mask
        if self.mask is None and mask is not None:
            count, extent = mask.shape[-2:]
            place = torch.arange(extent, device=mask.device)
            far = place[extent - count :, None] - place >= self.window
            mask = mask.masked_fill(far, torch.finfo(mask.dtype).min)
        return args, kwargs | {"attention_mask": mask}
