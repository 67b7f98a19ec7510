"""What `run.py fit` would take where draft heads are trained on a frozen backbone."""

import warnings
from collections.abc import Callable
from dataclasses import replace
from math import ceil

import torch
from jsonargparse import Namespace
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from mhc.backbone.loading import load_config, load_tokenizer
from mhc.backbone.model import Backbone
from mhc.backbone.probe import HELD, probe_copy
from mhc.decoding.batch import PREFILL_TOKENS
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
from mhc.estimate.memory import Decoding, Setting, memory, weight_bytes
from mhc.training.draft_module import DraftModule


def estimate_heads(
    module: DraftModule,
    config: PretrainedConfig,
    rows: int,
    length: int,
    anchors: int,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
    heads_dtype: torch.dtype = torch.float32,
) -> StepEstimate:
    """A step of a module that still waits for its backbone (`sharded`) on `rows` rows of `length` tokens with so many
    anchors: with a backbone of this config in `dtype` and heads in `heads_dtype`, all fake, under autocast where given."""
    if dtype == torch.float32 and has_experts(config):  # PyTorch's grouped product has a fake kernel in bf16 only
        half = estimate_heads(module, config, rows, length, anchors, torch.bfloat16, torch.bfloat16)
        return replace(half, forward_bytes=2 * half.forward_bytes, step_bytes=2 * half.step_bytes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about kernels that would be slow: nothing is computed
        with torch.device("meta"):
            module.build(Backbone(AutoModelForCausalLM.from_config(config, dtype=dtype)))
        with FakeTensorMode():
            without_contents(module.backbone)
            without_contents(module.drafter, heads_dtype)
            return run_heads(module, rows, length, anchors, autocast)


def run_heads(
    module: DraftModule, rows: int, length: int, anchors: int, autocast: torch.dtype | None = None
) -> StepEstimate:
    """The step of `estimate_heads`, with a module that has its backbone, fake or real."""
    backbone, drafter = module.backbone, module.drafter
    ids, mask = torch.zeros(rows, length, dtype=torch.long), torch.ones(rows, length, dtype=torch.bool)
    tracker = AllocationTracker([*module.parameters(), *module.buffers(), ids, mask], anchors)
    with tracker, counted_operations() as forward_operations, casting(autocast):
        features = backbone.features(ids, drafter.taps)
    forward_bytes, tracker.peak = tracker.peak, tracker.now
    with tracker, counted_operations() as step_operations:
        with casting(autocast):
            loss, _ = module.losses(ids, mask, hidden=features.hidden, taps=features.taps)
        loss.backward()
    operations = sum(forward_operations), sum(step_operations)
    return StepEstimate(forward_bytes, tracker.peak, *operations, weigh(backbone.model), weigh(drafter))


class HeadsDryRun(DryRun):
    """A run that trains draft heads on a frozen backbone."""

    def __init__(self, settings: Namespace, instantiate: Callable[[Namespace], Namespace], gib: float | None = None):
        model = settings.model.init_args
        self.config = load_config(model.backbone)
        if self.config.model_type not in HELD:
            probe_copy(self.config, Backbone)
        waiting = settings.model.clone()
        waiting.init_args.sharded = True  # the backbone is not loaded
        self.module: DraftModule = instantiate(Namespace(model=waiting)).model
        callbacks = settings.trainer.callbacks or []
        decoding = next((c.init_args for c in callbacks if c.class_path.endswith("Acceptance")), None)
        prompts = decoding.prompts if decoding else 0
        super().__init__(settings, instantiate, gib, load_tokenizer(model.backbone), prompts, heads=True)
        prefill = PREFILL_TOKENS["cuda" if self.on_gpu else "cpu"]
        self.decoding = decoding and Decoding(prompts, self.survey.prompt + decoding.max_new_tokens, prefill)
        self.setting = Setting(
            rows=self.rows,
            length=self.survey.longest,
            anchors=self.survey.batch_anchors,
            dtype=getattr(torch, model.dtype),
            autocast=self.autocast,
            heads_dtype=self.trained_dtype,
            quantize=model.quantize,
            on_gpu=self.on_gpu,
            collected=not hasattr(self.data, "conversations"),
        )

    def step(self, rows: int) -> StepEstimate:
        setting = self.setting
        anchors = ceil(setting.anchors * rows / setting.rows)
        dtypes = setting.dtype, setting.autocast, setting.heads_dtype
        return estimate_heads(self.module, self.config, rows, setting.length, anchors, *dtypes)

    def memory(self, rows: int, step: StepEstimate) -> tuple[dict[str, int], dict[str, int]]:
        setting = replace(self.setting, rows=rows)
        return memory(step, setting, self.shards, self.config, self.decoding, self.process)

    def parameters(self, step: StepEstimate) -> list[tuple[str, Weights]]:
        model = self.settings.model.init_args
        frozen = f"{model.backbone}, frozen, {self.setting.quantize or model.dtype}"
        return [(frozen, step.frozen), (f"{model.drafter.class_path.rpartition('.')[2]}, trained", step.trained)]

    def loaded(self, step: StepEstimate) -> int:
        whole = weight_bytes(step.frozen, self.setting.dtype, None)
        return 0 if self.settings.model.init_args.sharded else whole

    def output(self, step: StepEstimate) -> Output:
        heads = 4 * step.trained.total
        # two moments in each
        return Output("heads", heads, 3 * heads, 5, "last and best, the one before each, one being written")

    def operations(self, step: StepEstimate) -> tuple[float, str]:
        seen, setting = self.survey, self.setting
        forward = 0 if setting.collected else step.forward_operations * seen.tokens / (setting.rows * setting.length)
        heads = step.step_operations * seen.anchors / setting.anchors
        share = heads / max(1.0, forward + heads)
        remark = f" (kl and lk more): {forward + heads:.1e} operations an epoch, {share:.0%} of them of the heads"
        return forward + heads, remark

    def product_dtype(self) -> torch.dtype:
        return self.setting.dtype

    def lighter(self) -> str:
        return (
            "hold the backbone in fewer bytes (--model.dtype bfloat16, --model.quantize int8), "
            "shorten --data.max_length, or shard it over several devices (configs/trainer/zero3.yaml)"
        )
