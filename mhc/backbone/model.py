"""The frozen backbone: any stock Hugging Face causal language model, behind a small interface.

    B rows   T time   N tree nodes   D width   V vocabulary

Index convention, as everywhere in the project: the backbone at position t predicts token t+1.
"""

import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    DynamicCache,
    PretrainedConfig,
    PreTrainedModel,
)

from mhc.backbone.attention import tree_mask  # the module also registers the attention named "mhc"
from mhc.backbone.cache import Shape, TreeCache
from mhc.backbone.fingerprint import fingerprint, same_model
from mhc.backbone.loading import load_model, load_tokenizer
from mhc.backbone.local_layers import LocalLayers, local_window
from mhc.backbone.logits import AroundLmHead
from mhc.backbone.packing import Packing
from mhc.backbone.probe import HELD, probe, probe_copy, refusing
from mhc.backbone.weight_layout import Quantised, lay_out_for_few_rows, quantize_weights, unpack
from mhc.distributed.sharding import element_count, is_split, whole_weight
from mhc.errors import UserError


class Features(NamedTuple):
    """What a drafter reads. hidden (B,T,D): what the lm_head reads, so the last layer after the final norm.
    taps (B,T,n*D): the inputs of n chosen layers side by side, or None."""

    hidden: Tensor
    taps: Tensor | None = None

    @property
    def tapped(self) -> Tensor:
        """The taps, of a forward that computed some."""
        assert self.taps is not None
        return self.taps

    def at(self, row: Tensor, position: Tensor) -> "Features":
        """The features at these indices of the first two dimensions."""
        return Features(self.hidden[row, position], None if self.taps is None else self.taps[row, position])


