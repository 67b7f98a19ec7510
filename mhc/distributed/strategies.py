"""Strategies for several processes, whose checkpoints are all alike: one file with whole tensors by name.

Whatever the strategy and the number of processes, `state_dict` holds the heads and `optimizer_states` the moments by the
names of the parameters; both are gathered before process 0 writes them and split again after they were read, so that a run
resumes under another strategy or world size (mhc.distributed.optimizer_state does it for torch\'s optimizers). DeepSpeed\'s
own checkpoint folders are neither written nor read.

A strategy that splits the backbone tells `transformers` how to read it (`sharding`, or a context in which
`from_pretrained` splits what it reads). Heads are built and restored whole, and split in `setup`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, Literal

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from mhc.distributed.optimizer_state import named_group, require_names
from mhc.distributed.sharding import is_split, whole
from mhc.errors import UserError

MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, which have the shape of their parameter


class Packages:
    """A strategy that needs `packages`, which the extra named `extra` installs."""

    packages: tuple[str, ...]
    extra: str
    gpus_only = False

    @classmethod
    def require_packages(cls) -> None:
        """Raise UserError unless they are installed."""
        missing = [package for package in cls.packages if find_spec(package) is None]
        if missing:
            raise UserError(
                f"{cls.__name__} needs {' and '.join(missing)}, not installed here: pip install -e '.[{cls.extra}]'"
            )


def module_of(strategy: Strategy) -> LightningModule:
    """The module that the strategy trains."""
    assert strategy.lightning_module is not None
    return strategy.lightning_module


# ---- DeepSpeed


class ZeRO(Packages, DeepSpeedStrategy):
    """DeepSpeed's ZeRO: optimizer states and gradients of the heads are split over the processes (stage 2), and all
    parameters too, the frozen backbone's first of all (stage 3, with the model's `sharded: true`).

    offload: keep what is split in the machine's memory in place of the GPU's. settings: more for the section
    zero_optimization of DeepSpeed's configuration.
    """

    packages, extra = ("deepspeed", "accelerate"), "deepspeed"
    gpus_only = True  # Lightning demands it

    def __init__(self, stage: Literal[1, 2, 3] = 3, offload: bool = False, settings: dict[str, Any] | None = None):
        self.require_packages()
        super().__init__(
            stage=stage,
            offload_optimizer=offload,
            offload_parameters=offload and stage == 3,
            logging_batch_size_per_gpu=1,  # for DeepSpeed's own throughput log, which is off
        )
        assert isinstance(self.config, dict)  # made from the arguments
        self.config["zero_force_ds_cpu_optimizer"] = False  # the optimizer stays torch's AdamW, the same everywhere
        self.config["zero_optimization"] |= settings or {}

    # DeepSpeedStrategy restores from DeepSpeed's folders, after `setup`; this project's are restored as everywhere, before it.
    restore_checkpoint_after_setup = False
    lightning_restore_optimizer = True
    save_checkpoint = Strategy.save_checkpoint
    load_checkpoint = Strategy.load_checkpoint
    load_model_state_dict = Strategy.load_model_state_dict

    @contextmanager
    def model_sharded_context(self) -> Iterator[None]:
        """In here `from_pretrained` gives every process its part of each tensor as it is read (stage 3)."""
        self._init_config_if_needed()
        if self.zero_stage_3:
            from transformers.integrations import HfDeepSpeedConfig

            announced = HfDeepSpeedConfig({**(self.config or {})})  # in force while it lives
            yield
            del announced
        else:
            yield

    # Lightning's count says when to step, as everywhere: behind the last batch of an epoch too, where DeepSpeed's own count
    # would carry a started accumulation into the next epoch, and past the checkpoint between them.
    handles_gradient_accumulation = False

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Gradients are split, so every backward sums them."""
        yield

    def backward(self, closure_loss: Tensor, optimizer: Optimizer | None, *args: Any, **kwargs: Any) -> Tensor:
        """Lightning has divided the loss by the accumulated batches already; DeepSpeed would once more."""
        waits = module_of(self).trainer.fit_loop._should_accumulate()
        engine: Any = self.model  # DeepSpeed's
        engine.set_gradient_accumulation_boundary(not waits)
        return super().backward(closure_loss, optimizer, *args, scale_wrt_gas=False, **kwargs)

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """The heads, from the optimizer's fp32 copies."""
        from deepspeed.utils import safe_get_full_fp32_param

        state = module_of(self).state_dict()
        for name, parameter in self._trained().items():
            state[name] = safe_get_full_fp32_param(parameter).cpu()
        return state

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        from deepspeed.utils import safe_get_full_optimizer_state

        inner = self._linked(optimizer)
        steps = [state["step"] for state in inner.state.values() if "step" in state]
        moments_by_name = {}
        for name, parameter in self._trained().items() if steps else ():
            moments = {key: safe_get_full_optimizer_state(parameter, key).cpu() for key in MOMENTS}
            moments_by_name[name] = {"step": torch.as_tensor(float(steps[0])), **moments}
        return {"state": moments_by_name, "param_groups": [named_group(group) for group in inner.param_groups]}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        (state,) = checkpoint["optimizer_states"]
        optimizer: Any = self.optimizers[0]  # DeepSpeed's, around torch's
        inner = optimizer.optimizer
        require_names(inner.param_groups, state)
        for group, saved in zip(inner.param_groups, state["param_groups"]):
            group.update({key: value for key, value in saved.items() if key != "params"})
        if not state["state"]:
            return
        step = next(iter(state["state"].values()))["step"]
        flat = (
            optimizer.fp32_partitioned_groups_flat if self.zero_stage_3 else optimizer.single_partition_of_fp32_groups
        )
        for part in flat:  # as the first step would make them
            inner.state[part] = {"step": step.clone(), **{key: torch.zeros_like(part) for key in MOMENTS}}
        self._linked(optimizer)
        for name, parameter in self._trained().items():
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, state["state"][name][key].to(self.root_device), key)

    def _linked(self, optimizer: Any) -> Optimizer:
        """The AdamW inside DeepSpeed's optimizer, whose states each parameter knows its part of. (Below stage 3 DeepSpeed
        sees to that when the first of its groups has stepped, too early for the others.)"""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        inner = optimizer.optimizer
        if not self.zero_stage_3:
            for parameters, flat in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups):
                lazy_init_hp_params_optimizer_state(parameters, flat, inner.state)
        return inner

    def _trained(self) -> dict[str, Tensor]:
        parameters = module_of(self).named_parameters()
        return {name: parameter for name, parameter in parameters if parameter.requires_grad}


