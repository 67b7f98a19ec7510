"""The decode loop: prefill, draft, verify, commit; and the plain decoder beside it.

    B rows decoded together   N tree nodes   P nodes of an accepted path   V vocabulary

Both loops emit exactly the same tokens: what is kept is always the backbone's own choice.
*Tokens per step* counts the bonus token, so plain decoding has 1.0.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from mhc.attention import tree_mask
from mhc.backbone import Backbone, Features
from mhc.chat import end_token_ids, prompt_ids
from mhc.checkpoint import load_drafter
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.tree import FixedTree
from mhc.verify import accept, greedy


class Piece(NamedTuple):
    """What one round gave one prompt: its number, the new tokens, and why it ended (or None)."""

    prompt: int
    tokens: list[int]
    finish_reason: str | None


@dataclass
class Generation:
    """One answer. token_ids: the new tokens, the end-of-text token included; accepted: guesses kept
    in each step; seconds: wall time, prefill included; finish_reason: 'stop' or 'length'."""

    token_ids: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    finish_reason: str = "length"
    seconds: float = 0.0
    text: str = ""

    @property
    def steps(self) -> int:
        """Forwards of the backbone that emitted tokens, the prefill included."""
        return len(self.accepted)

    @property
    def tokens_per_step(self) -> float:
        return len(self.token_ids) / max(1, self.steps)


class Engine:
    """A backbone, optionally with a drafter and the shape of the trees that it grows."""

    def __init__(self, backbone: Backbone, drafter: Drafter | None = None, tree: FixedTree | None = None):
        self.backbone, self.drafter = backbone, drafter
        if drafter is not None:
            tree = tree or FixedTree.chain(drafter.heads)
            if tree.levels_deep > drafter.heads:
                raise UserError(
                    f"the tree is {tree.levels_deep} deep but the drafter has {drafter.heads} heads: cut the tree"
                )
            drafter.eval().to(backbone.device)
            self.tree = tree.to(backbone.device)
        configured = backbone.model.generation_config
        if backbone.tokenizer is not None:
            self.end_ids = set(end_token_ids(backbone.tokenizer, configured))
        else:
            self.end_ids = {configured.eos_token_id}

    @classmethod
    def from_checkpoint(cls, path: str, backbone: str | None = None, device: str = "cpu") -> "Engine":
        """The engine of a checkpoint folder; `backbone` overrides where the model is loaded from."""
        drafter, tree = load_drafter(path, backbone, device)
        return cls(drafter.backbone, drafter, tree)

    # ---- the two loops

    def _speculate(self, rows: "Rows") -> tuple[list[list[int]], list[int]]:
        """One round: grow a tree, verify it in one forward, keep what the backbone agrees with."""
        backbone, drafter, cache = self.backbone, self.drafter, rows.cache
        tree = self.tree.grow(drafter, drafter.begin(rows.memory, rows.active), rows.root)
        logits, features = backbone.decode(
            tree.tokens,
            rows.positions(tree.depth),
            cache,
            rows.masks(tree.ancestors, tree.depth),
            last_only=False,
        )
        kept = accept(tree, greedy(logits))
        *emitted, counts = torch.cat([kept.emitted.T, kept.counts[None]]).tolist()  # the one host sync
        cache.commit(kept.path, counts)
        every = torch.arange(len(counts), device=backbone.device)[:, None]
        drafter.read(rows.memory, rows.active, Features(features.hidden[every, kept.path]), kept.counts)
        rows.root = kept.emitted[every[:, 0], kept.counts - 1]
        return [[level[row] for level in emitted[:count]] for row, count in enumerate(counts)], counts

    def _plain(self, rows: "Rows") -> tuple[list[list[int]], list[int]]:
        """One plain step: one token a row."""
        tokens = rows.root[:, None]
        mask = None if rows.simple else rows.masks(*rows.alone)
        logits, _ = self.backbone.decode(tokens, rows.positions(rows.alone[1]), rows.cache, mask, last_only=True)
        rows.root = greedy(logits)[:, 0]
        counts = [1] * len(tokens)
        rows.cache.extend(counts)
        return [[token] for token in rows.root.tolist()], counts

    def _prefill(self, rows: "Rows", row: int, prompt: list[int], speculate: bool) -> int:
        """Read a prompt into `row` and return the first token of its answer."""
        cache = rows.cache
        cache.clear(row)
        cache.select(row, row + 1)
        ids = torch.tensor([prompt], device=self.backbone.device)
        positions = torch.arange(len(prompt), device=ids.device)[None]
        logits, features = self.backbone.decode(ids, positions, cache, None, last_only=True)
        cache.extend([len(prompt)])
        if speculate:
            counts = torch.tensor([len(prompt)], device=ids.device)
            self.drafter.read(rows.memory, slice(row, row + 1), features, counts)
        return int(greedy(logits)[0, 0])

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        batch_size: int = 1,
        plain: bool = False,
    ) -> Iterator[Piece]:
        """Answer prompts of token ids, up to `batch_size` at once, and yield pieces as they come.

        Finished rows leave, waiting prompts take their place; each row's tokens are those it would
        get alone. Raises UserError where a prompt leaves no room in the backbone's context.
        """
        if not prompts:
            return
        speculate = self.drafter is not None and not plain
        room = [self._room(number, prompt, max_new_tokens) for number, prompt in enumerate(prompts)]
        rows = Rows(self, prompts, room, min(batch_size, len(prompts)), speculate)
        step = self._speculate if speculate else self._plain
        waiting = deque(range(len(prompts)))
        while waiting or rows.serving:
            while waiting and len(rows.serving) < rows.size:
                number = waiting.popleft()
                token = self._prefill(rows, len(rows.serving), prompts[number], speculate)
                tokens, reason = self._cut([token], room[number])
                yield Piece(number, tokens, reason)
                if reason is None:
                    rows.join(number, token, room[number] - 1)
            if not rows.serving:
                continue
            rows.cache.select(0, len(rows.serving))
            emitted, _ = step(rows)
            for row in reversed(range(len(emitted))):
                number = rows.serving[row]
                tokens, reason = self._cut(emitted[row], rows.left[row])
                rows.left[row] -= len(tokens)
                yield Piece(number, tokens, reason)
                if reason is not None:
                    rows.leave(row)

    def _room(self, number: int, prompt: list[int], max_new_tokens: int) -> int:
        room = self.backbone.context - len(prompt)
        if not prompt:
            raise UserError(f"prompt {number} is empty: give it at least one token")
        if room < 1:
            raise UserError(
                f"prompt {number} has {len(prompt)} tokens, the backbone's context is "
                f"{self.backbone.context}: shorten it"
            )
        if max_new_tokens < 1:
            raise UserError(f"max_new_tokens is {max_new_tokens}: it must be at least 1")
        return min(max_new_tokens, room)

    def _cut(self, tokens: list[int], left: int) -> tuple[list[int], str | None]:
        """End a round's tokens at the end-of-text token or at the length limit."""
        for index, token in enumerate(tokens[:left]):
            if token in self.end_ids:
                return tokens[: index + 1], "stop"
        return tokens[:left], "length" if len(tokens) >= left else None

    # ---- what most callers want

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        batch_size: int = 1,
        plain: bool = False,
    ) -> Iterator[tuple[int, Generation]]:
        """Answers in the order in which they finish: (number of the prompt, Generation)."""
        started: dict[int, float] = {}
        answers: dict[int, Generation] = {}
        last = time.perf_counter()
        for number, tokens, reason in self.stream(prompts, max_new_tokens, batch_size, plain):
            started.setdefault(number, last)
            answer = answers.setdefault(number, Generation())
            answer.token_ids += tokens
            answer.accepted.append(len(tokens) - 1)
            last = time.perf_counter()
            if reason is not None:
                answer.finish_reason, answer.seconds = reason, last - started.pop(number)
                if self.backbone.tokenizer is not None:
                    answer.text = self.backbone.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                yield number, answers.pop(number)

    def generate(
        self, prompt: str | list[dict] | list[int], max_new_tokens: int = 256, plain: bool = False
    ) -> Generation:
        """Answer one prompt: text (one user turn), chat messages or token ids."""
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        ids = prompt_ids(self.backbone.tokenizer, prompt) if isinstance(prompt[0], dict) else prompt
        return next(answer for _, answer in self.generate_ids([ids], max_new_tokens, plain=plain))


