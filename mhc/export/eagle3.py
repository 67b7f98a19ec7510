"""EAGLE-3 heads as vLLM, SGLang and the speculators library read them.

    D width   H heads of attention   E their width   V vocabulary   V_d draft vocabulary

All three take the published tensors under the published names (`midlayer` is `layers.0` in speculators) and share the
backbone's embedding. What they disagree on is how the three layers are named whose hidden states are fused: vLLM and
speculators count layer *inputs*, as we do; SGLang adds 1 to what eagle_config says. Without ids both take the inputs of
layers 2, N/2 and N-3. Read in vLLM 0.32.0 (models/llama_eagle3.py, v1/spec_decode), SGLang 0.5.23
(models/llama_eagle3.py, speculative/eagle_worker_v2.py) and speculators c05b95b3 (models/eagle3).

All engines hand over hidden states in ascending order of layers and each layer once, so `fc` is arranged likewise.
"""

import shlex
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhc.backbone.model import Backbone
from mhc.drafters import Drafter, Eagle3
from mhc.errors import UserError
from mhc.export.folders import NEAREST, SERVE, require_plain_unembedding, stored, target, vllm_command, write_folder

IDS = "eagle_aux_hidden_state_layer_ids"
LLAMAS = ("llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe", "gpt_oss", "apertus")
TARGETS = {"vLLM 0.32": (*LLAMAS, "granite"), "SGLang 0.5": LLAMAS}  # the models that hand out inner hidden states