# ---- FSDP


class FSDP(Packages, DDPStrategy):
    """PyTorch's fully sharded data parallelism (FSDP2): the backbone layer by layer (with the model's `sharded: true`), and
    the heads with their optimizer's states, which are whole during a step alone."""

    packages, extra = ("accelerate",), "fsdp"  # with accelerate transformers reads parts of files

    def __init__(self):
        self.require_packages()
        super().__init__()

    def sharding(self, config: Any) -> dict[str, Any]:
        """The arguments with which `from_pretrained` reads only this process's part of each tensor of a model with this config."""
        from transformers.distributed import DistributedConfig

        os.environ["LOCAL_RANK"] = str(self.local_rank)  # which transformers asks for, and SLURM does not set
        # Every head embeds, so embeddings stay whole until the step is over; norms are no part of their group.
        config.base_model_fsdp_plan = {
            name: "keep_full_weight" if "embed" in name else "free_full_weight" for name in config.base_model_fsdp_plan
        }
        return {"config": config, "distributed_config": DistributedConfig(fsdp_size=self.world_size)}

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None and self.model is not None
        self.accelerator.setup(trainer)
        self.model = self.precision_plugin.convert_module(self.model)
        self.model_to_device()
        self._split(module_of(self))
        if trainer.state.fn == TrainerFn.FITTING:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        return {name: whole(value).cpu() for name, value in module_of(self).state_dict().items()}

    def _split(self, module: LightningModule) -> None:
        if self.world_size == 1:
            return
        if not any(map(is_split, module.parameters())):
            raise UserError(
                "FSDP splits a DraftModule's backbone while it is read: set model.init_args.sharded to true"
            )
        fully_shard(module)
        for step in ("training_step", "validation_step", "test_step"):  # in which the heads are whole
            register_fsdp_forward_method(module, step)
