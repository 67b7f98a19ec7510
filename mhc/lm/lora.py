"""Low-rank adapters (LoRA, arXiv 2106.09685) by the peft library: trained beside a model that is not changed."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from mhc.errors import UserError


@dataclass(frozen=True)
class LoRA:
    """rank of the two matrices; alpha: their product is scaled by alpha / rank; dropout before them; targets: names of the
    linear layers that get adapters, all-linear for all but the lm_head."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: str | list[str] = "all-linear"


def adapt(model: PreTrainedModel, lora: LoRA) -> Any:
    """Put adapters that start at zero into `model`, and freeze everything else. Returns peft's view of it, which saves,
    merges (merge_adapter) and unmerges (unmerge_adapter) them. Raises UserError where peft is missing or finds none of the
    targets."""
    try:
        from peft import LoraConfig, get_peft_model
    except ModuleNotFoundError as error:
        raise UserError("LoRA needs peft, which is not installed: pip install -e '.[lora]'") from error
    try:
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,  # type: ignore[arg-type]  # peft says int and divides by rank
            lora_dropout=lora.dropout,
            target_modules=lora.targets,
            task_type="CAUSAL_LM",
        )
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"model.init_args.lora: {' '.join(str(error).split())[:300]}") from error
