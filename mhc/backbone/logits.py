"""From the last hidden state to logits, by the model's own forward: what it does around its lm_head is run, not imitated.

Models scale their logits (Granite, Cohere), cap them (Gemma 2), or prepare what the lm_head reads. So a copy of the model's
outer module is kept whose layers and whose lm_head are stand-ins that hand on what they are given; its forward is then
exactly what the model does before and behind the lm_head, whatever the formula.
"""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from mhc.backbone.probe import refusing
from mhc.errors import UserError


class AroundLmHead:
    """What a causal language model does before and behind its lm_head.

    prepares, finishes: whether it does anything there; most models do not. width: that of the lm_head's input.
    """

    def __init__(self, model: PreTrainedModel):
        lm_head = model.get_output_embeddings()
        name = next((name for name, module in model.named_modules() if module is lm_head), None)
        kind = model.config.model_type
        if lm_head is None or name is None or getattr(model, "base_model", model) is model:
            raise UserError(f"models of type {kind} are not supported: they have no lm_head behind their layers")
        self.vocabulary_size, self.width = lm_head.out_features, lm_head.in_features  # split weights have other shapes
        self._layers, self._lm_head = _Given(), _Given()
        outer = _with(model, model.base_model_prefix, self._layers)
        self._outer = (
            _with(outer, name, self._lm_head),
        )  # a tuple, so that it does not become a submodule of its owner
        self.prepares = self.finishes = False
        device = "cpu" if not list(self._outer[0].parameters()) else model.device
        hidden = torch.linspace(-2, 2, 2 * self.width, device=device, dtype=model.dtype).reshape(1, 2, self.width)
        product = torch.linspace(-50, 50, 2 * self.vocabulary_size, device=device, dtype=model.dtype).reshape(1, 2, -1)
        if hidden.is_meta or isinstance(hidden, FakeTensor):
            return  # nothing is computed
        with torch.no_grad(), refusing(kind, lambda: "what stands around their lm_head, run alone,"):
            logits = self._run(hidden, product)
        read = self._lm_head.read
        self.prepares = read.shape != hidden.shape or not torch.equal(read.to(hidden), hidden)
        self.finishes = not torch.equal(logits.to(product), product)

    @property
    def finisher(self) -> Callable[[Tensor], Tensor] | None:
        """`behind`, or None where nothing is done there."""
        return self.behind if self.finishes else None

    def before(self, hidden: Tensor) -> Tensor:
        """What the lm_head reads where the layers end in hidden (B,T,...): (B,T,D)."""
        if self.prepares:
            self._run(hidden, hidden.new_zeros(*hidden.shape[:-1], self.vocabulary_size))
            return self._lm_head.read
        return hidden

    def behind(self, product: Tensor) -> Tensor:
        """The logits (...,V) where the lm_head's output is product (...,V), of all tokens or of some."""
        if not self.finishes:
            return product
        rows = product.reshape(1, -1, product.shape[-1])
        return self._run(rows.new_zeros(*rows.shape[:2], self.width), rows).reshape(product.shape)

    def _run(self, hidden: Tensor, product: Tensor) -> Tensor:
        self._layers.given, self._lm_head.given = _Output(last_hidden_state=hidden), product
        ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return self._outer[0](input_ids=ids).logits


class _Output(BaseModelOutput):
    """A layers' output with nothing but hidden states."""

    def __getattr__(self, name: str) -> None:
        return None


class _Given(nn.Module):
    """Stands in for a module and all of its parts: called, it returns what it was given."""

    given: Any = None
    read: Any = None

    def __getattr__(self, name: str) -> Any:
        return self

    def forward(self, read: Any = None, *args: Any, **kwargs: Any) -> Any:
        self.read = read
        return self.given


def _with(module: Any, path: str, part: nn.Module) -> Any:
    """A shallow copy of a module in which `part` stands at this path; the module itself stays as it is."""
    copied = object.__new__(type(module))  # copy.copy asks the class, and that of a split module makes a new one
    # without hooks, which would gather the whole of a split module
    hooks: dict[str, Any] = {"_forward_pre_hooks": OrderedDict(), "_forward_hooks": OrderedDict()}
    copied.__dict__.update(vars(module) | hooks)
    name, _, rest = path.partition(".")
    copied._modules = {**module._modules, name: _with(module._modules[name], rest, part) if rest else part}
    return copied
