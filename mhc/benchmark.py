"""Plain and speculative decoding of the same prompts, interleaved in one run.

The machine's speed drifts, so each prompt is decoded both ways one after the other, in alternating
order, and the speedup is the median of the paired ratios.
"""

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from mhc.engine import Engine, Generation


def compare(
    engine: Engine,
    prompts: Sequence[list[int]],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Decode every prompt (token ids) twice and report, in the names of `decode_benchmark.json`:

    tokens_per_step (bonus counted), accepted_histogram (how many steps accepted 0, 1, ... guesses),
    plain_tokens_per_second, tokens_per_second, speedup (median of the paired ratios) with
    speedup_min and speedup_max, prompts, identical (outputs that are token for token the same).
    """

    def answer(prompt: list[int], plain: bool) -> Generation:
        return next(found for _, found in engine.generate_ids([prompt], max_new_tokens, plain=plain))

    for plain in (True, False):
        answer(prompts[0], plain)  # warm up both ways
    pairs: list[tuple[Generation, Generation]] = []
    for number, prompt in enumerate(prompts):
        order = (True, False) if number % 2 else (False, True)
        answers = {plain: answer(prompt, plain) for plain in order}
        pairs.append((answers[True], answers[False]))
        if progress:
            progress(number + 1, len(prompts))
    histogram = [0] * (engine.tree.levels_deep + 1)
    for _, drafted in pairs:
        for accepted in drafted.accepted[1:]:  # the prefill drafts nothing
            histogram[accepted] += 1
    ratios = [plain.seconds / drafted.seconds for plain, drafted in pairs]
    tokens = sum(len(drafted.token_ids) - 1 for _, drafted in pairs)
    return {
        "tokens_per_step": round(tokens / max(1, sum(histogram)), 4),
        "accepted_histogram": histogram,
        "plain_tokens_per_second": round(median(len(p.token_ids) / p.seconds for p, _ in pairs), 2),
        "tokens_per_second": round(median(len(d.token_ids) / d.seconds for _, d in pairs), 2),
        "speedup": round(median(ratios), 4),
        "speedup_min": round(min(ratios), 4),
        "speedup_max": round(max(ratios), 4),
        "prompts": len(pairs),
        "identical": sum(plain.token_ids == drafted.token_ids for plain, drafted in pairs),
        "max_new_tokens": max_new_tokens,
        "tree_nodes": engine.tree.nodes,
    }
