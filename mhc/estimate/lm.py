"""What `run.py fit` would take where a language model is trained.

B rows   T time
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jsonargparse import Namespace
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from mhc.backbone.loading import load_config
from mhc.backbone.model import Backbone
from mhc.estimate.dry_run import DryRun, Output
from mhc.estimate.fake_step import (
    AllocationTracker,
    StepEstimate,
    Weights,
    casting,
    counted_operations,
    has_experts,
    weigh,
    without_contents,
)
from mhc.lm.module import LMModule
from mhc.lm.objectives import Distillation, Preference


@dataclass(frozen=True)
class Batch:
    """rows of `length` tokens (of pairs both rows) with so many targets in all. accumulated: gradients of earlier
    batches are held."""

    rows: int
    length: int
    targets: int
    accumulated: bool = False


def estimate_model(
    module: LMModule,
    batch: Batch,
    teacher: PretrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> StepEstimate:
    """A step of a module that was made on the meta device, all fake and in `dtype`, under autocast where given. teacher:
    the config of the model that Distillation learns from."""
    configs = [module.model.config, *([teacher] if teacher else [])]
    if dtype == torch.float32 and any(map(has_experts, configs)):
        # PyTorch's grouped product has a fake kernel in bf16 only; experts compute in their weights' precision, and what
        # else autocast would halve is counted whole
        half = estimate_model(module, batch, teacher, torch.bfloat16)
        return replace(half, step_bytes=2 * half.step_bytes)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kernels that would be slow: nothing is computed
        without_contents(module, dtype)
        if teacher is not None and isinstance(module.objective, Distillation):
            module.objective.teacher = Backbone(AutoModelForCausalLM.from_config(teacher, dtype=dtype))
        return run_model(module, batch, autocast)


def run_model(module: LMModule, batch: Batch, autocast: torch.dtype | None = None) -> StepEstimate:
    """The step of `estimate_model`, with a module and a teacher that are there, fake or real."""
    teacher = module.objective.teacher if isinstance(module.objective, Distillation) else None
    tensors = {
        "ids": torch.zeros(batch.rows, batch.length, dtype=torch.long),
        "mask": torch.ones(batch.rows, batch.length, dtype=torch.bool),
    }
    if isinstance(module.objective, Preference):
        tensors["reference"] = torch.zeros(batch.rows)
    parts = [module] if teacher is None else [module, teacher]
    existing = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    with AllocationTracker([*existing, *tensors.values()], batch.targets) as tracker:
        for _ in range(1 + batch.accumulated):
            with counted_operations() as operations:
                with casting(autocast):
                    loss, _ = module.figures(tensors)
                loss.backward()
                del loss
    trained = weigh(module.model, lambda parameter: parameter.requires_grad)
    if module.adapter is not None:
        trained = replace(trained, parts={"adapters": trained.total})
    frozen = (
        weigh(module.model, lambda parameter: not parameter.requires_grad) if teacher is None else weigh(teacher.model)
    )
    return StepEstimate(0, tracker.peak, 0, sum(operations), frozen, trained)


class LMDryRun(DryRun):
    """A run of LMModule: a new model or a trained one, whole or by adapters, with the teacher that it may have."""

    def __init__(self, settings: Namespace, instantiate: Callable[[Namespace], Namespace], gib: float | None = None):
        unloaded = settings.model.clone()
        model = unloaded.init_args
        model.compile = False
        if isinstance(model.model, str):  # a new one of its sizes stands for it
            model.tokenizer = model.tokenizer or model.model
            model.model = load_config(model.model).to_dict()
        with torch.device("meta"):
            self.module: LMModule = instantiate(Namespace(model=unloaded)).model
        objective = self.module.objective
        self.pairs = isinstance(objective, Preference)
        self.teacher = objective.name if isinstance(objective, Distillation) else None
        super().__init__(settings, instantiate, gib, self.module.tokenizer, prompts=0, heads=False)

    def step(self, rows: int) -> StepEstimate:
        batch = Batch(
            rows=rows * (2 if self.pairs else 1),
            length=self.survey.longest,
            targets=-(-self.survey.batch_anchors * rows // self.rows),
            accumulated=self.accumulate > 1,
        )
        teacher = None if self.teacher is None else load_config(self.teacher)
        return estimate_model(self.module, batch, teacher, self.trained_dtype, self.autocast)

    def memory(self, rows: int, step: StepEstimate) -> tuple[dict[str, int], dict[str, int]]:
        shards, on_device = self.shards, 0 if self.shards.offload else 1
        weights = step.trained.total * self.trained_dtype.itemsize
        gradients = weights // shards.gradients
        frozen = step.frozen.total * (torch.float32 if self.teacher else self.trained_dtype).itemsize
        always = {
            "process": self.process,
            "trained weights": (on_device if shards.weights > 1 else 1) * weights // shards.weights,
            "optimizer's moments": on_device * 2 * weights // shards.moments,
        }
        if frozen:
            always["frozen weights"] = frozen // (1 if self.teacher else shards.weights)
        if shards.bucketed:
            always["buckets of gradients"] = weights
        # the attention mask (B,1,T,T) of packed rows, which the step is run without
        mask = rows * self.survey.longest**2 * self.trained_dtype.itemsize if getattr(self.data, "pack", False) else 0
        # AdamW updates all parameters at once on a GPU, one by one on a CPU
        stepping = weights // shards.moments if self.on_gpu else step.trained.largest * self.trained_dtype.itemsize
        in_turn = {
            "forward, loss and backward": step.step_bytes + mask - weights + gradients,
            "optimizer's step": gradients + stepping,
        }
        return always, in_turn

    def parameters(self, step: StepEstimate) -> list[tuple[str, Weights]]:
        named = self.settings.model.init_args.model
        model = named if isinstance(named, str) else f"a new {self.module.model.config.model_type}"
        if self.teacher:
            return [(f"{self.teacher}, the teacher", step.frozen), (f"{model}, trained", step.trained)]
        if self.module.adapter is not None:
            rank = self.settings.model.init_args.lora.rank
            return [(f"{model}, frozen", step.frozen), (f"adapters of rank {rank}, trained", step.trained)]
        return [(f"{model}, trained", step.trained)]

    def loaded(self, step: StepEstimate) -> int:
        return 4 * (step.frozen.total + step.trained.total)

    def output(self, step: StepEstimate) -> Output:
        trained = step.trained.total
        whole = trained if self.module.adapter is None else step.frozen.total + trained
        # callbacks.SaveModel writes bf16; two moments in each checkpoint
        return Output("the model", 2 * whole, 3 * 4 * trained, 3, "last, the one before it, one being written")

    def operations(self, step: StepEstimate) -> tuple[float, str]:
        rows = self.rows * (2 if self.pairs else 1)
        per_token = step.step_operations / (rows * self.survey.longest)
        operations = per_token * self.survey.tokens
        return operations, f": {operations:.1e} operations an epoch, {per_token:.1e} a token"

    def lighter(self) -> str:
        return "shorten --data.max_length, or train adapters (configs/lm/lora.yaml) or a smaller model"