class Rows:
    """The sequences being decoded together: their cache, the drafter's memory and their roots."""

    def __init__(self, engine: Engine, prompts: Sequence[list[int]], room: list[int], size: int, speculate: bool):
        self.engine, self.size = engine, size
        nodes = engine.tree.nodes if speculate else 1
        capacity = max((len(prompt) + more for prompt, more in zip(prompts, room)), default=0) + nodes
        self.cache = engine.backbone.cache(size, capacity)
        self.memory = engine.drafter.allocate(size, capacity) if speculate else None
        self.root = torch.empty(0, dtype=torch.long, device=engine.backbone.device)  # (B,) decided, not yet read
        self.serving: list[int] = []  # prompt number of each row
        self.left: list[int] = []  # tokens each may still emit
        one = torch.ones(1, 1, 1, dtype=torch.bool, device=self.root.device)
        self.alone = one, torch.zeros(1, 1, dtype=torch.long, device=self.root.device)  # a tree of the root

    @property
    def active(self) -> slice:
        return slice(0, len(self.serving))

    @property
    def simple(self) -> bool:
        """Whether plain causal attention without a mask is right for one token a row."""
        window = self.engine.backbone.window
        return self.cache.even and (window is None or self.cache.longest < window)

    def positions(self, depth: torch.Tensor) -> torch.Tensor:
        """Positions of nodes of this depth (1|B,N) -> (B,N), kept inside the context: nodes beyond it
        are never emitted, but models with learned positions could not even look them up."""
        cache, limit = self.cache, self.engine.backbone.context - 1
        if cache.even:
            return (depth + cache.longest).clamp(max=limit).expand(len(self.serving), -1)
        return (depth + cache.starts[:, None]).clamp(max=limit)

    def masks(self, ancestors: torch.Tensor, depth: torch.Tensor) -> dict[str, torch.Tensor]:
        """The tree mask of each layer type of the backbone."""
        backbone, lengths = self.engine.backbone, self.cache.lengths[self.active]
        return {
            kind: tree_mask(ancestors, depth, lengths, backbone.window if kind == "sliding_attention" else None)
            for kind in backbone.layer_types
        }

    def join(self, number: int, token: int, left: int) -> None:
        """A prefilled prompt becomes the last row."""
        self.serving.append(number)
        self.left.append(left)
        self.root = torch.cat([self.root, self.root.new_tensor([token])])

    def leave(self, row: int) -> None:
        """A finished row's place is taken by the last one."""
        last = len(self.serving) - 1
        if row != last:
            self.cache.move(last, row)
            if self.memory is not None:
                self.engine.drafter.move(self.memory, last, row)
            self.root[row] = self.root[last]
            self.serving[row], self.left[row] = self.serving[last], self.left[last]
        self.serving.pop()
        self.left.pop()
        self.root = self.root[:last]
