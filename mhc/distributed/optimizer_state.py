"""An optimizer's state with parameters by name and whole tensors, so that a run resumes under another
strategy or number of processes.

torch numbers the parameters, and under FSDP2 each process holds a part of every moment. DeepSpeed's optimizer is no
torch optimizer: mhc.distributed.strategies.ZeRO gathers its state and writes the same.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from mhc.distributed.sharding import whole
from mhc.errors import UserError


def keep_by_name(optimizer: Optimizer) -> Optimizer:
    """Let `state_dict` of an optimizer that was given named parameters use these names and whole tensors, and
    `load_state_dict` read that."""
    optimizer.register_state_dict_post_hook(_named)
    optimizer.register_load_state_dict_pre_hook(_numbered)
    return optimizer


def _named(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    groups = state["param_groups"]
    name_of = {number: name for group in groups for number, name in zip(group["params"], group["param_names"])}
    return {
        "state": {
            name_of[number]: {key: whole(value) for key, value in moments.items()}
            for number, moments in state["state"].items()
        },
        "param_groups": [named_group(group) for group in groups],
    }


def _numbered(optimizer: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    require_names(optimizer.param_groups, state)
    numbers, moments, groups = 0, {}, []
    for group, saved in zip(optimizer.param_groups, state["param_groups"]):
        for name, parameter in zip(group["param_names"], group["params"]):
            if name in state["state"]:
                moments[numbers] = {key: _as_split(value, parameter) for key, value in state["state"][name].items()}
            numbers += 1
        own = list(range(numbers - len(group["params"]), numbers))
        groups.append(saved | {"params": own, "param_names": group["param_names"]})
    return {"state": moments, "param_groups": groups}


def _as_split(value: Any, parameter: Tensor) -> Any:
    """A moment, split as its parameter is."""
    if isinstance(parameter, DTensor) and isinstance(value, Tensor) and value.shape == parameter.shape:
        value = value.to(parameter.device)
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value


def named_group(group: Mapping[str, Any]) -> dict[str, Any]:
    """A group's settings with the names of its parameters."""
    settings = {key: value for key, value in group.items() if key not in ("params", "param_names")}
    return settings | {"params": list(group["param_names"])}


def require_names(groups: list[dict[str, Any]], state: dict[str, Any]) -> None:
    """Raise UserError unless the groups of a checkpoint hold the parameters that are trained here."""
    if [group["param_names"] for group in groups] != [group["params"] for group in state["param_groups"]]:
        raise UserError(
            "the checkpoint's optimizer trained other parameters than this run: start a new run from its heads"
        )
