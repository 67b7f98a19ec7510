"""Decoding speed: transformers, our plain decoder and each drafter's trees, interleaved on the same prompts.

    python run.py tune --checkpoint runs/quickstart/cascade      (and every other drafter)
    python benchmarks/decode.py [--runs runs/quickstart] [--prompts 60] [--repeats 2]

Needs trained and tuned heads. Writes benchmarks/results/decode.json:

    <drafter>/<tree>/T=<temperature>/batch=<rows>    speedup_vs_plain (same temperature and rows), tokens_per_step
                                                     (bonus counted), throughput_vs_plain_batch1
    ... batch=1 as well                              round_vs_parts: a round over its drafting plus its verification,
                                                     timed apart, with plain_ms, draft_ms, verify_ms, round_ms; and
                                                     slowest_category_speedup (median of its prompts)
    plain/T=0/batch=1                                speedup_vs_transformers, the model as transformers loads it; and
                                                     speedup_vs_transformers_same_layout, on our weight layout
    prompt_lookup/T=0/batch=1                        transformers' prompt lookup, speedup_vs_plain
    context/<tokens>                                 step_ms and attention_ms of a plain step at this context

Trees: `fixed` the one the heads were trained with, `dynamic` 16 likeliest nodes, `tuned` that of `run.py tune`.
At batch 1 a value is the median over prompts of paired ratios, low and high their quartiles; at larger batches, over
repeats. Every text is compared with plain decoding's; any difference stops the benchmark.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch

from common import result, timed, write
from datamodules import ConversationData
from mhc.backbone.attention import tree_attention
from mhc.backbone.loading import load_model
from mhc.checkpoints.heads_folder import DESCRIPTION, TUNED, for_decoding, load_drafter, tuned_tree
from mhc.decoding.decoder import PlainDecoder
from mhc.decoding.request import DecodeRequest
from mhc.engine import Engine
from mhc.evaluation.decode_benchmark import round_parts
from mhc.sampling import GREEDY, Sampling
from mhc.trees.shapes import DynamicTree, parse_tree

NEW = 128
BATCHES = (4, 16)
CONTEXTS = (128, 256, 512, 1024, 2048)
SAMPLINGS = {"T=0": GREEDY, "T=0.8": Sampling(temperature=0.8, seed=1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", default="runs/quickstart")
    parser.add_argument("--prompts", type=int, default=60)
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()

    engines, backbone = load_engines(Path(options.runs))
    data = ConversationData(str(Path(options.runs) / "answers.jsonl"))
    data.tokenizer = backbone.tokenizer
    prompts = data.prompts("test", options.prompts)
    ids = [prompt.ids for prompt in prompts]
    topics = [prompt.id.split("-")[0] for prompt in prompts]  # the pocket corpus names them so
    plain, results, by_topic = Engine(backbone), [], {}
    for label, sampling in SAMPLINGS.items():
        results += one_by_one(plain, engines, ids, topics, label, sampling, options.repeats, by_topic)
        for rows in BATCHES:
            results += together(plain, engines, ids, label, sampling, rows, options.repeats + 1)
    for name, engine in engines.items():
        if name.endswith("/tuned"):
            shares = [round_parts(engine, prompt) for prompt in ids[:6]]
            results += [
                result(f"{name}/T=0/batch=1", metric, [share[metric] for share in shares]) for metric in shares[0]
            ]
    results += contexts(backbone)
    write("decode", results, prompts=len(ids), repeats=options.repeats, heads=options.runs, categories=by_topic)


def load_engines(runs: Path) -> tuple[dict[str, Engine], object]:
    """Every drafter below `runs` with its three trees, all on one backbone."""
    engines, backbone = {}, None
    for folder in sorted(path.parent for path in runs.glob(f"*/{DESCRIPTION}")):
        drafter = for_decoding(load_drafter(folder, backbone)[0])
        backbone, tuned = drafter.backbone, tuned_tree(folder)
        if tuned is None:
            raise SystemExit(f"{folder / TUNED} is missing: run `python run.py tune --checkpoint {folder}` first")
        trained_with = parse_tree(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))["tree"])
        shapes = {"fixed": trained_with, "dynamic": DynamicTree(3, drafter.draft_length, 16), "tuned": tuned}
        engines |= {f"{folder.name}/{name}": Engine(backbone, drafter, shape) for name, shape in shapes.items()}
    if backbone is None:
        raise SystemExit(f"no heads below {runs}: run `make quickstart` first")
    return engines, backbone


def one_by_one(plain, engines, prompts, topics, label, sampling, repeats, by_topic) -> list[dict]:
    """Batch 1: every prompt decoded by all engines, one after the other."""
    stock = load_model(plain.backbone.name, torch.float32).eval()
    ratios = {name: [] for name in ["transformers", "same_layout", "prompt_lookup", *engines]}
    tokens = {name: [] for name in engines}
    for repeat in range(repeats + 1):
        for prompt in prompts if repeat else prompts[:2]:  # the first pass warms up
            base, answer = timed(lambda prompt=prompt: plain.generate(prompt, NEW, sampling=sampling))
            if sampling is GREEDY:
                for name, model, extra in (
                    ("transformers", stock, {}),
                    ("same_layout", plain.backbone.model, {}),
                    ("prompt_lookup", stock, {"prompt_lookup_num_tokens": 4}),
                ):
                    seconds, stock_tokens = timed(
                        lambda prompt=prompt, model=model, extra=extra: transformers_generate(model, prompt, **extra)
                    )
                    assert stock_tokens == answer.token_ids, f"{name} differs from plain decoding"
                    ratios[name].append(base / seconds if name == "prompt_lookup" else seconds / base)
            for name, engine in engines.items():
                seconds, drafted = timed(
                    lambda engine=engine, prompt=prompt: engine.generate(prompt, NEW, sampling=sampling)
                )
                assert drafted.token_ids == answer.token_ids, f"{name} differs from plain decoding"
                ratios[name].append(base / seconds)
                tokens[name].append((len(drafted.token_ids) - 1) / max(1, drafted.steps - 1))
        if repeat == 0:
            for values in (*ratios.values(), *tokens.values()):
                values.clear()

    def by_prompt(values: list[float]) -> list[float]:
        return [median(values[index :: len(prompts)]) for index in range(len(prompts))]

    results = []
    if sampling is GREEDY:
        results.append(result("plain/T=0/batch=1", "speedup_vs_transformers", by_prompt(ratios["transformers"]), True))
        layout = by_prompt(ratios["same_layout"])
        results.append(result("plain/T=0/batch=1", "speedup_vs_transformers_same_layout", layout, True))
        results.append(
            result("prompt_lookup/T=0/batch=1", "speedup_vs_plain", by_prompt(ratios["prompt_lookup"]), True)
        )
    for name in engines:
        case, speedups = f"{name}/{label}/batch=1", by_prompt(ratios[name])
        results.append(result(case, "speedup_vs_plain", speedups, True))
        results.append(result(case, "tokens_per_step", by_prompt(tokens[name]), True))
        by_category = {topic: [s for s, t in zip(speedups, topics) if t == topic] for topic in sorted(set(topics))}
        by_topic[case] = {
            topic: {"speedup": round(median(v), 3), "prompts": len(v)} for topic, v in by_category.items()
        }
        results.append(
            result(case, "slowest_category_speedup", [min(median(values) for values in by_category.values())])
        )
    return results


def together(plain, engines, prompts, label, sampling, rows, repeats) -> list[dict]:
    """Many prompts in a ragged batch: new tokens per second over plain decoding with the same number of rows, and with one."""
    expected, seconds = None, {}
    for _ in range(repeats):
        for name, engine, size in [
            ("alone", plain, 1),
            ("plain", plain, rows),
            *((n, e, rows) for n, e in engines.items()),
        ]:
            spent, answers = timed(
                lambda engine=engine, size=size: dict(engine.generate_ids(prompts, NEW, size, sampling=sampling))
            )
            texts = [answers[number].token_ids for number in range(len(prompts))]
            expected = expected or texts
            assert texts == expected, f"{name} with {size} rows differs from plain decoding"
            seconds.setdefault(name, []).append(spent)
    results = []
    for name in ("plain", *engines):
        case = f"{name}/{label}/batch={rows}"
        if name != "plain":
            results.append(result(case, "speedup_vs_plain", [p / s for p, s in zip(seconds["plain"], seconds[name])]))
        results.append(
            result(case, "throughput_vs_plain_batch1", [a / s for a, s in zip(seconds["alone"], seconds[name])])
        )
    return results


def transformers_generate(model, prompt: list[int], **options) -> list[int]:
    """The new tokens of the stock greedy generate."""
    ids = torch.tensor([prompt])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **options)
    return out[0, len(prompt) :].tolist()


@torch.inference_mode()
def contexts(backbone, repeats: int = 40) -> list[dict]:
    """Time of a plain step as the context grows, and its share of attention, which has to grow. (The pocket runs at
    positions it was not trained on: the text is nonsense, the work is the same.)"""
    limit = backbone.context
    backbone.context = max(CONTEXTS) + 8
    decoder = PlainDecoder(backbone, 1, max(CONTEXTS) + 1)
    decoder.begin([DecodeRequest([1] * max(CONTEXTS), 1)])
    cache = decoder.batch.cache
    text = backbone.model.config.get_text_config(decoder=True)
    heads, width = text.num_attention_heads, cache.layers[0].keys.shape[-1]
    query, attention = torch.randn(1, heads, 1, width), backbone.model.base_model.layers[0].self_attn
    milliseconds = {}
    for _ in range(repeats):
        for length in CONTEXTS:
            cache.lengths[0] = length
            milliseconds.setdefault((length, "step_ms"), []).append(1000 * timed(decoder.decode_round)[0])

            def attend(length=length) -> None:
                for layer in cache.layers:
                    keys, values = layer.keys[:, :, :length], layer.values[:, :, :length]
                    tree_attention(attention, query, keys, values, None, scaling=0.1)

            milliseconds.setdefault((length, "attention_ms"), []).append(1000 * timed(attend)[0])
    backbone.context = limit
    results = [result(f"context/{length}", metric, values, True) for (length, metric), values in milliseconds.items()]
    rest = {
        n: [s - a for s, a in zip(milliseconds[n, "step_ms"], milliseconds[n, "attention_ms"])]
        for n in (CONTEXTS[0], CONTEXTS[-1])
    }
    growth = [last / first for first, last in zip(rest[CONTEXTS[0]], rest[CONTEXTS[-1]])]
    return [*results, result(f"context/{CONTEXTS[-1]}", f"step_without_attention_vs_{CONTEXTS[0]}", growth, True)]


if __name__ == "__main__":
    main()
