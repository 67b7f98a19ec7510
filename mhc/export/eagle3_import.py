"""Published EAGLE-3 checkpoints turned into our heads, where these can say the same.

    D width   H heads of attention   E their width   V vocabulary   V_d draft vocabulary

The files of SafeAILab/EAGLE (eagle/model/cnets.py) and of SpecForge, SGLang and vLLM have one Llama layer `midlayer`, those
of the speculators library `layers.0`. Fewer heads of keys and values than of queries are repeated, which is what
grouped-query attention does with them.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mhc.backbone.model import Backbone
from mhc.drafters import Eagle3
from mhc.drafters.eagle3 import default_taps
from mhc.errors import UserError
from mhc.export.eagle3 import IDS
from mhc.export.folders import CONFIG, first_of, read_config, read_weights, require_shapes

FILES = ("model.safetensors", "pytorch_model.safetensors", "pytorch_model.bin")  # the first that is there
OTHER = (  # what makes another network of it
    "norm_before_residual",
    "norm_before_fc",
    "fc_norm",
    "use_aux_norm",
    "norm_output",
    "attention_bias",
    "mlp_bias",
)
HALF = 2**-7  # how far two roundings to half precision may be apart, as a share


def import_eagle3(folder: Path, backbone: Backbone, layers: list[int] | None = None) -> Eagle3:
    """The draft layer in `folder` as our heads on `backbone`, for which it was made. layers: the three layers whose inputs
    it reads, where its config leaves that open (engines count differently).

    Raises UserError for damaged files, another backbone's heads, and a network that ours cannot be."""
    where, config = f"'{folder}'", _flat(read_config(folder))
    _require_ours(config, where)
    tensors = {
        name.replace("layers.0.", "midlayer."): tensor
        for name, tensor in read_weights(first_of(folder, FILES)).items()
        if not name.endswith("rotary_emb.inv_freq")
    }
    vocabulary, width = backbone.vocabulary_size, backbone.width
    for name, ours in (("vocab_size", vocabulary), ("hidden_size", width), ("target_hidden_size", width)):
        if config.get(name) not in ((ours, None) if name == "target_hidden_size" else (ours,)):
            raise UserError(
                f"{where} has {name} {config.get(name)}, backbone '{backbone.name}' {ours}: name the backbone that these "
                "heads were made for (heads of another width than their backbone's have no match here)"
            )
    try:
        queries, inner = int(config["num_attention_heads"]), int(config["intermediate_size"])
        keys = int(config.get("num_key_value_heads") or queries)
        head_width = int(config.get("head_dim") or width // queries)
        epsilon, theta = float(config.get("rms_norm_eps") or 1e-6), _theta(config, where)
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(f"'{folder / CONFIG}' is damaged ({error!r}): fetch it again") from error
    if queries % keys or head_width % 2:
        raise UserError(f"{where} has {queries} heads over {keys} of keys, {head_width} wide: no network is like that")
    _require_embedding(tensors.pop("embed_tokens.weight", None), backbone, where)
    if "lm_head.weight" not in tensors and "d2t" not in tensors:  # engines share the backbone's
        tensors["lm_head.weight"] = backbone.unembedding.detach().cpu()
    if not {"lm_head.weight", "fc.weight"} <= tensors.keys():
        raise UserError(f"{where} lacks lm_head.weight or fc.weight: these are no EAGLE-3 heads")
    drafted = len(tensors["lm_head.weight"])
    taps = list(layers) if layers is not None else _taps(config, backbone, where)
    absent = 3 - len(taps)  # a layer that is read twice is one hidden state to an engine
    if 0 < absent < 3:
        taps += taps[-1:] * absent
        tensors["fc.weight"] = torch.nn.functional.pad(tensors["fc.weight"], (0, absent * width))
    drafter = Eagle3(
        backbone,
        taps=taps,
        draft_vocabulary=drafted if drafted < vocabulary else None,
        context=max(int(config.get("max_position_embeddings") or 0), min(backbone.context, 1 << 17), 2048),
        attention_heads=queries,
        head_width=head_width,
        inner_width=inner,
        theta=theta,
        epsilon=epsilon,
    )
    _take_vocabulary(tensors, drafter, where)
    shapes = {name: tuple(tensor.shape) for name, tensor in drafter.state_dict().items()}
    few = {f"midlayer.self_attn.{name}_proj.weight": (keys * head_width, 2 * width) for name in "kv"}
    require_shapes(tensors, shapes | few, where)
    for name in few:
        by_head = tensors[name].unflatten(0, (keys, head_width))
        tensors[name] = by_head.repeat_interleave(queries // keys, dim=0).flatten(0, 1)
    drafter.load_state_dict(tensors)
    return drafter.to(backbone.device).eval()


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    """A speculators config with its layer's keys beside its own; any other as it is. A null is as good as no entry."""
    layer = config.get("transformer_layer_config")
    whole = config | (layer if isinstance(layer, dict) else {}) | {"architectures": config.get("architectures")}
    return {name: value for name, value in whole.items() if value is not None}


def _require_ours(config: dict[str, Any], where: str) -> None:
    """Raise UserError for what our layer is not."""
    eagle = config.get("eagle_config") or {}
    reasons = [f"{name} is set" for name in OTHER if config.get(name) or eagle.get(name)]
    for name, only in (("model_type", "llama"), ("hidden_act", "silu"), ("logit_scale", 1.0), ("num_hidden_layers", 1)):
        if config.get(name, only) != only:
            reasons.append(f"{name} is {config[name]}, not {only}")
    if eagle.get("use_aux_hidden_state") is False:
        reasons.append("it reads the last hidden state alone")
    if reasons:
        raise UserError(
            f"{where} is another network than our EAGLE-3 ({'; '.join(reasons)}): train heads, or take others"
        )


def _theta(config: dict[str, Any], where: str) -> float:
    """Of the rotary embedding, which must be the plain one."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise UserError(f"{where} stretches its rotary embedding ({kind}), ours is the plain one: take other heads")
    return float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0)


def _taps(config: dict[str, Any], backbone: Backbone, where: str) -> list[int]:
    """The layers whose inputs are read. A top-level list counts these (vLLM, speculators); that of eagle_config may as well
    count the layers whose outputs they are (SGLang)."""
    usual = [2, backbone.layers // 2, backbone.layers - 3]
    said, either = config.get(IDS), (config.get("eagle_config") or {}).get(IDS)
    if said is None and either is not None:
        if either not in (usual, [layer - 1 for layer in usual]):
            raise UserError(
                f"{where} names layers {either} in eagle_config, which are inputs to vLLM and outputs to SGLang: give "
                "`layers`, those whose inputs it was trained on"
            )
        said = usual
    if said is None:
        if tuple(usual) != default_taps(backbone.layers):
            raise UserError(
                f"{where} names no layers, and the usual {usual} are no three of this backbone: give `layers`"
            )
        said = usual
    return sorted(set(said))


def _require_embedding(own: Tensor | None, backbone: Backbone, where: str) -> None:
    """Raise UserError where the heads embed tokens otherwise than their backbone does."""
    if own is None:
        return
    shared = backbone.embed(torch.arange(backbone.vocabulary_size, device=backbone.device)).detach().float().cpu()
    own = own.float()
    if own.shape != shared.shape or not torch.allclose(own, shared, rtol=HALF, atol=1e-6):
        raise UserError(
            f"{where} has embed_tokens of its own, which are not those of backbone '{backbone.name}': our heads share the "
            "backbone's (name the very backbone that these were made for)"
        )


def _take_vocabulary(tensors: dict[str, Tensor], drafter: Eagle3, where: str) -> None:
    """d2t and t2d as our heads keep them, with the rows of lm_head by ascending ids."""
    vocabulary, drafted = len(drafter.t2d), len(drafter.d2t)
    place = torch.arange(drafted)
    if "d2t" not in tensors:
        if drafted != vocabulary:
            raise UserError(f"{where} drafts {drafted} of {vocabulary} tokens and lacks d2t, which says which")
        tensors |= {"d2t": torch.zeros_like(place), "t2d": torch.ones(vocabulary, dtype=torch.bool)}
        return
    if tensors["d2t"].shape != place.shape:
        raise UserError(f"{where}: d2t is {tuple(tensors['d2t'].shape)}, lm_head has {drafted} rows")
    ids = tensors["d2t"].long() + place
    marked = torch.zeros(vocabulary, dtype=torch.bool)
    if int(ids.min()) < 0 or int(ids.max()) >= vocabulary or len(ids.unique()) != drafted:
        raise UserError(f"{where}: d2t does not name {drafted} different tokens of {vocabulary}")
    marked[ids] = True
    if "t2d" in tensors and not torch.equal(tensors["t2d"].bool(), marked):
        raise UserError(f"{where}: d2t and t2d name different tokens")
    order = ids.argsort()
    tensors |= {"d2t": ids[order] - place, "t2d": marked, "lm_head.weight": tensors["lm_head.weight"][order]}
