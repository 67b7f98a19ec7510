"""Grow a trained model deeper by copies of some layers that add nothing at first (block expansion, LLaMA Pro,
arXiv 2401.02415). For target models with more layers than the project's own small ones.

    python benchmarks/grow.py runs/lm/dpo/model runs/grown/start --after 2 5
    python run.py fit --config configs/lm/training.yaml --config configs/lm/sft.yaml --config configs/trainer/cpu.yaml \
        --model.model runs/grown/start --data.path runs/lm/answers.jsonl --data.batch_size 8 --model.learning_rate 5e-4 \
        --trainer.max_epochs -1 --trainer.max_steps 40 --trainer.check_val_every_n_epoch null --trainer.val_check_interval 40 \
        --trainer.default_root_dir runs/grown

The second command trains the new layers; the model is then runs/grown/model.
"""

import argparse
import copy

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a folder of a Llama")
    parser.add_argument("out", help="the folder to write")
    parser.add_argument("--after", type=int, nargs="+", default=[2, 5], metavar="N", help="layers that are copied")
    options = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    layers = []
    for number, layer in enumerate(model.model.layers):
        layers.append(layer)
        if number in options.after:
            layers.append(copy.deepcopy(layer))
            layers[-1].self_attn.o_proj.weight.zero_()
            layers[-1].mlp.down_proj.weight.zero_()
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    grown = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    weights = {name: weight for name, weight in model.state_dict().items() if ".layers." not in name}
    for number, layer in enumerate(layers):
        weights |= {f"model.layers.{number}.{name}": weight for name, weight in layer.state_dict().items()}
    grown.load_state_dict(weights)
    ids = torch.arange(20)[None]
    assert torch.allclose(grown(ids).logits, model(ids).logits, atol=1e-4), "the new layers add something"
    grown.generation_config = model.generation_config
    grown.to(torch.bfloat16).save_pretrained(options.out)
    AutoTokenizer.from_pretrained(options.model).save_pretrained(options.out)
    print(f"{options.out}: {len(layers)} layers instead of {model.config.num_hidden_layers}")


if __name__ == "__main__":
    main()