def eagle3_vllm(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as vLLM reads it; returns the command that serves it.

    Raises UserError for what vLLM cannot run as it was trained."""
    eagle = require_servable(drafter, "vLLM 0.32")
    layers = fused_layers(eagle)
    config = llama_config(eagle) | {"architectures": ["LlamaForCausalLMEagle3"]}
    if not _default(layers, eagle.backbone):
        config[IDS] = layers
    write_folder(folder, config, published_tensors(eagle))
    return vllm_command(eagle, folder, "eagle3")


def eagle3_sglang(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as SGLang reads it; returns the command that serves it.

    Raises UserError for what SGLang cannot run as it was trained."""
    eagle = require_servable(drafter, "SGLang 0.5")
    backbone, layers = eagle.backbone, fused_layers(eagle)
    if len(layers) == 1:
        raise UserError(
            f"SGLang takes a single hidden state for one that is fused already, and these heads read layer {layers[0]} "
            "alone: train with three different layers, or export eagle3-vllm"
        )
    config = llama_config(eagle) | {"architectures": ["LlamaForCausalLMEagle3"]}
    if not _default(layers, backbone):
        config["eagle_config"] = {"use_aux_hidden_state": True, IDS: [layer - 1 for layer in layers]}
        config[IDS] = layers  # not read by SGLang; vLLM reads it first, so the folder is right there, too
    write_folder(folder, config, published_tensors(eagle))
    steps = eagle.draft_length
    command = ["python", "-m", "sglang.launch_server", "--model-path", target(backbone)]
    command += ["--speculative-algorithm", "EAGLE3", "--speculative-draft-model-path", str(folder)]
    command += ["--speculative-num-steps", str(steps), "--speculative-eagle-topk", "1"]
    command += ["--speculative-num-draft-tokens", str(steps + 1)]
    if backbone.context > eagle.context:  # its window leaves the query's own position out
        command += ["--speculative-draft-window-size", str(eagle.context - 1)]
    return shlex.join(command)


def speculators(drafter: Drafter, folder: Path) -> str:
    """Write `drafter` to `folder` as the speculators library and vLLM read it; returns the command that serves it.

    Raises UserError for what they cannot run as it was trained."""
    eagle = require_servable(drafter, "vLLM 0.32")
    backbone, layer = eagle.backbone, llama_config(eagle)
    verifier = {"name_or_path": target(backbone), "architectures": backbone.model.config.architectures or []}
    proposal = {"proposal_type": "greedy", "speculative_tokens": eagle.draft_length}
    config = {
        "architectures": ["Eagle3DraftModel"],
        "speculators_model_type": "eagle3",
        "speculators_config": {
            "algorithm": "eagle3",
            "proposal_methods": [proposal],
            "default_proposal_method": "greedy",
            "verifier": verifier,
        },
        "draft_vocab_size": layer.pop("draft_vocab_size"),
        "norm_before_residual": False,  # which vLLM would take to be true
        "norm_before_fc": False,
        "fc_norm": False,
        "norm_output": False,
        IDS: fused_layers(eagle),
        "transformer_layer_config": layer,
    }
    tensors = published_tensors(eagle)
    write_folder(folder, config, {name.replace("midlayer.", "layers.0."): tensor for name, tensor in tensors.items()})
    return vllm_command(eagle, folder, "eagle3")


# ---- what the formats share


def require_servable(drafter: Drafter, engine: str) -> Eagle3:
    """`drafter`, if it is EAGLE-3 that `engine` runs as it was trained; else UserError with the nearest choice."""
    if not isinstance(drafter, Eagle3):
        kind = type(drafter)
        raise UserError(f"these are {kind.__name__} heads, not EAGLE-3: {NEAREST[kind]}")
    backbone = drafter.backbone
    kind = backbone.model.config.get_text_config(decoder=True).model_type
    if kind not in TARGETS[engine]:
        raise UserError(
            f"{engine} hands out no inner hidden states of {kind} models, only of {', '.join(TARGETS[engine])}: {SERVE}"
        )
    require_plain_unembedding(drafter, engine)
    first = torch.zeros(1, dtype=torch.long, device=backbone.device)
    if not torch.equal(backbone.embed(first), backbone.model.get_input_embeddings().weight[:1]):
        raise UserError(f"the backbone scales its embeddings, which {engine}'s EAGLE-3 shares unscaled: {SERVE}")
    return drafter


def fused_layers(drafter: Eagle3) -> list[int]:
    """The layers whose inputs are fused, ascending, each once, as engines hand them over."""
    return sorted(set(drafter.taps))


def llama_config(drafter: Eagle3) -> dict[str, Any]:
    """The layer as a Llama config says it."""
    backbone, layer = drafter.backbone, drafter.midlayer
    positions = backbone.context if backbone.context < 1 << 30 else drafter.context
    config = {
        "model_type": "llama",
        "hidden_size": backbone.width,
        "intermediate_size": layer.mlp.gate_proj.out_features,
        "num_hidden_layers": 1,
        "num_attention_heads": layer.self_attn.heads,
        "num_key_value_heads": layer.self_attn.heads,
        "head_dim": layer.self_attn.width,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "rms_norm_eps": drafter.norm.eps,
        "rope_theta": layer.theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": layer.theta},
        "max_position_embeddings": positions,
        "vocab_size": backbone.vocabulary_size,
        "draft_vocab_size": len(drafter.d2t),
        "tie_word_embeddings": False,
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "torch_dtype": str(backbone.dtype).removeprefix("torch."),
    }
    layers = fused_layers(drafter)
    return config if len(layers) == 3 else config | {"num_aux_hidden_states": len(layers)}


def published_tensors(drafter: Eagle3) -> dict[str, Tensor]:
    """The tensors under their published names; `fc` for ascending layers, d2t and t2d only where the draft vocabulary is
    smaller than the backbone's (vLLM refuses them elsewhere)."""
    tensors = dict(drafter.state_dict())
    if drafter.vocabulary is None:
        del tensors["d2t"], tensors["t2d"]
    parts = tensors["fc.weight"].float().split(drafter.backbone.width, dim=1)
    placed = [sum(part for part, tap in zip(parts, drafter.taps) if tap == layer) for layer in fused_layers(drafter)]
    tensors["fc.weight"] = torch.cat(placed, dim=1)
    floats = {name: stored(tensor, drafter.backbone) for name, tensor in tensors.items() if name not in ("d2t", "t2d")}
    return tensors | floats


def _default(layers: list[int], backbone: Backbone) -> bool:
    """Whether engines fuse these layers when they are told none."""
    return layers == [2, backbone.layers // 2, backbone.layers - 3]
