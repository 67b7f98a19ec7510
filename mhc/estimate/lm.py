"""What `run.py fit` would take where a language model is trained.

B rows   T time   N supervised tokens   D width   V vocabulary
"""

import re
import warnings
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from jsonargparse import Namespace
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from mhc.backbone.model import Backbone, load_config, load_tokenizer
from mhc.errors import UserError
from mhc.estimate.dry_run import DryRun, Written
from mhc.estimate.fake_step import Held, Rehearsal, Weights, counting, has_experts, weigh
from mhc.lm.lora import LoRA
from mhc.lm.module import new_model, own_tokenizer
from mhc.lm.objectives import Distillation, Preference
from mhc.training.losses import Teacher, chunked_loss, log_probabilities
from mhc.training.trainer_settings import class_of


class LMDryRun(DryRun):
    """A run of LMModule: a new model or one to go on from, whole or by adapters, with the teacher that it may have."""

    def __init__(self, chosen: Namespace, gib: float | None = None):
        model = chosen.model.init_args
        if isinstance(model.model, str):
            tokenizer, self.config = load_tokenizer(model.tokenizer or model.model), load_config(model.model)
        else:
            sizes = dict(model.model)
            tokenizer = own_tokenizer(sizes) if model.tokenizer is None else load_tokenizer(model.tokenizer)
            with torch.device("meta"):
                self.config = new_model(sizes, tokenizer).config
        self.lora = None if model.lora is None else LoRA(**model.lora)
        objective = class_of(model.objective.class_path) if model.objective else object
        self.pairs = issubclass(objective, Preference)
        self.teacher = model.objective.init_args.teacher if issubclass(objective, Distillation) else None
        super().__init__(chosen, gib, tokenizer, prompts=0, heads=False)

    def rehearsed(self, rows: int) -> Rehearsal:
        seen = self.survey
        step = Step(
            rows=rows * (2 if self.pairs else 1),
            length=seen.longest,
            targets=-(-seen.batch_anchors * rows // self.rows),
            packed=getattr(self.data, "pack", False),
            pairs=self.pairs,
            accumulated=self.accumulate > 1,
        )
        teacher = None if self.teacher is None else load_config(self.teacher)
        return rehearse(self.config, step, self.lora, teacher, self.trained_dtype, self.autocast)

    def memory(self, rows: int, found: Rehearsal) -> tuple[dict[str, int], dict[str, int]]:
        shards, here = self.shards, 0 if self.shards.offload else 1
        weights = found.drafter.total * self.trained_dtype.itemsize
        gradients = weights // shards.gradients
        frozen = found.backbone.total * (torch.float32 if self.teacher else self.trained_dtype).itemsize
        standing = {
            "process": self.process,
            "trained weights": (here if shards.weights > 1 else 1) * weights // shards.weights,
            "optimizer's moments": here * 2 * weights // shards.moments,
        }
        if frozen:
            standing["frozen weights"] = frozen // (1 if self.teacher else shards.weights)
        if shards.bucketed:
            standing["buckets of gradients"] = weights
        # AdamW goes through all parameters at once on a GPU, one by one on a CPU
        stepping = weights // shards.moments if self.on_gpu else found.drafter.matrix * self.trained_dtype.itemsize
        turns = {
            "forward, loss and backward": found.heads - weights + gradients,
            "optimizer's step": gradients + stepping,
        }
        return standing, turns

    def parameters(self, found: Rehearsal) -> list[tuple[str, Weights]]:
        named = self.chosen.model.init_args.model
        model = named if isinstance(named, str) else f"a new {self.config.model_type}"
        if self.teacher:
            return [(f"{self.teacher}, the teacher", found.backbone), (f"{model}, trained", found.drafter)]
        if self.lora:
            return [
                (f"{model}, frozen", found.backbone),
                (f"adapters of rank {self.lora.rank}, trained", found.drafter),
            ]
        return [(f"{model}, trained", found.drafter)]

    def loaded(self, found: Rehearsal) -> int:
        return 4 * (found.backbone.total + found.drafter.total)

    def written(self, found: Rehearsal) -> Written:
        trained, whole = found.drafter.total, found.drafter.total
        if self.lora:
            whole = found.backbone.total + trained
        # callbacks.SaveModel writes bf16; two moments in each checkpoint
        return Written("the model", 2 * whole, 3 * 4 * trained, 3, "last, the one before it, one being written")

    def work(self, found: Rehearsal) -> tuple[float, str]:
        rows = self.rows * (2 if self.pairs else 1)
        each = found.heads_operations / (rows * self.survey.longest)
        work = each * self.survey.tokens
        return work, f": {work:.1e} operations an epoch, {each:.1e} a token"

    def lighter(self) -> str:
        return "shorten --data.max_length, or train adapters (configs/lm/lora.yaml) or a smaller model"


@dataclass(frozen=True)
class Step:
    """One step of training: rows of `length` tokens with so many targets in all. packed: rows hold several
    conversations. pairs: the answers' log-probabilities are compared. accumulated: gradients of earlier batches lie
    there."""

    rows: int
    length: int
    targets: int
    packed: bool = False
    pairs: bool = False
    accumulated: bool = False


def rehearse(
    config: PretrainedConfig,
    step: Step,
    lora: LoRA | None = None,
    teacher: PretrainedConfig | None = None,
    dtype: torch.dtype = torch.float32,
    autocast: torch.dtype | None = None,
) -> Rehearsal:
    """Play a step of LMModule through on tensors without contents (mhc.estimate.fake_step), of a model of this config in `dtype`:
    as `heads` what is trained and its step, as `backbone` what is frozen."""
    if dtype == torch.float32 and (has_experts(config) or (teacher and has_experts(teacher))):
        # PyTorch's grouped product is rehearsed in bf16 only; experts compute in their weights' precision, and what else
        # autocast would halve is counted whole
        half = rehearse(config, step, lora, teacher, torch.bfloat16)
        return replace(half, heads=2 * half.heads)
    with FakeTensorMode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kernels that would be slower so: nothing is computed
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).train()
        taught = None if teacher is None else Backbone(AutoModelForCausalLM.from_config(teacher, dtype=dtype))
        whole = weigh(model)
        if lora is not None:
            put_adapters(model, lora)
        most, operations = play(model, step, taught, autocast)
    sizes = [parameter.numel() for parameter in model.parameters() if parameter.requires_grad]
    trained = Weights(whole.parts if lora is None else {"adapters": sum(sizes)}, matrix=max(sizes))
    frozen = Weights({}) if taught is None else weigh(taught.model)
    return Rehearsal(0, most, 0, operations, frozen if lora is None else whole, trained)


