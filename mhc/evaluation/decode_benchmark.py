"""Plain and speculative decoding of the same prompts, interleaved in one run.

The machine's speed drifts, so each prompt is decoded by all decoders one after the other, in
changing order, and the speedup is the median of the paired ratios.
"""

import copy
import time
from collections.abc import Callable, Hashable, Sequence
from statistics import median, quantiles
from typing import Any, TypeVar

import torch
from torch import Tensor

from mhc.backbone.model import Features
from mhc.decoding.request import DecodeRequest, Generation
from mhc.engine import Engine
from mhc.sampling import GREEDY, Sampling
from mhc.trees.shapes import Tree
from mhc.util.provenance import wait

Name = TypeVar("Name", bound=Hashable)


def compare(
    engine: Engine,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    sampling: Sampling = GREEDY,
) -> dict[str, Any]:
    """Decode every prompt (token ids) twice, plainly and with heads, and report as `race` does."""
    return race({"": engine}, prompts, max_new_tokens, progress, sampling)[0][""]


def race(
    engines: dict[Name, Engine],
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
    sampling: Sampling = GREEDY,
) -> tuple[dict[Name, dict[str, Any]], list[Generation]]:
    """Decode every prompt (token ids) plainly and with each engine, all on one backbone. Returns the plain answers and,
    for each engine, by the keys of `decode_benchmark.json`:

    tokens_per_step (bonus counted), accepted_histogram (how many steps accepted 0, 1, ... draft tokens),
    plain_tokens_per_second, tokens_per_second, speedup (median of the paired ratios) with its quartiles speedup_q1 and
    speedup_q3 and extremes speedup_min and speedup_max, prompts, identical (outputs that are token for token the same).
    """
    plain_answers: list[Generation] = []
    answers: dict[Name, list[Generation]] = {name: [] for name in engines}
    plain_engine = Engine(next(iter(engines.values())).backbone)
    runners = [(plain_engine, plain_answers), *((engine, answers[name]) for name, engine in engines.items())]

    def answer(engine: Engine, prompt: list[int]) -> Generation:
        return next(answer for _, answer in engine.generate_ids([prompt], max_new_tokens, sampling=sampling))

    for engine, _ in runners:
        answer(engine, prompts[0])  # warm up
    for number, prompt in enumerate(prompts):
        turn = number % len(runners)  # rotate the order
        for engine, finished in runners[turn:] + runners[:turn]:
            finished.append(answer(engine, prompt))
        if progress:
            progress(number + 1, len(prompts))
    figures = {name: _figures(engines[name], plain_answers, answers[name], max_new_tokens) for name in engines}
    return figures, plain_answers


def _figures(engine: Engine, plain: list[Generation], drafted: list[Generation], max_new_tokens: int) -> dict[str, Any]:
    histogram = [0] * (engine.tree.max_depth + 1)
    for answer in drafted:
        for accepted in answer.accepted[1:]:  # the prefill drafts nothing
            histogram[accepted] += 1
    ratios = [p.seconds / d.seconds for p, d in zip(plain, drafted)]
    quarters = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    tokens = sum(len(answer.token_ids) - 1 for answer in drafted)
    return {
        "tokens_per_step": round(tokens / max(1, sum(histogram)), 4),
        "accepted_histogram": histogram,
        "plain_tokens_per_second": round(median(len(p.token_ids) / p.seconds for p in plain), 2),
        "tokens_per_second": round(median(len(d.token_ids) / d.seconds for d in drafted), 2),
        "speedup": round(median(ratios), 4),
        "speedup_q1": round(quarters[0], 4),
        "speedup_q3": round(quarters[2], 4),
        "speedup_min": round(min(ratios), 4),
        "speedup_max": round(max(ratios), 4),
        "prompts": len(drafted),
        "identical": sum(p.token_ids == d.token_ids for p, d in zip(plain, drafted)),
        "max_new_tokens": max_new_tokens,
        "tree_nodes": engine.tree.nodes,
    }


@torch.inference_mode()
def round_parts(engine: Engine, prompt: list[int], repeats: int = 30) -> dict[str, float]:
    """Medians in milliseconds, at one position of the text, interleaved: a plain step, drafting (growing the tree, and
    observing the accepted tokens), the verifying forward, a whole round; and the round over drafting plus verifying,
    which is its host overhead."""
    backbone, drafter = engine.backbone, engine.require_drafter()
    decoder = engine.speculative_decoder(1, len(prompt) + engine.tree.max_depth + 1)
    decoder.begin([DecodeRequest(prompt, engine.tree.max_depth + 1)])
    batch = decoder.batch
    start, memory = batch.snapshot(), copy.deepcopy(decoder.memory)

    def rewind() -> None:
        batch.restore(start)
        decoder.memory = copy.deepcopy(memory)

    def grow() -> Tree:
        noise = batch.round_noise(engine.tree.max_depth)
        return engine.tree.grow(drafter, drafter.start_tree(decoder.memory, batch.active), batch.root, noise)

    def verify() -> tuple[Tensor, Features]:
        return backbone.decode(tree.tokens, *batch.forward_inputs(tree.ancestors, tree.depth), taps=decoder.taps)

    tree = grow()
    logits, features = verify()
    path = tree.paths[:, -1]  # of one of the deepest nodes
    every_row = torch.arange(len(path))[:, None]
    accepted, next_ids = features.at(every_row, path), logits.argmax(dim=-1).gather(1, path)
    counts = torch.full((1,), path.shape[1], device=path.device)
    steps: dict[str, Callable[[], Any]] = {
        "plain_ms": lambda: decoder.run(decoder.plain_step),
        "grow_ms": grow,
        "observe_ms": lambda: drafter.observe(
            decoder.memory, batch.active, accepted, next_ids, batch.cache.start, counts
        ),
        "verify_ms": verify,
        "round_ms": lambda: decoder.run(decoder.speculative_step),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            wait(backbone.device)
            started = time.perf_counter()
            step()
            wait(backbone.device)
            milliseconds[name].append(1000 * (time.perf_counter() - started))
            rewind()
    parts = {name: values[3:] for name, values in milliseconds.items()}
    parts["draft_ms"] = [grow + observe for grow, observe in zip(parts.pop("grow_ms"), parts.pop("observe_ms"))]
    whole = [r / (d + v) for r, d, v in zip(*(parts[name] for name in ("round_ms", "draft_ms", "verify_ms")))]
    nodes = float(tree.tokens.shape[1])
    return {**{name: median(values) for name, values in parts.items()}, "round_vs_parts": median(whole), "nodes": nodes}
