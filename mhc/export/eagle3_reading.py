"""EAGLE-3 exports read back by the engines' own rules, to be compared with our heads logit by logit.

    T known tokens   G guesses   K = G+1 steps   D width   H heads of attention, E their width, H_kv heads of keys and values
    S positions so far   V vocabulary   V_d draft vocabulary

Written from the engines' sources named in eagle3.py and sharing no code with our drafter: plain operations on what stands
in the folder. An engine passes over many a wrong file in silence (SGLang skips every tensor it does not know); here
each is an error.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig

from mhc.backbone.model import Backbone
from mhc.drafters import Eagle3
from mhc.errors import UserError
from mhc.export.folders import CONFIG, WEIGHTS, apart, read_config, read_tensors, require_shapes, said

IDS = "eagle_aux_hidden_state_layer_ids"
FLAGS = ("norm_before_residual", "norm_before_fc", "fc_norm", "use_aux_norm", "norm_output", "bias")


class EngineDraft:
    """The draft layer of an engine beside its target: layer inputs `captured` of the backbone are fused.

    config: the Llama config of the layer. tensors: by published name."""

    def __init__(self, config: LlamaConfig, tensors: dict[str, Tensor], backbone: Backbone, captured: list[int]):
        self.config, self.backbone, self.captured = config, backbone, captured
        self.tensors = {
            name: (tensor.float() if tensor.is_floating_point() else tensor).to(backbone.device)
            for name, tensor in tensors.items()
        }

    @torch.no_grad()
    def chain(self, known: list[int], guesses: list[int]) -> Tensor:
        """What the engine's draft layer says of the tokens after `known` (T,), whose last one the target has just chosen:
        logits (K,V), the first after `known` alone, each later one after one more of the guesses (G,). -inf for tokens
        it cannot propose."""
        weight, device = self.tensors, self.backbone.device
        embedding = self.backbone.model.get_input_embeddings().weight.float()
        read = torch.tensor(known[:-1], device=device)
        states = self.backbone.model.base_model(read[None], output_hidden_states=True, use_cache=False).hidden_states
        fused = torch.cat([states[layer][0].float() for layer in self.captured], dim=-1) @ weight["fc.weight"].T
        keys: list[Tensor] = []
        values: list[Tensor] = []
        logits = []
        # the first pass takes all positions at once, tokens shifted by one; one position at a time is the same
        for position, (token, hidden) in enumerate(zip(known[1:], fused)):
            output = self._layer(embedding[token], hidden, position, keys, values)
        logits.append(self._logits(output))
        for number, token in enumerate(guesses):
            output = self._layer(embedding[token], output, len(known) - 1 + number, keys, values)
            logits.append(self._logits(output))
        return torch.stack(logits)

    def _layer(self, embedded: Tensor, hidden: Tensor, position: int, keys: list, values: list) -> Tensor:
        """One position (D,), (D,) -> the residual stream after the layer (D,), which is fed back as it is."""
        config, width = self.config, head_width(self.config)
        joined = torch.cat(
            [self._norm("midlayer.input_layernorm", embedded), self._norm("midlayer.hidden_norm", hidden)]
        )
        query = self._turn(self._linear("self_attn.q_proj", joined).view(-1, width), position)  # (H,E)
        keys.append(self._turn(self._linear("self_attn.k_proj", joined).view(-1, width), position))
        values.append(self._linear("self_attn.v_proj", joined).view(-1, width))
        group = config.num_attention_heads // key_value_heads(config)
        key, value = (torch.stack(part).repeat_interleave(group, dim=1) for part in (keys, values))  # (S,H,E)
        weights = (torch.einsum("he,she->hs", query, key) / math.sqrt(width)).softmax(dim=-1)
        mixed = torch.einsum("hs,she->he", weights, value).flatten()
        hidden = hidden + self._linear("self_attn.o_proj", mixed)
        normed = self._norm("midlayer.post_attention_layernorm", hidden)
        gate, up = self._linear("mlp.gate_proj", normed), self._linear("mlp.up_proj", normed)
        return hidden + self._linear("mlp.down_proj", gate * gate.sigmoid() * up)

    def _linear(self, name: str, vector: Tensor) -> Tensor:
        return self.tensors[f"midlayer.{name}.weight"] @ vector

    def _norm(self, name: str, vector: Tensor) -> Tensor:
        scale = (vector.square().mean() + self.config.rms_norm_eps).rsqrt()
        return vector * scale * self.tensors[f"{name}.weight"]

    def _turn(self, heads: Tensor, position: int) -> Tensor:
        """(H,E), Neox style: dimension i turns with dimension i + E/2."""
        width = heads.shape[-1]
        theta = float(rope(self.config)["rope_theta"])
        exponents = torch.arange(0, width, 2, dtype=torch.float, device=heads.device) / width
        angle = (position / theta**exponents).repeat(2)
        swapped = torch.cat([-heads[:, width // 2 :], heads[:, : width // 2]], dim=-1)
        return heads * angle.cos() + swapped * angle.sin()

    def _logits(self, output: Tensor) -> Tensor:
        """(D,) -> (V,)"""
        drafted = self.tensors["lm_head.weight"] @ self._norm("norm", output)
        if "d2t" not in self.tensors:
            return drafted
        whole = drafted.new_full((self.config.vocab_size,), float("-inf"))
        whole[torch.arange(len(drafted), device=drafted.device) + self.tensors["d2t"]] = drafted
        return whole


def read_eagle3_vllm(folder: Path, backbone: Backbone) -> EngineDraft:
    """What vLLM 0.32 makes of `folder` beside `backbone`; UserError for what it would refuse, or pass over."""
    config = read_config(folder)
    _architecture(config, folder)
    ids = config.get(IDS) or (config.get("eagle_config") or {}).get(IDS)
    captured = sorted(set(ids)) if ids else _usual(backbone)
    fused = config.get("num_aux_hidden_states")
    if fused is None:
        fused = len((config.get("eagle_config") or {}).get(IDS) or ()) or 3
    return _built(config, read_tensors(folder / WEIGHTS), folder, backbone, captured, fused)


def read_eagle3_sglang(folder: Path, backbone: Backbone) -> EngineDraft:
    """What SGLang 0.5 makes of `folder` beside `backbone`; UserError for what it would refuse, or pass over."""
    config = read_config(folder)
    _architecture(config, folder)
    ids = (config.get("eagle_config") or {}).get(IDS)
    captured = sorted({layer + 1 for layer in ids}) if ids else _usual(backbone)
    fused = config.get("num_aux_hidden_states")
    if fused is None:
        fused = len(ids) if ids else 3
    return _built(config, read_tensors(folder / WEIGHTS), folder, backbone, captured, fused)


def read_speculators(folder: Path, backbone: Backbone) -> EngineDraft:
    """What the speculators library, and vLLM 0.32 through its format, make of `folder` beside `backbone`; UserError for
    what they would refuse, or pass over."""
    config = read_config(folder)
    try:
        kind, plan = config["speculators_model_type"], config["speculators_config"]
        names = [method["proposal_type"] for method in plan["proposal_methods"]]
        tokens, verifier = plan["proposal_methods"][0]["speculative_tokens"], plan["verifier"]["name_or_path"]
        layer = dict(config["transformer_layer_config"])
        whole = kind == plan["algorithm"] == "eagle3" and plan["default_proposal_method"] in names and verifier
    except (KeyError, IndexError, TypeError) as error:
        raise UserError(f"'{folder / CONFIG}' is no speculators config ({error!r} is missing)") from error
    if not whole or tokens < 1:
        raise UserError(f"'{folder / CONFIG}' is no speculators config of eagle3 with a proposal and a verifier")
    if "norm_before_residual" not in config:
        raise UserError(f"'{folder / CONFIG}' does not say norm_before_residual, which vLLM would take to be true")
    layer |= {name: config.get(name) for name in ("draft_vocab_size", *FLAGS)}
    ids = config.get(IDS)
    tensors = {}
    for name, tensor in read_tensors(folder / WEIGHTS).items():
        if name.startswith("midlayer."):
            raise UserError(f"'{folder}' names a tensor {name}: speculators knows it as layers.0.*")
        tensors[name.replace("layers.0.", "midlayer.")] = tensor
    captured, fused = sorted(set(ids)) if ids else _usual(backbone), len(ids) if ids else 3
    if fused != layer.get("num_aux_hidden_states", 3):
        raise UserError(f"'{folder / CONFIG}' has {fused} layer ids and vLLM would not know of so many hidden states")
    return _built(layer, tensors, folder, backbone, captured, fused)


def eagle3_difference(drafter: Eagle3, engine: EngineDraft, length: int = 16, seed: int = 0) -> float:
    """How far `apart` our heads, which training asks for whole rows, and the engine are, which drafts token by token."""
    ids, _, ours = said(drafter, length, seed)
    text, heads = ids[0].tolist(), drafter.draft_length
    return apart(ours, torch.stack([engine.chain(text[: t + 2], text[t + 2 : t + 1 + heads]) for t in range(length)]))


# ---- what the readers share


def _architecture(config: dict[str, Any], folder: Path) -> None:
    if config.get("architectures") != ["LlamaForCausalLMEagle3"]:
        raise UserError(f"'{folder / CONFIG}' is of {config.get('architectures')}, not LlamaForCausalLMEagle3")


def _usual(backbone: Backbone) -> list[int]:
    """The layer inputs that engines fuse when they are told none."""
    return sorted({2, backbone.layers // 2, backbone.layers - 3})


def _built(
    config: dict[str, Any],
    tensors: dict[str, Tensor],
    folder: Path,
    backbone: Backbone,
    captured: list[int],
    fused: int,
) -> EngineDraft:
    """The draft layer, once all agree: config, tensors, backbone, and the hidden states that there will be."""
    where = f"'{folder}'"
    for name in FLAGS:
        if config.get(name):
            raise UserError(f"{where}: {name} is set, which our heads do not have")
    if config.get("model_type") != "llama" or config.get("num_hidden_layers") != 1:
        raise UserError(f"{where} is no single Llama layer")
    llama = LlamaConfig.from_dict({key: value for key, value in config.items() if key not in FLAGS})
    if (kind := rope(llama)["rope_type"]) != "default":
        raise UserError(f"{where}: rotary embeddings of type {kind} are not supported")
    if len(captured) != fused or not all(0 <= layer < backbone.layers for layer in captured):
        raise UserError(
            f"{where} fuses {fused} hidden states, and of this backbone's {backbone.layers} layers the engine would "
            f"hand over those at {captured}"
        )
    drafted, vocabulary = config.get("draft_vocab_size") or llama.vocab_size, llama.vocab_size
    if vocabulary != backbone.vocabulary_size or llama.hidden_size != backbone.width:
        raise UserError(
            f"{where} is for a backbone of {vocabulary} tokens and width {llama.hidden_size}, this one has "
            f"{backbone.vocabulary_size} and {backbone.width}"
        )
    require_shapes(tensors, _shapes(llama, fused, drafted), where)
    if drafted != vocabulary:
        ids = torch.arange(drafted) + tensors["d2t"]
        marked = torch.zeros(vocabulary, dtype=torch.bool)
        if not (int(ids.min()) >= 0 and int(ids.max()) < vocabulary) or len(ids.unique()) != drafted:
            raise UserError(f"{where}: d2t does not name {drafted} different tokens of {vocabulary}")
        marked[ids] = True
        if not torch.equal(marked, tensors["t2d"].bool()):
            raise UserError(f"{where}: d2t and t2d name different tokens")
    return EngineDraft(llama, tensors, backbone, captured)


def _shapes(config: LlamaConfig, fused: int, drafted: int) -> dict[str, tuple[int, ...]]:
    """The tensors that there must be."""
    width, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_attention_heads * head_width(config), key_value_heads(config) * head_width(config)
    shapes = {
        "fc.weight": (width, fused * width),
        "midlayer.input_layernorm.weight": (width,),
        "midlayer.hidden_norm.weight": (width,),
        "midlayer.post_attention_layernorm.weight": (width,),
        "midlayer.self_attn.q_proj.weight": (queries, 2 * width),
        "midlayer.self_attn.k_proj.weight": (keys, 2 * width),
        "midlayer.self_attn.v_proj.weight": (keys, 2 * width),
        "midlayer.self_attn.o_proj.weight": (width, queries),
        "midlayer.mlp.gate_proj.weight": (inner, width),
        "midlayer.mlp.up_proj.weight": (inner, width),
        "midlayer.mlp.down_proj.weight": (width, inner),
        "norm.weight": (width,),
        "lm_head.weight": (drafted, width),
    }
    if drafted != config.vocab_size:
        shapes |= {"d2t": (drafted,), "t2d": (config.vocab_size,)}
    return shapes


def head_width(config: LlamaConfig) -> int:
    return config.head_dim or config.hidden_size // config.num_attention_heads


def key_value_heads(config: LlamaConfig) -> int:
    return config.num_key_value_heads or config.num_attention_heads


def rope(config: LlamaConfig) -> dict[str, Any]:
    """What the config says of rotary embeddings."""
    assert config.rope_parameters is not None  # transformers fills it in
    return dict(config.rope_parameters)
