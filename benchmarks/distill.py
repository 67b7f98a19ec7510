"""Distillation's speed: our engine in batches, plain and with heads, against transformers' generate in batches.

    python benchmarks/distill.py [--checkpoint runs/quickstart/cascade] [--compile] [--prompts 512] [--batch_size 32]
        [--repeats 3]

Writes benchmarks/results/distill.json:

    plain/batched      speedup_vs_transformers             the model as transformers loads it, the same batch size
                       speedup_vs_transformers_same_layout on our weight layout
                       tokens_per_second
    <heads>/batched    the same with heads (--checkpoint), and speedup_vs_plain
    .../compiled       the same (--compile), once compiled; seconds_to_compile

    each               texts_parted_at_ties                whose first difference is between the two likeliest tokens, with
                                                           logits within TIE of each other: rounding decides

The same prompts, answered greedily; transformers gets them sorted by length, so that it pads least, and stops a batch when
its last row has ended. All are interleaved; every text is compared, and any other difference stops the benchmark.
"""

import argparse
from pathlib import Path
from statistics import median

import torch

from common import result, timed, write
from datamodules import ConversationData
from mhc.backbone.loading import load_model
from mhc.backbone.model import Backbone
from mhc.engine import Engine

TIE = 1e-5  # in units of logits, which are about 10: a few fp32 roundings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--data", default="pocket")
    parser.add_argument("--checkpoint", help="heads to measure as well")
    parser.add_argument("--compile", action="store_true", help="measure compiled plain steps as well")
    parser.add_argument("--prompts", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--max_new_tokens", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    backbone = Backbone.load(options.backbone)
    engines = {"plain/batched": Engine(backbone)}
    for kind in ("batched", "compiled") if options.compile else ("batched",):
        if kind == "compiled":
            engines[f"plain/{kind}"] = Engine(Backbone.load(options.backbone), compile=True)
        if options.checkpoint:
            engine = Engine.from_checkpoint(options.checkpoint, options.backbone, compile=kind == "compiled")
            engines[f"{Path(options.checkpoint).name}/{kind}"] = engine.with_large_batch_tree()
    stock = load_model(options.backbone, torch.float32).eval()
    data = ConversationData(options.data, limit=20_000 if options.data == "pocket" else None)
    data.tokenizer = backbone.tokenizer
    prompts = sorted((prompt.ids for prompt in data.prompts("train", options.prompts)), key=len)
    pad = backbone.tokenizer.pad_token_id or 0
    runners = {
        "transformers": lambda: transformers_batches(stock, prompts, options, pad, engines["plain/batched"].end_ids),
        "same_layout": lambda: transformers_batches(
            backbone.model, prompts, options, pad, engines["plain/batched"].end_ids
        ),
    }
    for name, engine in engines.items():
        runners[name] = lambda engine=engine: ours(engine, prompts, options)
    seconds: dict[str, list[float]] = {name: [] for name in runners}
    expected, first, ties = None, {}, {}
    for repeat in range(options.repeats + 1):
        for name in sorted(runners, key=lambda name: (list(runners).index(name) + repeat) % len(runners)):
            spent, texts = timed(runners[name])
            expected = expected or texts
            ties[name] = require_same(name, expected, texts, prompts, stock)
            if repeat:
                seconds[name].append(spent)
            else:  # the first pass warms up
                first[name] = spent
    tokens = sum(map(len, expected))
    results = []
    others = {"transformers": "transformers", "same_layout": "transformers_same_layout", "plain/batched": "plain"}
    for name in engines:
        results.append(result(name, "tokens_per_second", [tokens / spent for spent in seconds[name]]))
        for other, label in others.items():
            if name != other:
                ratios = [theirs / mine for theirs, mine in zip(seconds[other], seconds[name])]
                results.append(result(name, f"speedup_vs_{label}", ratios))
        results.append(result(name, "texts_parted_at_ties", [ties[name]]))
        if name.endswith("compiled"):
            results.append(result(name, "seconds_to_compile", [first[name] - median(seconds[name])]))
    shape = {name: getattr(options, name) for name in ("batch_size", "max_new_tokens", "backbone", "data")}
    write("distill", results, prompts=len(prompts), tokens=tokens, **shape)


@torch.inference_mode()
def require_same(name: str, expected: list[list[int]], texts: list[list[int]], prompts: list[list[int]], model) -> int:
    """How many texts diverge at a tie; raises AssertionError for other differences."""
    diverging = [number for number, text in enumerate(texts) if text != expected[number]]
    for number in diverging:
        pairs = zip(expected[number], texts[number])
        first = next(place for place, (a, b) in enumerate(pairs) if a != b)
        logits = model(torch.tensor([prompts[number] + expected[number][:first]])).logits[0, -1]
        gap = float(logits.max() - logits[[expected[number][first], texts[number][first]]].min())
        assert gap < TIE, f"{name} differs at prompt {number}, by a token {gap:.1e} less likely"
    return len(diverging)


def ours(engine: Engine, prompts: list[list[int]], options: argparse.Namespace) -> list[list[int]]:
    """The new tokens of every prompt; as `run.py distill` does it, long prompts first."""
    answers = dict(engine.generate_ids(prompts[::-1], options.max_new_tokens, options.batch_size))
    return [answers[number].token_ids for number in range(len(prompts))][::-1]


@torch.inference_mode()
def transformers_batches(model, prompts, options: argparse.Namespace, pad: int, ends: set[int]) -> list[list[int]]:
    """The same from the stock greedy generate, left-padded batch by batch."""
    answers = []
    for start in range(0, len(prompts), options.batch_size):
        batch = prompts[start : start + options.batch_size]
        longest = max(map(len, batch))
        ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in batch])
        out = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=options.max_new_tokens,
            do_sample=False,
            eos_token_id=sorted(ends),
            pad_token_id=pad,
        )
        for row in out[:, longest:].tolist():
            end = next((index for index, token in enumerate(row) if token in ends), len(row) - 1)
            answers.append(row[: end + 1])
    return answers


if __name__ == "__main__":
    main()
