"""Tensors that are split over processes, seen whole; sums and means over all processes.

ZeRO-3 (DeepSpeed) and FSDP2 leave each process a part of every parameter and gather it while its module runs. Whoever
reads a parameter itself (an unembedding in a chunked loss, heads that are saved or copied) asks here, and is given the
tensor itself where nothing is split. Gathering takes all processes: each of them must ask.
"""

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself, or a whole copy of one that is split (which then learns nothing)."""
    if isinstance(tensor, DTensor):
        held = tensor.detach()
        assert isinstance(held, DTensor)
        return held.full_tensor()
    if partitioned(tensor):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return tensor


def whole_weight(module: nn.Module) -> Tensor:
    """A module's weight. Inside a training step, where the strategy gathers, no copy is made and each step gathers once."""
    if isinstance(module, FSDPModule):
        module.unshard()  # it stays whole until the step's backward, and nothing is done where it is
    weight = module.weight
    assert isinstance(weight, Tensor)
    return whole(weight)


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """A module's state_dict with whole tensors."""
    parameters = dict(module.named_parameters())
    return {
        name: whole(parameters[name] if name in parameters and partitioned(parameters[name]) else value)
        for name, value in module.state_dict().items()
    }


def is_split(parameter: Tensor) -> bool:
    """Whether processes hold a part of this parameter each, even if it is gathered here and now."""
    return isinstance(parameter, DTensor) or hasattr(parameter, "ds_id")


def partitioned(tensor: Tensor) -> bool:
    """Whether ZeRO-3 holds only a part of this parameter here and now."""
    return hasattr(tensor, "ds_status") and tensor.ds_status.name != "AVAILABLE"


def element_count(parameter: Tensor) -> int:
    """How many numbers the whole parameter has."""
    return getattr(parameter, "ds_numel", parameter.numel())


def summed(values: Tensor) -> Tensor:
    """The sum over all processes, in place; `values` itself where there is one process."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
    return values


def process_count() -> int:
    """How many processes train together."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def shares_of(counts: Tensor) -> Tensor:
    """By how much to scale losses that are means over this process's anchors, counts (...), so that the mean of all
    processes' gradients is the gradient of the mean over all anchors: 1 where there is one process."""
    own = counts.float()
    return process_count() * own / summed(own.clone()).clamp(min=1)


def averaged(figures: dict[str, tuple[Tensor, int]]) -> dict[str, float]:
    """Means over the anchors of all processes, from each one's means (scalars) and its numbers of anchors; figures without
    any are left out."""
    means = torch.stack([mean for mean, _ in figures.values()]).detach().float()
    counts = torch.tensor([count for _, count in figures.values()], dtype=torch.float, device=means.device)
    sums, totals = summed(torch.stack([means * counts, counts])).tolist()
    return {name: value / count for name, value, count in zip(figures, sums, totals) if count}
