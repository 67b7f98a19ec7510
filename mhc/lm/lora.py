"""Low-rank adapters (LoRA, arXiv 2106.09685) by the peft library: trained beside a model that stays as it is."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from mhc.errors import UserError


@dataclass(frozen=True)
class LoRA:
    """rank of the two matrices, alpha: their product counts alpha / rank, dropout before them, targets: the names of
    the linear layers that get some; all-linear is all but the lm_head."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


def adapt(model: PreTrainedModel, lora: LoRA) -> Any:
    """Put adapters that change nothing yet into `model`, and freeze everything else. Returns peft's view of it, which saves,
    merges (merge_adapter) and takes apart again (unmerge_adapter). Raises UserError where peft is missing or finds none
    of the targets."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise UserError("LoRA needs peft, not installed here: pip install -e '.[lora]'") from error
    try:
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"model.init_args.lora: {' '.join(str(error).split())[:300]}") from error
