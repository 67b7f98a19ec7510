"""Language models to train: those of configs/lm/models made small, and a module with an objective."""

import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.lm.module import LMModule
from tests.helpers.backbones import SIZES
from tests.helpers.runs import ROOT

FILES = {path.stem: path for path in sorted((ROOT / "configs/lm/models").glob("*.yaml"))}
NARROW = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 61, "head_dim": 8}
ENDS = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
TEXT = ["<think>\none and two\n</think>\n<answer>\nthree\n</answer>", "a question with some words"]


def sizes_of(name: str) -> dict:
    """What the file says of the model."""
    return yaml.safe_load(FILES[name].read_text())["model"]["init_args"]["model"]


def shrunk(name: str, **changes) -> AutoModelForCausalLM:
    """The file's architecture with a few narrow layers, these scaled up so that its choices are neither ties nor, the
    embeddings being tied, the same token again and again."""
    sizes, narrow = sizes_of(name), dict(NARROW)
    if "moe_intermediate_size" in sizes:
        narrow["moe_intermediate_size"] = 32
    if "head_dim" not in sizes:
        narrow.pop("head_dim")
    torch.manual_seed(0)
    config = AutoConfig.for_model(**(sizes | narrow | ENDS | changes))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for part, parameter in model.named_parameters():
            if parameter.ndim > 1 and ".layers." in part and not part.endswith("e_score_correction_bias"):
                parameter.mul_(16)
    return model


def a_module(tokenizer, objective, width: int = 32, **more) -> LMModule:
    """A tiny Llama whose choices are no ties, and its objective."""
    torch.manual_seed(0)
    sizes = SIZES | {"model_type": "llama", "vocab_size": 300, "hidden_size": width}
    module = LMModule(sizes, tokenizer, objective, learning_rate=0.01, **more)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return module
