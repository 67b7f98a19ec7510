"""Measurements for the tree search: costs on this machine, and draft tokens recorded on real text.

    B rows   N nodes   D depth of a tree   W width   m tokens of an answer

A round costs the growth of its tree plus its verification. Both are timed here, interleaved with plain steps.
Drafts are recorded by growing large trees at every position of answers to held-out prompts.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor

from mhc.decoding.decoder import SpeculativeDecoder
from mhc.decoding.request import DecodeRequest
from mhc.decoding.verify import right_nodes
from mhc.drafters import Drafter
from mhc.engine import Engine
from mhc.sampling import GREEDY, Sampling
from mhc.trees.replay import RANKS, Costs, Trace
from mhc.trees.shapes import DynamicTree, FixedTree, Tree, TreeShape
from mhc.tuning.search import COUNTS, WIDTHS, most_nodes
from mhc.util.provenance import wait


class _Ready(TreeShape):
    """A tree that exists already, for timing rounds without drafting."""

    def __init__(self, shape: FixedTree, root: Tensor):
        self.nodes, self.max_depth, self.width = shape.nodes, shape.max_depth, shape.width
        self.static, self.expanded_per_level = True, shape.expanded_per_level
        tokens = root[:, None].expand(-1, shape.nodes).contiguous()
        on_device = shape.to(root.device)
        self.tree = Tree(tokens, on_device.parents, on_device.depth, on_device.ancestors, on_device.paths)

    def grow(self, drafter, state, root, noise) -> Tree:
        return self.tree

    def describe(self) -> dict[str, Any]:
        raise NotImplementedError("a tree for timing is never saved")


def bush(nodes: int, depth: int) -> FixedTree:
    """A tree of `nodes` nodes: a chain as deep as allowed, the rest children of the root."""
    chain = min(nodes - 1, depth)
    return FixedTree([*((0,) * d for d in range(1, chain + 1)), *((rank,) for rank in range(1, nodes - chain))])


@torch.inference_mode()
def measure_costs(
    engine: Engine,
    prompt: list[int],
    fixed: Sequence[FixedTree],
    sampling: Sampling = GREEDY,
    repeats: int = 15,
    progress: Callable[[int, int], None] | None = None,
) -> Costs:
    """Time plain steps, rounds of 1 to 64 nodes, and growth of the fixed trees and of every width and depth,
    interleaved; medians."""
    drafter = engine.require_drafter()
    depth = drafter.draft_length
    counts = [count for count in COUNTS if count < engine.backbone.context - len(prompt)]
    chain = FixedTree.chain(depth)
    decoder = SpeculativeDecoder(engine.backbone, drafter, chain, 1, len(prompt) + 1 + counts[-1])
    decoder.begin([DecodeRequest(prompt, 1, sampling)])
    batch, root = decoder.batch, decoder.batch.root.clone()
    start = batch.snapshot()
    grown: dict[Any, TreeShape] = {  # arbitrary costs, so that choosing by them is timed as well
        (width, levels): DynamicTree(width, levels, most_nodes(width, levels), costs=[[1, 1.0], [64, 3.0]])
        for width in WIDTHS
        for levels in range(1, depth + 1)
    } | {("fixed", shape.nodes): shape for shape in fixed}
    ready = {count: _Ready(bush(count, depth), root) for count in counts}
    seconds: dict[Any, list[float]] = {}

    def timed(key: Any, call: Callable[[], Any]) -> None:
        wait(root.device)
        started = time.perf_counter()
        call()
        wait(root.device)
        seconds.setdefault(key, []).append(time.perf_counter() - started)
        batch.restore(start)

    def grow(shape: TreeShape) -> Tree:
        return shape.grow(drafter, drafter.start_tree(decoder.memory, batch.active), root, batch.round_noise(depth))

    def verify(count: int) -> None:
        decoder.small_batch_tree = ready[count]
        decoder.run(decoder.speculative_step)

    for number in range(repeats + 2):
        # plain steps and growth are timed after a verification, which has filled the caches, as when decoding
        for number_of_shape, (key, shape) in enumerate(grown.items()):
            count = counts[number_of_shape % len(counts)]
            timed(count, partial(verify, count))
            timed(key, partial(grow, shape))
        for count in counts:
            timed("plain", lambda: decoder.run(decoder.plain_step))
            timed(count, partial(verify, count))
        if number == 1:
            seconds.clear()  # the first two warm up
        if progress:
            progress(number + 1, repeats + 2)
    plain = median(seconds["plain"])
    verify_cost, most = [], 0.0
    for count in counts:
        most = max(most, median(seconds[count]) / plain)  # more nodes are never cheaper: a lower time is noise
        verify_cost.append([count, round(most, 4)])
    draft = {key: round(median(seconds[key]) / plain, 4) for key in grown}
    return Costs(
        plain,
        verify_cost,
        {key: cost for key, cost in draft.items() if key[0] != "fixed"},
        {key[1]: cost for key, cost in draft.items() if key[0] == "fixed"},
    )


@torch.inference_mode()
def record(
    engine: Engine,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    sampling: Sampling,
    progress: Callable[[int, int], None] | None = None,
) -> list[Trace]:
    """Decode the prompts plainly, all at once, and record the drafts of trees of every width at every position."""
    drafter = engine.require_drafter()
    depth = drafter.draft_length
    answers = dict(engine.generate_ids(prompts, max_new_tokens, len(prompts), plain=True, sampling=sampling))
    texts = [answers[number].token_ids for number in range(len(prompts))]
    longest = max(map(len, texts))
    shapes = {width: _all_nodes(width, depth) for width in WIDTHS}
    context = min(max(map(len, prompts)) + longest, engine.backbone.context)
    one_token = FixedTree.chain(0)  # each round then emits one token, the true one
    walker = SpeculativeDecoder(engine.backbone, drafter, one_token, len(prompts), context)
    walker.begin([DecodeRequest(prompt, longest, sampling).within(context) for prompt in prompts])
    batch, device = walker.batch, engine.backbone.device
    truth = torch.tensor(  # (B, longest + depth), -1 beyond the end
        [text + [-1] * (longest + depth - len(text)) for text in texts], device=device
    )
    recorded: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {width: [] for width in WIDTHS}
    ranks = []
    for t in range(longest - 1):
        ahead = truth[:, t : t + depth + 1]  # (B,D+1): the root and the tokens after it
        for width, shape in shapes.items():
            state = drafter.start_tree(walker.memory, batch.active)
            tree = shape.grow(drafter, state, batch.root, batch.round_noise(depth))
            expected = ahead.gather(1, tree.depth.expand(len(ahead), -1))  # the true token of each node's depth
            assert tree.likely is not None  # dynamic trees compute it
            recorded[width].append((tree.likely, tree.depth.expand_as(tree.tokens), right_nodes(tree, expected)))
        ranks.append(_ranks(drafter, walker, ahead))
        walker.run(walker.speculative_step)
        batch.root.copy_(truth[:, t + 1].clamp(min=0))  # finished rows continue with any token
        batch.activate()
        if progress:
            progress(t + 1, longest - 1)
    traces = []
    for row, text in enumerate(texts):
        steps = len(text) - 1
        if steps:
            trace = Trace(text, torch.stack([rank[row] for rank in ranks[:steps]]).cpu())
            for width, levels in recorded.items():
                likely, depths, right = (
                    torch.stack([part[row] for part in parts]).cpu() for parts in zip(*levels[:steps])
                )
                trace.trees[width] = likely, depths, right
            traces.append(trace)
    return traces


def _all_nodes(width: int, depth: int) -> DynamicTree:
    return DynamicTree(width, depth, 1 + width + (depth - 1) * width**2)


def _ranks(drafter: Drafter, decoder: SpeculativeDecoder, ahead: Tensor) -> Tensor:
    """Rank (B,D) of the true token in each head's list along the true path, at most RANKS; ahead (B,D+1)."""
    batch, ranks = decoder.batch, []
    state, noise = drafter.start_tree(decoder.memory, batch.active), batch.round_noise(drafter.draft_length)
    first = torch.zeros(1, 1, dtype=torch.long, device=ahead.device)
    for depth in range(drafter.draft_length):
        known = ahead[:, depth + 1]
        logits, state = drafter.draft_level(state, ahead[:, depth, None].clamp(min=0), first)
        scores = noise.draft_scores(logits, depth)[:, 0]
        rank = (scores > scores.gather(1, known[:, None].clamp(min=0))).sum(dim=1).clamp(max=RANKS)
        ranks.append(torch.where(known < 0, RANKS, rank))
    return torch.stack(ranks, dim=1)


