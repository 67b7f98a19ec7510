"""One decode round: plainly, or draft, verify, accept and commit. Both emit exactly the same tokens.

    B rows decoded together   N tree nodes   P nodes of an accepted path   D depth of the tree   V vocabulary

Emitted tokens are always the target model's own choices; the draft only decides how many a round emits.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from mhc.backbone.model import Backbone, Features
from mhc.decoding.batch import DecodeBatch
from mhc.decoding.cuda_graphs import Graphs
from mhc.decoding.pace import Pace
from mhc.decoding.request import DecodeRequest
from mhc.decoding.verify import accept
from mhc.drafters.base import Drafter
from mhc.sampling import Sampler, Sampling
from mhc.trees.shapes import TreeShape

LARGE_BATCH = 16  # rows from which one draft token per row is enough

Step = Callable[[], Tensor]  # emitted tokens, one line per level, then their number per row: (P+1,B)


class Decoder(ABC):
    """Decodes the rows of one batch, round by round.

    size: rows at most. context: tokens of a prompt and its answer together. nodes: cache slots that a round writes after them.
    compile: rounds run as compiled programs over fixed shapes, on CUDA captured as graphs.
    """

    taps: tuple[int, ...] = ()  # layers whose inputs the drafter reads

    def __init__(self, backbone: Backbone, size: int, context: int, nodes: int, compile: bool):
        self.backbone, self.compile, self.context = backbone, compile, context
        self.batch = DecodeBatch(backbone, size, context + nodes, fixed=compile)
        self.graphs = Graphs() if compile and backbone.device.type == "cuda" else None
        self.drafted = 0  # draft tokens per path that the last round verified at most

    def start(self, requests: Sequence[DecodeRequest], kinds: Sequence[Sampling] = ()) -> None:
        """Serve these requests from now on; see `DecodeBatch.start`."""
        self.batch.start(requests, kinds)

    @abstractmethod
    def decode_round(self) -> list[list[int]]:
        """The new tokens of every row being served."""

    @abstractmethod
    def _steps(self) -> list[Step]:
        """The steps that rounds may consist of, for the warm-up."""

    @abstractmethod
    def _nodes(self) -> int:
        """The most nodes that the next round writes."""

    @abstractmethod
    def _observe(self, rows: slice, features: Features, next_ids: Tensor, start: int | Tensor, counts: Tensor) -> None:
        """Update the drafter's memory of these rows; see `Drafter.observe`."""

    @abstractmethod
    def _move(self, source: int, target: int) -> None:
        """Copy row `source` over row `target`."""

    # ---- what all decoders share

    def prefill(self, numbers: list[int]) -> list[int]:
        """Prefill these requests into the rows after those being served; the first token of each answer."""
        batch, device = self.batch, self.backbone.device
        first, cache = len(batch.serving), batch.cache
        requests = [batch.requests[number] for number in numbers]
        prompts = [request.prompt for request in requests]
        lengths = [len(prompt) for prompt in prompts]
        for row in range(len(prompts)):
            cache.clear(first + row)
        cache.set_active(first, first + len(prompts))
        # Padding comes after a prompt, where causal attention does not see it and new text overwrites it.
        ids = torch.tensor([prompt + prompt[-1:] * (max(lengths) - len(prompt)) for prompt in prompts], device=device)
        positions = torch.arange(max(lengths), device=device).expand(len(prompts), -1)
        counts = torch.tensor(lengths, device=device)
        logits, features = self.backbone.decode(ids, positions, cache, None, at=counts - 1, taps=self.taps)
        sampler = Sampler.of([request.sampling for request in requests], self.backbone.vocabulary_size, device)
        roots = sampler.for_round(counts[:, None] - 1, 0).target_scores(logits, 0).argmax(dim=-1)  # (B,1)
        next_ids = torch.cat([ids[:, 1:], roots], dim=1).scatter(1, counts[:, None] - 1, roots)
        self._observe(slice(first, first + len(prompts)), features, next_ids, 0, counts)
        cache.advance(lengths)
        self.drafted = 0
        wanted = any(request.logprobs for request in requests)
        batch.record_logprobs(logits, torch.zeros_like(roots), roots, wanted)
        batch.admit(numbers, roots[:, 0])
        return roots[:, 0].tolist()

    def begin(self, requests: Sequence[DecodeRequest]) -> None:
        """Prefill these requests together, so that the next round decodes all of them."""
        self.start(requests)
        self.prefill(list(range(len(requests))))
        self.batch.activate()

    def plain_step(self) -> Tensor:
        """One token per row: (2,B), the tokens and ones."""
        batch = self.batch
        inputs = batch.forward_inputs(*batch.root_only)
        logits, features = self.backbone.decode(batch.root[:, None], *inputs, compiled=self.compile, taps=self.taps)
        batch.root.copy_(batch.round_noise(0).target_scores(logits, 0).argmax(dim=-1)[:, 0])
        batch.record_logprobs(logits, torch.zeros_like(batch.root[:, None]), batch.root[:, None], batch.wants_logprobs)
        ones = torch.ones_like(batch.root)
        self._observe(batch.active, features, batch.root[:, None], batch.cache.start, ones)
        return torch.stack([batch.root, ones])

    def run(self, step: Step) -> list[list[int]]:
        """Run one step and commit it: the new tokens of every row. `tolist` is the one host synchronisation."""
        *levels, counts = self.launch(step).tolist()
        counts = counts[: len(self.batch.serving)]
        self.batch.cache.advance(counts)
        self.drafted = len(levels) - 1
        return [[level[row] for level in levels[:count]] for row, count in enumerate(counts)]

    def launch(self, step: Step) -> Tensor:
        """Replay a captured step, or run it."""
        self.batch.activate()
        key = self._key(step)
        return self.graphs.replay(key) if self.graphs and key in self.graphs else step()

    def captured(self, step: Step) -> bool:
        """Whether the next launch of this step replays a graph."""
        return self.graphs is not None and self._key(step) in self.graphs

    def evict(self, row: int) -> None:
        """Remove a finished row; the last row takes its place."""
        last = len(self.batch.serving) - 1
        if row != last:
            self._move(last, row)
        self.batch.evict(row)

    def _key(self, step: Step) -> tuple[Any, ...]:
        """What a step's computation depends on besides buffer contents: the key of its graph."""
        batch = self.batch
        return step.__name__, batch.cache.extent(self._nodes()), batch.sampler.signature, batch.wants_logprobs

    @torch.inference_mode()
    def warm_up(self, progress: Callable[[int, int], None] | None = None, also: Sequence[Step] = ()) -> None:
        """Compile and capture what the current requests will need, or any request where there are none yet; progress(done,
        total). Call it before any prefill. also: further steps to capture."""
        for step in [*self._steps(), *also] if self.compile else ():
            for done, total in self._capture(step):
                if progress:
                    progress(done, total)

    def _capture(self, step: Step) -> Iterator[tuple[int, int]]:
        batch = self.batch
        requests, cache = batch.requests.values(), batch.cache
        shortest = min((len(request.prompt) for request in requests), default=1)
        longest = max((len(request.prompt) + request.max_new_tokens for request in requests), default=cache.capacity)
        longest = min(longest, cache.capacity - self._nodes())
        lengths = [*range(max(1, shortest // batch.bucket * batch.bucket), longest, batch.bucket), longest]
        if self.graphs is None:
            lengths = lengths[:2]  # the program compiled for the second length serves all others
        for done, length in enumerate(lengths):
            cache.lengths = [length] * batch.size
            cache.set_active(0, batch.size)
            if self.graphs is None:
                step()
            elif (key := self._key(step)) not in self.graphs:
                self.graphs.record(key, step)
            yield done + 1, len(lengths)
        cache.lengths = [0] * batch.size


class PlainDecoder(Decoder):
    """One token per row and round, without drafts."""

    def __init__(self, backbone: Backbone, size: int, context: int, compile: bool = False):
        super().__init__(backbone, size, context, 1, compile)

    def decode_round(self) -> list[list[int]]:
        return self.run(self.plain_step)

    def _steps(self) -> list[Step]:
        return [self.plain_step]

    def _nodes(self) -> int:
        return 1

    def _observe(self, rows: slice, features: Features, next_ids: Tensor, start: int | Tensor, counts: Tensor) -> None:
        """No drafter, nothing to update."""

    def _move(self, source: int, target: int) -> None:
        """No drafter, no memory to move."""


class SpeculativeDecoder(Decoder):
    """A tree of draft tokens per round, verified in one forward.

    tree: the shape that the drafter grows. large_batch_tree: the one for LARGE_BATCH rows or more. While the last rounds
    gained less than they cost (mhc.decoding.pace), or every request wants plain decoding, rounds are plain steps.
    """

    def __init__(
        self,
        backbone: Backbone,
        drafter: Drafter,
        tree: TreeShape,
        size: int,
        context: int,
        large_batch_tree: TreeShape | None = None,
        compile: bool = False,
    ):
        # after a row's text come the nodes, and the padding of the longest path
        super().__init__(backbone, size, context, max(tree.nodes, tree.max_depth + 1), compile)
        self.drafter, self.taps = drafter, drafter.taps
        self.small_batch_tree, self.large_batch_tree = tree, large_batch_tree or tree
        self.memory = drafter.allocate(size, self.batch.cache.capacity)
        self.pace = Pace(tree)
        self.nodes_grown = 0  # of the last tree

    def start(self, requests: Sequence[DecodeRequest], kinds: Sequence[Sampling] = ()) -> None:
        super().start(requests, kinds)
        self.pace = Pace(self.small_batch_tree)

    @property
    def tree(self) -> TreeShape:
        """The shape that a round grows."""
        rows = self.batch.size if self.compile else len(self.batch.serving)
        return self.small_batch_tree if rows < LARGE_BATCH else self.large_batch_tree

    def decode_round(self) -> list[list[int]]:
        if not (self.batch.wants_drafts and self.pace.pays()):
            return self.run(self.plain_step)
        emitted = self.run(self.speculative_step)
        rows = len(emitted)
        self.pace.learn(sum(map(len, emitted)) / rows, rows, self.nodes_grown, self.drafted)
        return emitted

    def speculative_step(self) -> Tensor:
        """Draft, verify, accept, commit: (D+2,B), the emitted tokens and in the last line their number per row.
        Everything stays on the device."""
        batch, cache = self.batch, self.batch.cache
        noise = batch.round_noise(self.tree.max_depth)
        tree = self.tree.grow(self.drafter, self.drafter.start_tree(self.memory, batch.active), batch.root, noise)
        self.nodes_grown = tree.tokens.shape[1]
        inputs = batch.forward_inputs(tree.ancestors, tree.depth)
        logits, features = self.backbone.decode(tree.tokens, *inputs, compiled=self.compile, taps=self.taps)
        choices = noise.target_scores(logits, tree.depth).argmax(dim=-1)
        accepted = accept(tree, choices, noise.typical(logits, tree.tokens, tree.parents), batch.max_emitted)
        batch.record_logprobs(logits, accepted.path, accepted.emitted, batch.wants_logprobs)
        cache.commit(accepted.path)
        every_row = torch.arange(len(choices), device=choices.device)[:, None]
        on_path = features.at(every_row, accepted.path)
        self._observe(batch.active, on_path, accepted.emitted, cache.start, accepted.counts)
        batch.root.copy_(accepted.emitted.gather(1, accepted.counts[:, None] - 1)[:, 0])
        return torch.cat([accepted.emitted.T, accepted.counts[None]])

    def _steps(self) -> list[Step]:
        if self.graphs and not self.tree.static:  # its growth synchronises with the host
            return []
        return [self.speculative_step, *([self.plain_step] if self.pace.watches else [])]

    def _nodes(self) -> int:
        return self.tree.nodes

    def _observe(self, rows: slice, features: Features, next_ids: Tensor, start: int | Tensor, counts: Tensor) -> None:
        self.drafter.observe(self.memory, rows, features, next_ids, start, counts)

    def _move(self, source: int, target: int) -> None:
        self.drafter.move(self.memory, source, target)
