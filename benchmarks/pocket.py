"""How good a target is a backbone? Loops, endings and samples of its greedy answers to held-out prompts.

    python benchmarks/pocket.py [--backbone pocket] [--data pocket] [--prompts 100] [--samples 10]

Writes benchmarks/results/pocket.json. A loop is the same 8-gram of tokens three times in one answer.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from datamodules import ConversationData
from mhc.backbone import Backbone
from mhc.engine import Engine


def loops(ids: list[int], size: int = 8, times: int = 3) -> bool:
    """Whether any `size`-gram of tokens occurs `times` times."""
    grams = Counter(tuple(ids[i : i + size]) for i in range(len(ids) - size + 1))
    return max(grams.values(), default=0) >= times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="pocket")
    parser.add_argument("--data", default="pocket")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--samples", type=int, default=10)
    options = parser.parse_args()

    engine = Engine(Backbone.load(options.backbone))
    data = ConversationData(options.data, limit=20_000 if options.data == "pocket" else None)
    data.tokenizer = engine.backbone.tokenizer
    prompts = data.prompts("test", options.prompts)
    answers = dict(engine.generate_ids([prompt.ids for prompt in prompts], 256, batch_size=16))
    for number in range(min(options.samples, len(prompts))):
        print(f"\n> {prompts[number].messages[-1]['content']}\n{answers[number].text}")
    print(
        f"\n{len(prompts)} prompts, {sum(loops(a.token_ids) for a in answers.values())} loops, "
        f"{sum(a.finish_reason == 'stop' for a in answers.values())} end by themselves, "
        f"{sum(len(a.token_ids) for a in answers.values()) / len(prompts):.0f} tokens an answer"
    )


if __name__ == "__main__":
    main()