class Backbone(nn.Module):
    """The target model: frozen, in eval mode, never saved with the drafter.

    `width`, `vocabulary_size`, `layers` and `parameter_count` describe it; `name` and `fingerprint` let a checkpoint
    say which backbone it belongs to. `decode` and `features` are the two ways to run it.
    """

    def __init__(self, model: PreTrainedModel, tokenizer=None, name: str = ""):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.name = tokenizer, name or model.config._name_or_path
        config = model.config.get_text_config(decoder=True)
        self.window, self.layer_types = _windows(config)
        self.around_lm_head = AroundLmHead(self.model)
        self.width, self.vocabulary_size = self.around_lm_head.width, self.around_lm_head.vocabulary_size
        self.layer_width, self.layers = config.hidden_size, config.num_hidden_layers
        # counted now: packed weights are not parameters any more
        self.parameter_count = sum(element_count(parameter) for parameter in model.parameters())
        self.fixed_rotation = fixed_rotation(config)  # the context ends where it does, see there
        self.context = min(getattr(config, "max_position_embeddings", None) or 1 << 30, self.fixed_rotation or 1 << 30)
        window = local_window(config)
        self.local_layers = None if window is None else LocalLayers(model, window)
        if model.config._attn_implementation == "sdpa" and model._supports_attention_backend:
            model.set_attn_implementation("mhc")
        self._compiled: tuple = ()  # the fused forward, once it is used; a tuple, so that it is not a second submodule
        self._fingerprint: str | None = None
        self.quantised: Quantised | None = None  # how `load` quantised the weights, and what that saved

    @classmethod
    def load(
        cls,
        name: str,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
        decoding: bool = True,
        quantize: str | None = None,
        sharding: Callable[[PretrainedConfig], dict[str, Any]] | None = None,
    ) -> "Backbone":
        """Load `name` (see `mhc.backbone.loading`) with its tokenizer. decoding: lay the weights out for it.
        quantize: 'int8' or 'int4', the linear layers' weights (a model that is quantised on disk loads as it is).
        sharding: a strategy's extra arguments for `from_pretrained` by the model's config, so that each process gets its
        part of every tensor.
        """
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UserError(f"device '{device}' is not available ({str(error).splitlines()[0]})") from error
        tokenizer = load_tokenizer(name)
        model = load_model(name, dtype, sharding)
        if sharding is None:
            model.to(device)  # type: ignore[arg-type]  # transformers wraps `to` without its types
        own = fingerprint(model) if quantize else None
        quantised = quantize_weights(model, quantize) if quantize else None
        backbone = cls.checked(model, tokenizer, name, quantised)
        backbone._fingerprint = own
        if len(tokenizer) > backbone.vocabulary_size:
            raise UserError(
                f"backbone '{name}': the tokenizer has {len(tokenizer)} tokens but the model only "
                f"{backbone.vocabulary_size} rows: load a model with its own tokenizer"
            )
        if said := backbone.limit_said:
            print(said, file=sys.stderr)
        return backbone.lay_out() if decoding else backbone

    @classmethod
    def checked(
        cls, model: PreTrainedModel, tokenizer=None, name: str = "", quantised: Quantised | None = None
    ) -> "Backbone":
        """The backbone of a model, once it is known that it decodes and trains as the model computes (mhc.backbone.probe; where
        the weights are split over processes, a small copy of it). Raises UserError where it does not."""
        kind = model.config.model_type
        with refusing(kind, lambda: "its outer module"):
            backbone = cls(model, tokenizer, name)
        backbone.quantised = quantised
        if kind not in HELD:
            probe_copy(model.config, cls)
            if not any(map(is_split, model.parameters())):
                probe(backbone)
        return backbone

    @property
    def limit_said(self) -> str | None:
        """One line where the context ends earlier than the model's, and why."""
        if self.fixed_rotation is None or self.fixed_rotation > self.context:
            return None
        return (
            f"{self.name or 'backbone'}: texts end at {self.context:,} tokens, where its rotary factors would begin to change "
            "with the longest text of a batch"
        )

    def lay_out(self) -> "Backbone":
        """Arrange the weights for decoding on this processor (no gain for training), unless they are split over several
        processes."""
        if any(map(is_split, self.model.parameters())):
            return self
        lay_out_for_few_rows(self.model, tied=self.model.get_input_embeddings().weight)
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def full_precision(self) -> bool:
        """Whether tree and one-token forwards agree closely enough for token identity (fp32)."""
        return self.dtype in (torch.float32, torch.float64)

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode even where Lightning calls this: the backbone is not trained."""
        return super().train(False)

    def compiled(self) -> Callable:
        """The model's forward fused by torch.compile, for rounds over fixed shapes; compiled at the first call."""
        if not self._compiled:
            unpack(self.model)
            self._compiled = (torch.compile(self.model.base_model),)
        return self._compiled[0]

    @torch.no_grad()
    def features(self, ids: Tensor, taps: tuple[int, ...] = (), packing: Packing | None = None) -> Features:
        """Hidden states of whole rows (B,T), causal, right padding harmless; and the inputs of layers `taps`.
        packing: where conversations lie in packed rows; each is computed as if it were alone."""
        longest = ids.shape[1] if packing is None else packing.longest
        if self.fixed_rotation is not None and longest > self.fixed_rotation:
            raise UserError(
                f"a row of {longest:,} tokens: beyond {self.fixed_rotation:,} this backbone's rotary factors change with the "
                "longest row of a batch, so that no two runs agree: cut rows to that length (--data.max_length)"
            )
        options = _tapping(taps)
        if packing is not None:
            options |= packed_options(self.model, packing)
        return self._features(self.model.base_model(input_ids=ids, use_cache=False, **options), taps)

    def _features(self, output: Any, taps: tuple[int, ...]) -> Features:
        """Entry i of a model's hidden states is the input of layer i."""
        if taps and output.hidden_states[taps[0]].ndim != 3:
            raise UserError(
                f"layers of {self.model.config.model_type} hand on several states each, which heads that read layers (EAGLE-3) "
                "cannot take: train another family, e.g. configs/drafter/cascade.yaml"
            )
        side_by_side = torch.cat([output.hidden_states[layer] for layer in taps], dim=-1) if taps else None
        return Features(self.around_lm_head.before(output.last_hidden_state), side_by_side)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of any shape of ids: (...) -> (...,D)."""
        return self.model.get_input_embeddings()(ids)

    def unembed(self, hidden: Tensor, correction: Tensor | None = None) -> Tensor:
        """Logits of last-layer hidden states: (...,D) -> (...,V); correction (...,V) is added to the lm_head's output."""
        output = self.model.get_output_embeddings()(hidden)
        return self.around_lm_head.behind(output if correction is None else output + correction)

    @property
    def unembedding(self) -> Tensor:
        """The matrix (V,D) behind `unembed`, whole (where it is split over processes, a collective call)."""
        return whole_weight(self.model.get_output_embeddings())

    @property
    def finisher(self) -> Callable[[Tensor], Tensor] | None:
        """`finish`, or None where logits are nothing but products with `unembedding`."""
        bias = self.model.get_output_embeddings().bias
        return None if bias is None and not self.around_lm_head.finishes else self.finish

    def finish(self, product: Tensor) -> Tensor:
        """Logits of a product (...,V) with `unembedding`: the lm_head's bias is added, and what the model does behind it is done."""
        bias = self.model.get_output_embeddings().bias
        return self.around_lm_head.behind(product if bias is None else product + bias)

    @cached_property
    def _cache_shapes(self) -> list[tuple[Shape, Shape]]:
        """Heads and head width of the keys and values of each layer that keeps some, as one token's forward leaves them."""
        cache = DynamicCache()
        with torch.no_grad():
            self.model.base_model(
                input_ids=torch.ones(1, 1, dtype=torch.long, device=self.device), past_key_values=cache, use_cache=True
            )
        parts = [(getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers]
        return [
            ((k.shape[1], k.shape[3]), (v.shape[1], v.shape[3])) for k, v in parts if k is not None and v is not None
        ]

    def cache(self, rows: int, capacity: int, bucket: int | None = None) -> TreeCache:
        """Empty buffers for `rows` sequences of `capacity` positions; `bucket` as in TreeCache."""
        return TreeCache(self._cache_shapes, rows, capacity, self.dtype, self.device, bucket)

    def tree_inputs(
        self, cache: TreeCache, rows: int, ancestors: Tensor, depth: Tensor
    ) -> tuple[Tensor, TreeCache, dict[str, Tensor] | None]:
        """Positions (B,N), cache and mask of a `decode` of the first B rows over nodes with these ancestors (1|B,N,N) and
        depths (1|B,N).

        Positions are clamped to the context: nodes beyond it are never emitted, but models with
        learned positions cannot look them up.
        """
        start, nodes = cache.start, ancestors.shape[1]
        positions = depth + (start if isinstance(start, int) else start[:, None])
        positions = positions.clamp(max=self.context - 1).expand(rows, -1)
        if nodes == 1 and cache.uniform and (self.window is None or cache.max_length < self.window):
            return positions, cache, None  # equal to plain causal attention
        extent = cache.extent(nodes)
        windows = {kind: self.window if kind == "sliding_attention" else None for kind in self.layer_types}
        mask = {kind: tree_mask(ancestors, depth, start, extent, window) for kind, window in windows.items()}
        return positions, cache, mask

    def decode(
        self,
        ids: Tensor,
        positions: Tensor,
        cache: TreeCache,
        mask: dict[str, Tensor] | None,
        at: Tensor | None = None,
        compiled: bool = False,
        taps: tuple[int, ...] = (),
    ) -> tuple[Tensor, Features]:
        """One cached forward of ids (B,N) at positions (B,N) -> logits (B,N,V), Features with the inputs of layers `taps`.

        mask: one (1|B,1,N,S) bool per layer type, see `tree_mask`; None means plain causal attention.
        at: unembed only node at[b] (B,) of each row -> logits (B,1,V). compiled: run the fused forward.
        """
        cache.plan_forward(ids.shape[1])
        run = self.compiled() if compiled else self.model.base_model
        given = None if mask is None else _as_expected(mask, self.model)
        with self.local_layers.given(given) if self.local_layers else nullcontext(given) as expected:
            output = run(
                input_ids=ids,
                position_ids=positions,
                past_key_values=cache,
                attention_mask=expected,
                use_cache=True,
                **_tapping(taps),
            )
        features = self._features(output, taps)
        hidden = features.hidden
        selected = hidden if at is None else hidden[torch.arange(len(at), device=at.device), at][:, None]
        return self.unembed(selected), features

    def fingerprint(self) -> str:
        """What tells this model from every other, see `mhc.backbone.fingerprint`. Computed once (where the weights are split
        over processes, the first call is collective)."""
        if self._fingerprint is None:
            self._fingerprint = fingerprint(self.model)
        return self._fingerprint

    def is_model(self, stored: str, dtype: str | None = None) -> bool:
        """Whether a stored fingerprint, of a model loaded in `dtype` where that is known, is of this model. Those of earlier
        versions are known too."""
        return same_model(stored, dtype, self.fingerprint(), self.model)


def _tapping(taps: tuple[int, ...]) -> dict[str, list[int]]:
    """The argument that makes a model return the inputs of just these layers."""
    return {"output_hidden_states": sorted(set(taps))} if taps else {}


def packed_options(model: PreTrainedModel, packing: Packing) -> dict[str, Any]:
    """A model's arguments for packed rows: restarted positions and block-diagonal attention. With the attention of this
    project no (T,T) mask is built."""
    window, layer_types = _windows(model.config.get_text_config(decoder=True))
    if (window is None or packing.longest <= window) and _hands_on_packing(model):
        return _packing_options(packing, layer_types)
    if local_window(model.config) is not None:
        layer_types = ["full_attention"]  # its local layers narrow the mask themselves
    mask = {kind: packing.mask(window if kind == "sliding_attention" else None) for kind in layer_types}
    return {"position_ids": packing.positions, "attention_mask": _as_expected(mask, model)}


def _packing_options(packing: Packing, layer_types: list[str]) -> dict[str, Any]:
    unused = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=packing.segments.device)  # or a mask is built
    mask = unused if len(layer_types) == 1 else dict.fromkeys(layer_types, unused)
    return {"position_ids": packing.positions, "packing": packing, "attention_mask": mask}


