"""The LightningModule that trains a small language model: every stage from pretraining to reasoning.

    B rows   T time   D width   V vocabulary

What is learned is the objective's (mhc.lm.objectives); the model is any stock transformers architecture.
"""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mhc.backbone.loading import load_model, load_tokenizer
from mhc.backbone.logits import AroundLmHead
from mhc.backbone.model import packed_options
from mhc.backbone.packing import Packing, real_positions
from mhc.distributed.sharding import averaged, shares_of
from mhc.errors import UserError
from mhc.lm.experts import FIGURES, balance, routed_config, usage
from mhc.lm.lora import LoRA, adapt
from mhc.lm.objectives import NextToken, Objective
from mhc.training.losses import Finish
from mhc.training.means import Figures, Means
from mhc.training.optimization import optimize, reseed


class LMModule(LightningModule):
    """Trains a language model by an objective.

    model: sizes of a new one (`model_type` and config keys of any transformers architecture), or a trained one: pocket, a
    directory, a hub name. tokenizer: a directory or hub name; by default the one of the trained model, and for a
    new model a byte-level BPE of its `vocab_size` trained on the project's own dialogues. objective: what is learned, see
    mhc.lm.objectives; next token by default. lora: train low-rank adapters and leave the model itself alone.
    learning_rate, weight_decay, warmup (share of the steps): AdamW with a cosine schedule. compile: fuse the forward with
    torch.compile (half a minute, then about 1.5x as fast; needs a C++ compiler on a CPU).

    Logs the objective's figures, and of a mixture of experts how evenly they are used (mhc.lm.experts).
    """

    def __init__(
        self,
        model: dict[str, Any] | str,
        tokenizer: str | None = None,
        objective: Objective | None = None,
        lora: LoRA | None = None,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        warmup: float = 0.03,
        compile: bool = False,
    ):
        super().__init__()
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.objective = objective or NextToken()
        if isinstance(model, str):
            self.tokenizer = load_tokenizer(tokenizer or model)
            self.model = load_model(model, torch.float32)
        else:
            self.tokenizer = own_tokenizer(model) if tokenizer is None else load_tokenizer(tokenizer)
            self.model = new_model(model, self.tokenizer)
        if len(self.tokenizer) > self.vocabulary_size:
            raise UserError(
                f"the tokenizer has {len(self.tokenizer)} tokens, the model {self.vocabulary_size}: set vocab_size to that"
            )
        self._around = AroundLmHead(self.model)
        self.adapter = None if lora is None else adapt(self.model, lora)
        run = torch.compile(self.model.base_model) if compile else self.model.base_model
        self._run = (run,)  # a tuple, so that the compiled twin is no second submodule
        self.routing = routed_config(self.model)
        self._balances: list[tuple[Tensor, Tensor]] = []  # of the forwards of a step: balancing loss and load
        names = [*self.objective.figures, *(("balance", *FIGURES) if self.routing else ())]
        self.means = Means(names)

    @property
    def vocabulary_size(self) -> int:
        return self.model.config.vocab_size

    @property
    def unembedding(self) -> tuple[Tensor, ...]:
        """The matrices (V,D) and, where the lm_head has a bias, (V,1) whose products with `hidden` make logits."""
        lm_head = self.model.get_output_embeddings()
        return (lm_head.weight,) if lm_head.bias is None else (lm_head.weight, lm_head.bias[:, None])

    @property
    def finish(self) -> Finish | None:
        """What the model makes of these products: see `chunked_loss`."""
        return self._around.finisher

    def hidden(self, ids: Tensor, segments: Tensor | None = None) -> Tensor:
        """What `unembedding` multiplies, for ids (B,T): last hidden states (B,T,D), with a column of ones where the lm_head has a
        bias; segments (B,T) of packed rows as in Packing."""
        states = self._around.before(self._states(ids, segments))
        return states if len(self.unembedding) == 1 else torch.cat([states, torch.ones_like(states[..., :1])], dim=-1)

    def _states(self, ids: Tensor, segments: Tensor | None) -> Tensor:
        (run,) = self._run
        options = {} if segments is None else packed_options(self.model, Packing(segments))
        if self.routing is None:
            return run(input_ids=ids, use_cache=False, **options).last_hidden_state
        output = run(input_ids=ids, use_cache=False, output_router_logits=True, **options)
        real = real_positions(ids, segments, self.tokenizer.pad_token_id)
        self._balances.append(balance(output.router_logits, self.routing.experts, self.routing.top_k, real))
        return output.last_hidden_state

    def figures(self, batch: dict[str, Tensor]) -> tuple[Tensor, Figures]:
        """The loss to train on, and what is logged: the objective's figures, and of a mixture of experts the balancing loss
        (which the first one holds, times its coefficient) with how evenly they are used."""
        self._balances = []
        figures = self.objective(self, **batch)
        loss, count = figures["loss"]
        if self.routing is None:
            return loss, figures
        losses, loads = zip(*self._balances)
        balanced = torch.stack(losses).mean()
        routing = {"balance": balanced.detach(), **usage(torch.stack(loads).mean(dim=0))}
        figures |= {name: (value, count) for name, value in routing.items()}
        return loss + self.routing.coefficient * balanced, figures

    def configure_model(self) -> None:
        """Called when the data are there, and before a checkpoint is restored: what an objective takes from the model as it
        was at the start, it takes here."""
        self.objective.begin(self)

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        reseed(self.trainer, self.seed, index)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """The loss of this process's rows; the figures logged are of all processes' rows."""
        loss, figures = self.figures(batch)
        means = averaged(figures)
        if "loss" in means:
            self.log("loss", means["loss"], prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in means.items()})
        return loss * shares_of(torch.tensor(figures["loss"][1], device=loss.device))

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.means.update(self.figures(batch)[1])

    def on_validation_epoch_end(self) -> None:
        for name, (mean, _) in self.means.compute().items():
            self.log(f"val/{name}", mean, prog_bar=name == "loss")

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimize(self, self.learning_rate, self.weight_decay, self.warmup)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """The model, or its adapters alone where only they are trained."""
        state = super().state_dict(*args, **kwargs)
        if self.adapter is None:
            return state
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return {name: value for name, value in state.items() if name in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.strict_loading = self.adapter is None
        if missing := set(self.state_dict()) - set(checkpoint["state_dict"]):
            raise UserError(f"the checkpoint lacks {len(missing)} of the model's tensors, {min(missing)} among them")

    def save_pretrained(self, folder: Path, dtype: torch.dtype) -> None:
        """Leave model and tokenizer in `folder` as a stock Hugging Face directory, adapters merged in; these lie in
        `folder`-adapter besides. Training is over then: the model is in `dtype`."""
        model = self.model
        if self.adapter is not None:
            self.adapter.save_pretrained(folder.with_name(folder.name + "-adapter"))
            model = self.adapter.merge_and_unload()
        model.to(dtype).save_pretrained(folder)  # type: ignore[arg-type]  # transformers wraps `to` without its types
        self.tokenizer.save_pretrained(folder)


def new_model(sizes: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A model of these sizes with random weights, in fp32. Raises UserError for sizes that make none."""
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    if "model_type" not in sizes:
        raise UserError("model.init_args.model has no model_type: llama, qwen3, ernie4_5_moe, ...")
    try:
        config = AutoConfig.for_model(**{"bos_token_id": None, **ends, **sizes})
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except (ValueError, TypeError, KeyError, RuntimeError, ZeroDivisionError, AttributeError) as error:
        raise UserError(
            f"no {sizes['model_type']} model has these sizes: {' '.join(str(error).split())[:300]}"
        ) from error


def own_tokenizer(sizes: dict[str, Any]) -> PreTrainedTokenizerBase:
    """A byte-level BPE of the sizes' `vocab_size`, trained on the project's own dialogues."""
    from mhc.corpus import dialogues
    from mhc.lm.tokenizer import train_tokenizer

    texts = (turn["content"] for dialogue in dialogues(20_000) for turn in dialogue["messages"])
    return train_tokenizer(texts, sizes["vocab_size"])
