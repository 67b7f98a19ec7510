"""MiniCPM4's published files as a stock Llama directory.

    python configs/backbone/minicpm4_to_llama.py DIR OUT

Transformers has no class for MiniCPM4, and the code that comes with its files is not run here. Its layers are Llama's
with three constants of the config, each of which is a factor of weights (MiniCPM, arXiv 2404.06395, section 4;
MiniCPM4, 2506.07900):

    embeddings       * scale_emb
    layer outputs    * scale_depth / sqrt(layers)       o_proj and down_proj, whose outputs are added to the residual
    before lm_head   * dim_model_base / width           the final norm's weight

Products are made in fp32 and rounded to the files' precision once, where the model's own code rounds at every use.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from mhc.errors import UserError
from mhc.util.files import write_json

OWN = ("auto_map", "scale_emb", "scale_depth", "dim_model_base", "use_mup", "sparse_config", "mup_denominator")


def factor(name: str, config: dict) -> float:
    """What the weight of this name is multiplied by."""
    if name == "model.embed_tokens.weight":
        return config["scale_emb"]
    if name.endswith(("o_proj.weight", "down_proj.weight")):
        return config["scale_depth"] / config["num_hidden_layers"] ** 0.5
    return config["dim_model_base"] / config["hidden_size"] if name == "model.norm.weight" else 1.0


def convert(source: Path, target: Path) -> None:
    """Write the Llama that computes what the MiniCPM4 in `source` does. Raises UserError where that is another model."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no readable config.json in '{source}' ({error}): give the folder of MiniCPM4's files"
        ) from error
    shards = sorted(source.glob("*.safetensors"))
    if config.get("model_type") not in ("minicpm", "minicpm4") or not shards:
        raise UserError(
            f"'{source}' is not MiniCPM4 (model_type {config.get('model_type')}, {len(shards)} shards): give the folder of its files"
        )
    target.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for shard in shards:
        tensors = load_file(shard)
        folded = {}
        for name, tensor in tensors.items():
            folded[name] = (tensor.float() * factor(name, config)).to(tensor.dtype)
            if name == "model.embed_tokens.weight" and config.get("tie_word_embeddings"):
                folded["lm_head.weight"] = tensor  # no longer the same matrix
        save_file(folded, target / shard.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(folded, shard.name)
    write_json(target / "model.safetensors.index.json", {"metadata": {}, "weight_map": weight_map})
    for file in source.iterdir():
        if (
            file.suffix in (".json", ".model", ".jinja", ".txt")
            and file.name != "config.json"
            and "index" not in file.name
        ):
            shutil.copy(file, target / file.name)
    stock = {name: value for name, value in config.items() if name not in OWN}
    about = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "tie_word_embeddings": False}
    write_json(target / "config.json", stock | about)  # last: with it the folder is complete


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    try:
        torch.set_grad_enabled(False)
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"error: {error}")