def _hands_on_packing(model: PreTrainedModel) -> bool:
    """Whether the layers hand the argument `packing` on to this project's attention; tried once, on two tokens."""
    if model.config._attn_implementation != "mhc":
        return False
    known = vars(model)
    if "hands_on_packing" not in known:
        packing = Packing(torch.zeros(1, 2, dtype=torch.long, device=model.device))
        options = _packing_options(packing, _windows(model.config.get_text_config(decoder=True))[1])
        with torch.no_grad():
            try:
                model.base_model(input_ids=torch.zeros_like(packing.segments), use_cache=False, **options)
            except (RuntimeError, TypeError, ValueError):  # one that ignores it stumbles over the mask
                packing.used = False
        known["hands_on_packing"] = packing.used
    return known["hands_on_packing"]


def _as_expected(mask: dict[str, Tensor], model: PreTrainedModel) -> Tensor | dict[str, Tensor]:
    """Masks by layer type as this model expects them: a single one where all layers are alike; floats for eager attention,
    and on a CPU, where every layer would convert them again."""
    eager = model.config._attn_implementation == "eager"
    if eager or model.device.type == "cpu":
        lowest = torch.finfo(model.dtype).min if eager else float("-inf")
        mask = {
            kind: torch.zeros_like(seen, dtype=model.dtype).masked_fill_(~seen, lowest) for kind, seen in mask.items()
        }
    return mask if len(mask) > 1 else next(iter(mask.values()))


