"""How much memory each device needs, from a step's estimate and the strategy that shards what is held. Bytes throughout.

What the step does not show is added here by name: the process itself, gradients and moments, and decoding at
validations.
"""

from dataclasses import dataclass

import torch
from jsonargparse import Namespace
from transformers import PretrainedConfig

from mhc.distributed.strategies import FSDP, ZeRO
from mhc.estimate.fake_step import StepEstimate, Weights
from mhc.training.trainer_settings import class_of


@dataclass(frozen=True)
class Sharding:
    """Into how many pieces, over as many processes, a strategy splits what is held; 1 is whole on each."""

    name: str
    processes: int = 1
    weights: int = 1
    gradients: int = 1
    moments: int = 1
    bucketed: bool = False  # communication buckets hold the gradients a second time
    offload: bool = False  # moments, and weights that are split, are held in the host's memory


def sharding(trainer: Namespace) -> Sharding:
    """How the trainer's strategy shards: single, ddp, zero1 to zero3 (DeepSpeed's stages), fsdp."""
    devices = trainer.devices
    count = (
        len(devices)
        if isinstance(devices, list)
        else max(1, int(devices) if str(devices).isdigit() else torch.cuda.device_count())
    )
    n = count * (trainer.num_nodes or 1)
    strategy = trainer.strategy
    kind = object if strategy is None or isinstance(strategy, str) else class_of(strategy.class_path)
    if issubclass(kind, ZeRO):
        stage, offload = strategy.init_args.stage, strategy.init_args.offload
        pieces = n if stage > 2 else 1, n if stage > 1 else 1, n
        return Sharding(f"zero{stage}", n, *pieces, bucketed=n > 1, offload=offload)
    if issubclass(kind, FSDP):
        return Sharding("fsdp", n, n, n, n)
    return Sharding("ddp" if n > 1 else "single", n, bucketed=n > 1)


@dataclass(frozen=True)
class Setting:
    """How the weights are held and what a batch is."""

    rows: int
    length: int
    anchors: int
    dtype: torch.dtype
    autocast: torch.dtype | None
    heads_dtype: torch.dtype
    quantize: str | None
    on_gpu: bool
    collected: bool = False  # features come from files: no frozen forward


@dataclass(frozen=True)
class Decoding:
    """What callbacks.Acceptance decodes: prompts at once, the tokens of each, and how many tokens of prompts are read at
    once."""

    prompts: int
    tokens: int
    prefill: int


def weight_bytes(weights: Weights, dtype: torch.dtype, quantize: str | None) -> int:
    """A backbone's weights. torchao keeps 4-bit weights in 8 bits each on whatever hardware, so both kinds take the
    same: a byte a weight of the linear layers, and a scale (4) and a zero point (1) for each of their outputs."""
    if quantize is None:
        return weights.total * dtype.itemsize
    return weights.linear + 5 * weights.linear_outputs + (weights.total - weights.linear) * dtype.itemsize


def cache_bytes(config: PretrainedConfig, rows: int, capacity: int, dtype: torch.dtype) -> int:
    """Keys and values of a TreeCache: 2 * layers * rows * heads * capacity * width."""
    text = config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return 2 * text.num_hidden_layers * rows * heads * capacity * width * dtype.itemsize


def memory(
    step: StepEstimate,
    setting: Setting,
    shards: Sharding,
    config: PretrainedConfig,
    decoding: Decoding | None,
    process: int,
) -> tuple[dict[str, int], dict[str, int]]:
    """Bytes on each device by name: what is held all the time, and what comes in turns. The sum of the first and the
    largest of the second are the peak. process: bytes of a process that holds nothing yet."""
    heads = step.trained.total * setting.heads_dtype.itemsize
    gathered = step.frozen.largest_layer * setting.dtype.itemsize if shards.weights > 1 else 0
    on_device = 0 if shards.offload and shards.weights > 1 else 1
    unpacked = step.frozen.largest_linear * setting.dtype.itemsize if setting.quantize else 0
    frozen = weight_bytes(step.frozen, setting.dtype, setting.quantize)
    always = {
        "process": process,
        "backbone's weights": on_device * frozen // shards.weights + gathered,
        "heads' weights": heads // shards.weights,
        "optimizer's moments": 0 if shards.offload else 2 * step.trained.total * 4 // shards.moments,
    }
    if shards.bucketed:
        always["buckets of gradients"] = heads
    gradients = heads // shards.gradients
    forward = 0 if setting.collected else step.forward_bytes + unpacked
    in_turn = {
        "frozen forward": gradients + forward,
        "heads, loss and backward": step.step_bytes - heads + gradients,
        # AdamW updates all parameters at once on a GPU, one by one on a CPU
        "optimizer's step": gradients + (heads // shards.moments if setting.on_gpu else step.trained.largest * 4),
    }
    if decoding is not None:
        prompts = min(decoding.prefill, decoding.prompts * decoding.tokens)
        prefill = step.forward_bytes * prompts // (setting.rows * setting.length)
        cache = cache_bytes(config, decoding.prompts, decoding.tokens, setting.dtype)
        copy = step.trained.total * setting.dtype.itemsize
        in_turn["decoding for callbacks.Acceptance"] = gradients + cache + copy + prefill + unpacked
    return always, in_turn
