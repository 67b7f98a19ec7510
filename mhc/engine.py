"""The decode loop: prefill, draft, verify, commit; and the plain decoder beside it.

    B rows decoded together   N tree nodes   P nodes of an accepted path   V vocabulary

Both loops emit exactly the same tokens: what is kept is always the backbone's own choice.
*Tokens per step* counts the bonus token, so plain decoding has 1.0.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import for_decoding, load_drafter
from mhc.decoding.batch import Asked, Rows
from mhc.decoding.scheduler import Piece, Session, room_of
from mhc.decoding.verify import accept
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampler, Sampling
from mhc.text.encoding import end_token_ids, prompt_ids
from mhc.trees.shapes import FixedTree, Shape, shape_of


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
    """A backbone, optionally with a drafter and the shape of the trees that it grows (default: a chain).

    compile: rounds run as compiled programs over buffers of fixed sizes, which on CUDA are captured whole (drafting,
    verification, acceptance, commit) as CUDA graphs. Worth its warm-up where launching operations is what costs.
    """

    def __init__(
        self, backbone: Backbone, drafter: Drafter | None = None, tree: Shape | None = None, compile: bool = False
    ):
        self.backbone, self.drafter, self.compile = backbone, drafter, compile
        self.tree_of_many: Shape | None = None
        self._idle: list[Rows] = []  # compiled rounds with their buffers, for the next call
        if drafter is not None:
            self.tree = tree or FixedTree.chain(drafter.heads)
            if self.tree.levels_deep > drafter.heads:
                raise UserError(
                    f"the tree is {self.tree.levels_deep} deep but the drafter has {drafter.heads} heads: cut the tree"
                )
            if self.tree.width > backbone.vocabulary_size:
                raise UserError(
                    f"the tree is {self.tree.width} wide, the vocabulary {backbone.vocabulary_size}: cut the tree"
                )
            drafter.eval().to(backbone.device)
        configured = backbone.model.generation_config
        if backbone.tokenizer is not None:
            self.end_ids = set(end_token_ids(backbone.tokenizer, configured))
        else:
            self.end_ids = {configured.eos_token_id}

    @classmethod
    def from_checkpoint(
        cls, path: str, backbone: str | None = None, tree: Any = None, compile: bool = False, **loading: Any
    ) -> "Engine":
        """The engine of a checkpoint folder. backbone: load the model from here; tree (see `shape_of`): without, the
        tuned one where there is one, else the checkpoint's; loading: device, dtype, quantize as in `Backbone.load`."""
        wanted = None if tree is None else shape_of(tree)
        drafter, kept = load_drafter(path, backbone, **loading)
        return cls(drafter.backbone, for_decoding(drafter), wanted or kept, compile)

    def for_many(self) -> "Engine":
        """With one guess a row while MANY rows or more are decoded at once: they keep the machine busy, and a tree tuned for one
        row asks too much of it or, where it minds its prices, speculates too seldom (docs/log.md)."""
        if self.drafter is not None:
            self.tree_of_many = FixedTree.chain(1)
        return self

    # ---- one round: everything stays on the device until `tolist`, the one host synchronisation

    def _speculate(self, rows: Rows) -> torch.Tensor:
        """Grow a tree, verify it in one forward, keep what the backbone agrees with: (D+2,B), the emitted
        tokens and in the last line how many of them hold."""
        backbone, drafter, cache = self.backbone, self.drafter, rows.cache
        draw = rows.draw(rows.tree.levels_deep)
        tree = rows.tree.grow(drafter, drafter.begin(rows.memory, rows.active), rows.root, draw)
        rows.grown = tree.tokens.shape[1]
        places = rows.places(tree.ancestors, tree.depth)
        logits, features = backbone.decode(tree.tokens, *places, compiled=self.compile, taps=rows.taps)
        choices = draw.scores(logits, tree.depth).argmax(dim=-1)
        kept = accept(tree, choices, draw.typical(logits, tree.tokens, tree.parents), rows.most)
        rows.note(logits, kept.path, kept.emitted)
        cache.commit(kept.path)
        every = torch.arange(len(choices), device=choices.device)[:, None]
        accepted = features.at(every, kept.path)
        drafter.read(rows.memory, rows.active, accepted, kept.emitted, cache.start, kept.counts)
        rows.root.copy_(kept.emitted.gather(1, kept.counts[:, None] - 1)[:, 0])
        return torch.cat([kept.emitted.T, kept.counts[None]])

    def _plain(self, rows: Rows) -> torch.Tensor:
        """One token a row: (2,B), the tokens and ones."""
        places = rows.places(*rows.alone)
        logits, features = self.backbone.decode(rows.root[:, None], *places, compiled=self.compile, taps=rows.taps)
        rows.root.copy_(rows.draw(0).scores(logits, 0).argmax(dim=-1)[:, 0])
        rows.note(logits, torch.zeros_like(rows.root[:, None]), rows.root[:, None])
        ones = torch.ones_like(rows.root)
        if rows.memory is not None:
            self.drafter.read(rows.memory, rows.active, features, rows.root[:, None], rows.cache.start, ones)
        return torch.stack([rows.root, ones])

    def round(self, rows: Rows, speculate: bool) -> list[list[int]]:
        """One round: the new tokens of every row."""
        speculate = speculate and rows.pace.pays()
        *emitted, counts = rows.run(self._speculate if speculate else self._plain).tolist()
        rows.levels = len(emitted) - 1
        counts = counts[: len(rows.serving)]
        rows.cache.extend(counts)
        if speculate:
            rows.pace.learn(sum(counts) / len(counts), len(counts), rows.grown, rows.levels)
        return [[level[row] for level in emitted[:count]] for row, count in enumerate(counts)]

    def prefill(self, rows: Rows, numbers: list[int]) -> list[int]:
        """Read these prompts into the rows behind the ones being served; the first token of each answer."""
        first, cache, device = len(rows.serving), rows.cache, self.backbone.device
        asked = [rows.asked[number] for number in numbers]
        prompts = [each.prompt for each in asked]
        lengths = [len(prompt) for prompt in prompts]
        for row in range(len(prompts)):
            cache.clear(first + row)
        cache.select(first, first + len(prompts))
        # Padding stands behind a prompt, where causal attention does not see it and new text overwrites it.
        ids = torch.tensor([prompt + prompt[-1:] * (max(lengths) - len(prompt)) for prompt in prompts], device=device)
        positions = torch.arange(max(lengths), device=device).expand(len(prompts), -1)
        counts = torch.tensor(lengths, device=device)
        logits, features = self.backbone.decode(ids, positions, cache, None, at=counts - 1, taps=rows.taps)
        sampler = Sampler.of([each.sampling for each in asked], self.backbone.vocabulary_size, device)
        roots = sampler.round(counts[:, None] - 1, 0).scores(logits, 0).argmax(dim=-1)  # (B,1)
        if rows.memory is not None:
            following = torch.cat([ids[:, 1:], roots], dim=1).scatter(1, counts[:, None] - 1, roots)
            self.drafter.read(rows.memory, slice(first, first + len(prompts)), features, following, 0, counts)
        cache.extend(lengths)
        rows.levels = 0
        rows.note(logits, torch.zeros_like(roots), roots, [each.likelihoods for each in asked])
        return roots[:, 0].tolist()

    @torch.inference_mode()
    def stream(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        batch_size: int = 1,
        plain: bool = False,
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        warming: Callable[[int, int], None] | None = None,
    ) -> Iterator[Piece]:
        """Answer prompts of token ids, up to `batch_size` at once, and yield pieces as they come.

        Finished rows leave, waiting prompts take their place; each row's tokens are those it would
        get alone. sampling: one for all prompts, or one each. warming(done, total) hears of compilation.
        Raises UserError where a prompt leaves no room in the backbone's context.
        """
        if not prompts:
            return
        each = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(each) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(each)} samplings: give one for all, or one each")
        context = self.backbone.context
        room = [room_of(number, prompt, max_new_tokens, context) for number, prompt in enumerate(prompts)]
        asked = [Asked(*one) for one in zip(prompts, room, each)]
        speculate = self.speculates and not plain
        rows = self.rows(asked, min(batch_size, len(prompts)), speculate)
        self._warm_up(rows, speculate, warming)
        session = Session(self, rows, speculate, context)
        while session.busy:
            yield from session.step()
        if self.compile:
            self._idle = [rows]  # the latest only: buffers are large

    @torch.inference_mode()
    def _warm_up(self, rows: Rows, speculate: bool, warming: Callable[[int, int], None] | None = None) -> None:
        for round in [*([self._speculate] if speculate else []), *([self._plain] if rows.steps_plainly else [])]:
            for done, total in rows.warm_up(round):
                if warming:
                    warming(done, total)

    @property
    def speculates(self) -> bool:
        """Whether there is anything to guess with."""
        return self.drafter is not None and self.tree.nodes > 1

    def session(self, size: int, context: int) -> Session:
        """Continuous batching of up to `size` prompts at once, each of at most `context` tokens with its answer. Where the
        engine compiles, it does so here."""
        context = min(context, self.backbone.context)
        capacity = context + self.slots_behind(self.speculates)
        kinds = [GREEDY, Sampling(temperature=1.0, top_p=0.5)]  # with these a compiled round can serve all
        rows = Rows(self, size, capacity, self.speculates)
        rows.start([], kinds)
        self._warm_up(rows, self.speculates)
        return Session(self, rows, self.speculates, context)

    def slots_behind(self, speculate: bool) -> int:
        """Slots behind a row's text that a round needs: for nodes and padded paths."""
        return max(self.tree.nodes, self.tree.levels_deep + 1) if speculate else 1

    def rows(self, asked: Sequence[Asked], size: int, speculate: bool) -> Rows:
        """Buffers for these prompts; compiled rounds bring theirs along from an earlier call."""
        capacity = max(len(each.prompt) + each.room for each in asked) + self.slots_behind(speculate)
        fitting = (
            rows
            for rows in self._idle
            if (rows.size, rows.speculate) == (size, speculate) and rows.cache.capacity >= capacity
        )
        rows = next(fitting, None)
        if rows is None:
            rows = Rows(self, size, capacity, speculate)
        else:
            self._idle.remove(rows)
        rows.start(asked)
        return rows

    # ---- what most callers want

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        batch_size: int = 1,
        plain: bool = False,
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        warming: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Answers in the order in which they finish: (number of the prompt, Generation). Arguments as in `stream`."""
        started: dict[int, float] = {}
        answers: dict[int, Generation] = {}
        last = time.perf_counter()

        def warmed(done: int, total: int) -> None:
            nonlocal last  # compilation is no part of an answer's time
            last = time.perf_counter()
            if warming:
                warming(done, total)

        for number, tokens, reason, *_ in self.stream(prompts, max_new_tokens, batch_size, plain, sampling, warmed):
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
        self,
        prompt: str | list[dict] | list[int],
        max_new_tokens: int = 256,
        plain: bool = False,
        sampling: Sampling = GREEDY,
    ) -> Generation:
        """Answer one prompt: text (one user turn), chat messages or token ids."""
        if isinstance(prompt, str):
            prompt = [{"role": "user", "content": prompt}]
        ids = prompt_ids(self.backbone.tokenizer, prompt) if isinstance(prompt[0], dict) else prompt
        return next(answer for _, answer in self.generate_ids([ids], max_new_tokens, 1, plain, sampling))