def fixed_rotation(config: Any) -> int | None:
    """Up to how many positions the rotary factors are the same whatever else a forward reads; None where they always are.

    LongRoPE and dynamic RoPE choose their factors by the largest position of a forward. Beyond this length a row would change
    with what stands beside it, and a token with the tokens drafted behind it, so no forward here goes further.
    """
    settings = getattr(config, "rope_parameters", None) or {}
    limits = []
    for rope in settings.values() if all(isinstance(value, dict) for value in settings.values()) else [settings]:
        kind = rope.get("rope_type") or "default"
        if kind == "longrope" or "dynamic" in kind:
            original = rope.get("original_max_position_embeddings") if kind == "longrope" else None
            limits.append(original or config.max_position_embeddings)
    return min(limits, default=None)


def _windows(config) -> tuple[int | None, list[str]]:
    """The sliding window, if any layer has one, and the distinct layer types of the model."""
    if (window := local_window(config)) is not None:
        return window, ["full_attention", "sliding_attention"]
    window = getattr(config, "sliding_window", None)
    types = getattr(config, "layer_types", None)
    if not types:
        types = ["sliding_attention" if window else "full_attention"]
    unknown = sorted(set(types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise UserError(
            f"backbone layers of type {', '.join(unknown)} have no tree mask: "
            "only full and sliding-window attention can be verified as a tree"
        )
    return (window if "sliding_attention" in types else None), sorted(set(types))