@torch.inference_mode()
def example_round(engine: Engine, prompt: list[int], sampling: Sampling, rounds: int = 16) -> dict[str, Any]:
    """Of an answer's first rounds the one that accepted most: its tree, as `mhc.reports.plots.draw_tree` takes it."""
    length = rounds * (engine.tree.max_depth + 1)
    decoder = engine.speculative_decoder(1, len(prompt) + length)
    decoder.begin([DecodeRequest(prompt, length, sampling)])
    batch, drafter = decoder.batch, decoder.drafter
    best: tuple[int, Tree, list[int]] | None = None
    for _ in range(rounds):
        if batch.cache.lengths[0] + engine.tree.nodes >= engine.backbone.context:
            break
        batch.activate()
        state = drafter.start_tree(decoder.memory, batch.active)
        tree = engine.tree.grow(drafter, state, batch.root, batch.round_noise(engine.tree.max_depth))
        (emitted,) = decoder.run(decoder.speculative_step)
        if best is None or len(emitted) > best[0]:
            best = len(emitted), tree, emitted
        if engine.end_ids & set(emitted):
            break
    assert best is not None
    count, tree, emitted = best
    tokens, parents, depth = tree.tokens[0].tolist(), tree.parents[0].tolist(), tree.depth[0].tolist()
    accepted = [True] * len(tokens)
    for node in range(1, len(tokens)):
        accepted[node] = accepted[parents[node]] and depth[node] < count and tokens[node] == emitted[depth[node] - 1]
    return {
        "parents": parents,
        "labels": [repr(engine.backbone.tokenizer.decode([token]))[1:-1] or "?" for token in tokens],
        "strong": accepted,
        "title": f"one round of an answer: {len(tokens)} nodes verified, {count - 1} draft tokens accepted (green), and the bonus token",
    }
