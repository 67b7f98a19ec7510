"""Prompts, trees, and what decoding is compared with: plain decoding and transformers' own."""

import torch

from mhc.engine import Engine
from mhc.trees.shapes import DynamicTree, FixedTree

TREES = {
    "chain": FixedTree.chain(4),
    "tree": FixedTree([[0], [1], [2], [0, 0], [0, 1], [1, 0], [0, 0, 0], [0, 1, 0], [0, 0, 0, 0]]),
    "dynamic": DynamicTree(width=3, depth=4, budget=14),
    "dynamic_cut": DynamicTree(width=2, depth=4, budget=9, confidence=0.2, costs=[[1, 1.0], [8, 1.2]], price=2.0),
    "cut": DynamicTree(width=3, depth=4, budget=12, confidence=0.3),
    "paced": FixedTree([[0], [1], [0, 0], [0, 0, 0]], costs=[[1, 1.0], [8, 1.4]], draft_cost=0.3),
}
PROMPTS = [[5, 9, 3, 8, 4, 4], [7] * 11, [1, 2, 3, 4, 5, 6, 7], [60, 0, 59, 1, 58, 2, 57, 3]]  # all of other lengths
NEW = 24


def reference(backbone, prompt: list[int], new: int = NEW) -> list[int]:
    """What transformers itself generates greedily."""
    ids = torch.tensor([prompt])
    out = backbone.model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False)
    return out[0, len(prompt) :].tolist()


def answers(engine: Engine, batch_size: int, new: int = NEW, **options) -> list[list[int]]:
    found = dict(engine.generate_ids(PROMPTS, new, batch_size, **options))
    return [found[number].token_ids for number in range(len(PROMPTS))]
