"""How good a target is a backbone? Loops, endings and samples of its greedy answers to held-out prompts.

    python benchmarks/pocket.py [--backbone pocket] [--data pocket] [--prompts 100] [--samples 10]

Writes benchmarks/results/pocket.json: the share of answers with a loop (the same 8-gram of tokens
three times: looping text makes every drafter look good), the share that end by themselves, the loss on the
validation split of the backbone's own corpus, the corpus' content hash, and sample answers.
"""

import argparse
from collections import Counter

import torch

from common import result, write
from datamodules import ConversationData
from mhc.backbone.model import Backbone
from mhc.corpus import fingerprint
from mhc.engine import Engine
from mhc.training.losses import chunked_loss

CORPUS = {"count": 150_000, "seed": 0}  # as in configs/lm/pocket.yaml


def loops(ids: list[int], size: int = 8, times: int = 3) -> bool:
    """Whether any `size`-gram of tokens occurs `times` times."""
    grams = Counter(tuple(ids[i : i + size]) for i in range(len(ids) - size + 1))
    return max(grams.values(), default=0) >= times


@torch.inference_mode()
def validation_losses(backbone: Backbone, data: ConversationData) -> list[float]:
    """Mean cross-entropy of the assistant tokens, batch by batch."""
    losses = []
    for batch in data.val_dataloader():
        hidden, valid = backbone.features(batch["ids"]).hidden[:, :-1], batch["mask"][:, 1:]
        weight = backbone.model.get_output_embeddings().weight
        losses.append(float(chunked_loss(hidden[valid], (weight,), batch["ids"][:, 1:][valid]).loss))
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--data", default="pocket")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()

    engine = Engine(Backbone.load(options.backbone, decoding=False))
    data = ConversationData(options.data, limit=20_000 if options.data == "pocket" else None, batch_size=16)
    data.tokenizer = engine.backbone.tokenizer
    prompts = data.prompts("test", options.prompts)
    answers = dict(engine.generate_ids([prompt.ids for prompt in prompts], 256, batch_size=16))
    answers = [answers[number] for number in range(len(prompts))]
    samples = [
        {"prompt": prompt.messages[-1]["content"], "answer": answer.text}
        for prompt, answer in list(zip(prompts, answers))[:: len(prompts) // options.samples][: options.samples]
    ]
    for sample in samples:
        print(f"\n> {sample['prompt']}\n{sample['answer']}")
    print()
    corpus = {**CORPUS, "sha256": fingerprint(**CORPUS)} if options.data == "pocket" else options.data
    write(
        "pocket" if options.backbone == "pocket" else "backbone",
        [
            result("validation", "loss", validation_losses(engine.backbone, data)),
            result("answers", "loop_share", [sum(loops(a.token_ids) for a in answers) / len(answers)]),
            result("answers", "ends_by_itself_share", [sum(a.finish_reason == "stop" for a in answers) / len(answers)]),
            result("answers", "tokens", [len(a.token_ids) for a in answers]),
        ],
        backbone=options.backbone,
        parameters=sum(parameter.numel() for parameter in engine.backbone.model.parameters()),
        corpus=corpus,
        prompts=len(prompts),
        samples=samples,
    )


if __name__ == "__main__":
    main()