class Adapted(nn.Module):
    """What peft makes of a linear layer, in shapes: peft's own moves parameters, which those without contents cannot."""

    def __init__(self, linear: nn.Linear, rank: int):
        super().__init__()
        self.linear = linear
        self.down = nn.Linear(linear.in_features, rank, bias=False, dtype=linear.weight.dtype)
        self.up = nn.Linear(rank, linear.out_features, bias=False, dtype=linear.weight.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.linear(hidden) + self.up(self.down(hidden)) * 2.0


def put_adapters(model: PreTrainedModel, lora: LoRA) -> None:
    """Freeze the model and put trained adapters where mhc.lm.lora.adapt would."""
    model.requires_grad_(False)
    unembedding, targets = model.get_output_embeddings(), lora.targets
    for path, linear in list(model.named_modules()):
        above, _, name = path.rpartition(".")
        if not isinstance(linear, nn.Linear) or linear is unembedding:
            continue
        chosen = name in targets if isinstance(targets, list) else re.fullmatch(targets, path)
        if targets == "all-linear" or chosen:
            setattr(model.get_submodule(above), name, Adapted(linear, lora.rank))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model.init_args.lora: no linear layer is called {lora.targets}")


def play(
    model: PreTrainedModel, step: Step, teacher: Backbone | None = None, autocast: torch.dtype | None = None
) -> tuple[int, int]:
    """The most bytes that the step of `rehearse` holds beside the weights, its gradients included, and its operations; on
    modules that are there, with contents or without. (The objectives' own asks tensors for their values.)"""
    ids = torch.zeros(step.rows, step.length, dtype=torch.long)
    where = torch.zeros(step.targets, dtype=torch.long)
    options: dict[str, Tensor] = {}
    if step.packed:
        options["attention_mask"] = torch.zeros(step.rows, 1, step.length, step.length, dtype=model.dtype)
        options["position_ids"] = torch.zeros(step.rows, step.length, dtype=torch.long)
    there = [module for module in (model, teacher) if module is not None]
    standing = [tensor for module in there for tensor in (*module.parameters(), *module.buffers())]
    precision = torch.autocast("cpu", autocast) if autocast else nullcontext()
    with Held([*standing, ids, where, *options.values()]) as held:
        for _ in range(1 + step.accumulated):
            with counting() as operations:
                with precision:
                    loss = _loss(model, ids, where, options, step.pairs, teacher)
                loss.backward()
                del loss
    return held.most, sum(operations)


def _loss(
    model: PreTrainedModel,
    ids: Tensor,
    where: Tensor,
    options: dict[str, Tensor],
    pairs: bool,
    teacher: Backbone | None,
) -> Tensor:
    told = None if teacher is None else teacher.features(ids).hidden.flatten(0, 1)[where]
    hidden = model.base_model(input_ids=ids, use_cache=False, **options).last_hidden_state
    hidden, matrix = hidden.flatten(0, 1)[where], model.get_output_embeddings().weight  # (N,D), (V,D)
    if pairs:
        return log_probabilities(hidden, matrix, where).sum()
    loss = chunked_loss(hidden, (matrix,), where).loss
    if told is not None:
        soft = Teacher(told, teacher.unembedding)
        loss = loss + chunked_loss(hidden, (matrix,), where, "kl", teacher=soft).loss
    return loss
