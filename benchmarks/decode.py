"""Decoding speed: transformers, our plain decoder and each drafter, interleaved on the same prompts.

    python benchmarks/decode.py [--runs runs/quickstart] [--prompts 40] [--repeats 3]

Needs trained heads (`make quickstart`). Writes benchmarks/results/decode.json: per drafter the speedup
over plain decoding (median of the paired ratios by prompt), tokens per step, and what a round costs
in its parts: growing the tree, the verifying forward, and the whole round against their sum.
"""

import argparse
from pathlib import Path

import torch

from common import result, timed, write
from datamodules import ConversationData
from mhc.backbone import Features
from mhc.checkpoint import load_drafter
from mhc.engine import Engine, Rows

NEW = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs/quickstart")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    engines = {}
    backbone = None
    for folder in sorted(path.parent for path in Path(options.runs).glob("*/drafter.json")):
        drafter, tree = load_drafter(folder, backbone)
        backbone = drafter.backbone
        engines[folder.name] = Engine(backbone, drafter, tree)
    if not engines:
        raise SystemExit(f"no heads below {options.runs}: run `make quickstart` first")
    data = ConversationData(str(Path(options.runs) / "answers.jsonl"))
    data.tokenizer = backbone.tokenizer
    prompts = [prompt.ids for prompt in data.prompts("test", options.prompts)]
    plain = Engine(backbone)

    ratios: dict[str, list[float]] = {"transformers": [], **{name: [] for name in engines}}
    tokens: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(options.repeats):
        for prompt in prompts:
            base, answer = timed(lambda prompt=prompt: plain.generate(prompt, NEW))
            seconds, stock = timed(lambda prompt=prompt: transformers_generate(backbone, prompt))
            assert stock == answer.token_ids, "plain decoding differs from transformers"
            ratios["transformers"].append(seconds / base)
            for name, engine in engines.items():
                seconds, drafted = timed(lambda engine=engine, prompt=prompt: engine.generate(prompt, NEW))
                assert drafted.token_ids == answer.token_ids, f"{name} differs from plain decoding"
                ratios[name].append(base / seconds)
                tokens[name].append((len(drafted.token_ids) - 1) / max(1, drafted.steps - 1))
    results = [result("plain/T=0/batch=1", "speedup_vs_transformers", ratios["transformers"])]
    for name, engine in engines.items():
        case = f"{name}/fixed/T=0/batch=1"
        results.append(result(case, "speedup_vs_plain", ratios[name]))
        results.append(result(case, "tokens_per_step", tokens[name]))
        results += [result(case, metric, values) for metric, values in parts(engine, prompts[0]).items()]
    write("decode", results, prompts=len(prompts), repeats=options.repeats)


def transformers_generate(backbone, prompt: list[int]) -> list[int]:
    """The new tokens of the stock greedy generate."""
    ids = torch.tensor([prompt])
    out = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False)
    return out[0, len(prompt) :].tolist()


@torch.inference_mode()
def parts(engine: Engine, prompt: list[int], repeats: int = 60) -> dict[str, list[float]]:
    """Milliseconds of a plain step, of growing the tree, of the verifying forward and of a whole round,
    interleaved, and the round over the sum of growing and verifying (its host overhead)."""
    backbone, drafter = engine.backbone, engine.drafter
    rows = Rows(engine, [prompt], [NEW * 8], 1, speculate=True)
    rows.join(0, engine._prefill(rows, 0, prompt, speculate=True), NEW * 8)
    rows.cache.select(0, 1)
    length = rows.cache.lengths[0]

    def rewind() -> None:
        rows.cache.lengths[0] = length
        rows.cache.select(0, 1)

    def grow():
        return engine.tree.grow(drafter, drafter.begin(rows.memory, rows.active), rows.root)

    def verify():
        mask = rows.masks(tree.ancestors, tree.depth)
        return backbone.decode(tree.tokens, rows.positions(tree.depth), rows.cache, mask, last_only=False)

    tree = grow()
    found: dict[str, list[float]] = {
        "plain_ms": [],
        "draft_ms": [],
        "verify_ms": [],
        "round_ms": [],
        "round_vs_parts": [],
    }
    memory = rows.memory.clone() if isinstance(rows.memory, torch.Tensor) else rows.memory
    root = rows.root.clone()
    for _ in range(repeats):
        plain = timed(lambda: engine._plain(rows))[0]
        rewind()
        rows.root = root.clone()
        draft, check = timed(grow)[0], timed(verify)[0]
        whole = timed(lambda: engine._speculate(rows))[0]
        rewind()
        rows.root = root.clone()
        drafter.read(rows.memory, rows.active, Features(memory[:, None]), torch.ones(1, dtype=torch.long))
        for name, seconds in (("plain_ms", plain), ("draft_ms", draft), ("verify_ms", check), ("round_ms", whole)):
            found[name].append(1000 * seconds)
        found["round_vs_parts"].append(whole / (draft + check))
    return {name: values[5:] for name, values in found.items()}


if __name__ == "__main__":
    main()
