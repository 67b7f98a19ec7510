"""The sequences being decoded together, and everything that one round of them reads and writes.

B rows   N nodes   S slots
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch

from mhc.backbone.attention import tree_mask
from mhc.backbone.cache import TreeCache
from mhc.decoding.cuda_graphs import Graphs
from mhc.decoding.pace import Pace
from mhc.sampling import GREEDY, Draw, Sampler, Sampling
from mhc.trees.shapes import Shape

if TYPE_CHECKING:
    from mhc.engine import Engine

BUCKET = {"cuda": 256, "cpu": 8}  # compiled rounds attend to a multiple of so many slots, CUDA graphs to few multiples
PREFILL_TOKENS = {"cuda": 8192, "cpu": 1024}  # prompts are read several at once, up to so many tokens with padding
TOGETHER = 8  # prompts are waited for until this part of the rows is free: reading them one by one costs twice as much
MANY = 16  # rows, from which on one guess each may be enough
MOST = 1 << 30  # tokens a round may emit: as many as are right
TOP = 20  # likeliest tokens that are told of where likelihoods are asked for


class Asked(NamedTuple):
    """One prompt: its token ids, how many tokens may follow it, how they are drawn; plain: one token a round;
    likelihoods: whether to tell what the backbone thought of each token."""

    prompt: list[int]
    room: int
    sampling: Sampling = GREEDY
    plain: bool = False
    likelihoods: bool = False


class Rows:
    """The sequences being decoded together: their cache, the drafter's memory, their roots and their dice.

    Everything a round reads and writes lies in buffers made once, so that a round can be captured.
    """

    def __init__(self, engine: "Engine", size: int, capacity: int, speculate: bool):
        self.engine, self.size, self.speculate = engine, size, speculate
        device = engine.backbone.device
        self.bucket, self.most_read = BUCKET.get(device.type, 256), PREFILL_TOKENS.get(device.type, 8192)
        self.cache = engine.backbone.cache(size, capacity, self.bucket if engine.compile else None)
        self.memory = engine.drafter.allocate(size, self.cache.capacity) if speculate else None
        self._root, self._most = torch.zeros(2, size, dtype=torch.long, device=device)
        self.sampler = Sampler(size, engine.backbone.vocabulary_size, device)
        self.alone = (  # the tree of a root: ancestors and depth
            torch.ones(1, 1, 1, dtype=torch.bool, device=device),
            torch.zeros(1, 1, dtype=torch.long, device=device),
        )
        self.compiled = engine.compile
        self.graphs = Graphs() if self.compiled and device.type == "cuda" else None

    def start(self, asked: Sequence[Asked], kinds: Sequence[Sampling] = ()) -> None:
        """Serve these prompts from now on, numbered in order; none is read yet. kinds: settings that may come besides."""
        self.asked = dict(enumerate(asked))
        self.serving: list[int] = []  # prompt number of each row
        self.left: list[int] = []  # tokens each may still emit
        self.grown = 0  # nodes of the last tree
        self.levels = 0  # guesses in a row that the last forward verified at most
        self.noted: tuple[torch.Tensor, ...] | None = None  # the last forward's likelihoods, where they are wanted
        self.pace = Pace(self.engine.tree) if self.speculate else None
        self.cache.lengths = [0] * self.size
        sampling = [each.sampling for each in asked]
        self.sampler.declare([*sampling, *kinds] or [GREEDY])
        self.sampler.assign(([*sampling, *[GREEDY] * self.size])[: self.size])
        self._most.fill_(MOST)

    def run(self, round: Callable[["Rows"], torch.Tensor]) -> torch.Tensor:
        """One round of the rows being served."""
        key = self._key(round)
        return self.graphs.replay(key) if self.graphs and key in self.graphs else round(self)

    def _key(self, round: Callable) -> tuple:
        return round.__name__, self.cache.extent(self.nodes), self.sampler.signature, self.notes

    def warm_up(self, round: Callable[["Rows"], torch.Tensor]) -> Iterator[tuple[int, int]]:
        """Compile and capture what the prompts at hand will need, or any where there are none yet; yields (done, of how many).
        Before any prefill."""
        if not self.compiled or (self.speculate and not self.engine.tree.static and self.graphs):
            return
        asked = self.asked.values()
        least = min((len(each.prompt) for each in asked), default=1)
        most = max((len(each.prompt) + each.room for each in asked), default=self.cache.capacity)
        most = min(most, self.cache.capacity - self.nodes)
        lengths = [*range(max(1, least // self.bucket * self.bucket), most, self.bucket), most]
        if self.graphs is None:
            lengths = lengths[:2]  # the second length is compiled for all others as well
        for done, length in enumerate(lengths):
            self.cache.lengths = [length] * self.size
            self.cache.select(0, self.size)
            if self.graphs is None:
                round(self)
            elif (key := self._key(round)) not in self.graphs:
                self.graphs.record(key, lambda: round(self))
            yield done + 1, len(lengths)
        self.cache.lengths = [0] * self.size

    @property
    def steps_plainly(self) -> bool:
        """Whether plain steps may come, if only in pauses."""
        return self.pace is None or self.pace.watches

    @property
    def taps(self) -> tuple[int, ...]:
        """Layers whose inputs the drafter wants to read."""
        return () if self.memory is None else self.engine.drafter.taps

    @property
    def tree(self) -> Shape:
        """The shape that a round grows: the engine's, or its one of many rows."""
        many = self.engine.tree_of_many
        rows = self.size if self.compiled else len(self.serving)
        return self.engine.tree if many is None or rows < MANY else many

    @property
    def nodes(self) -> int:
        """The most nodes that a round writes."""
        return self.tree.nodes if self.speculate else 1

    @property
    def guesses(self) -> bool:
        """Whether any prompt being served wants the heads' guesses."""
        return not all(self.asked[number].plain for number in self.serving)

    @property
    def most(self) -> torch.Tensor:
        """(B,) tokens that a round may emit; a view."""
        return self._most[self.active]

    @property
    def root(self) -> torch.Tensor:
        """(B,) tokens that are decided and not yet read; a view, to be written in place."""
        return self._root[self.active]

    @property
    def active(self) -> slice:
        """The rows that a round computes: those being served; in compiled rounds, whose shapes are fixed, all."""
        return slice(0, self.size if self.compiled else len(self.serving))

    def has_room(self, waiting: deque[int]) -> bool:
        """Whether enough rows are free to read waiting prompts into."""
        free = self.size - len(self.serving)
        return free >= max(1, min(self.size // TOGETHER, len(waiting)))

    def next_of(self, waiting: deque[int]) -> list[int]:
        """As many waiting prompts as there are free rows, as far as one forward should read."""
        numbers, longest = [], 0
        while waiting and len(self.serving) + len(numbers) < self.size:
            longest = max(longest, len(self.asked[waiting[0]].prompt))
            if numbers and longest * (len(numbers) + 1) > self.most_read:
                break
            numbers.append(waiting.popleft())
        return numbers

    def draw(self, depth: int) -> Draw:
        """The dice of this round, for a tree `depth` deep."""
        start = self.cache.start
        return self.sampler.round(start if isinstance(start, int) else start[:, None], depth)

    def places(
        self, ancestors: torch.Tensor, depth: torch.Tensor
    ) -> tuple[torch.Tensor, TreeCache, dict[str, torch.Tensor] | None]:
        """Positions (B,N), cache and mask for a forward over nodes of these depths (1|B,N).

        Positions are kept inside the context: nodes beyond it are never emitted, but models with
        learned positions could not even look them up.
        """
        cache, backbone = self.cache, self.engine.backbone
        start = cache.start
        rows, nodes = self.active.stop, ancestors.shape[1]
        places = depth + (start if cache.even else start[:, None])
        positions = places.clamp(max=backbone.context - 1).expand(rows, -1)
        if nodes == 1 and cache.even and (backbone.window is None or cache.longest < backbone.window):
            return positions, cache, None  # plain causal attention sees the same
        mask = {
            kind: tree_mask(
                ancestors, depth, start, cache.extent(nodes), backbone.window if kind == "sliding_attention" else None
            )
            for kind in backbone.layer_types
        }
        return positions, cache, mask

    def join(self, number: int, token: int) -> None:
        """A prefilled prompt becomes the last row."""
        self.serving.append(number)
        self.left.append(self.asked[number].room)
        self._root[len(self.serving) - 1] = token
        self._assign()

    def leave(self, row: int) -> None:
        """A finished row's place is taken by the last one."""
        number, last = self.serving[row], len(self.serving) - 1
        if row != last:
            self.cache.move(last, row)
            if self.memory is not None:
                self.engine.drafter.move(self.memory, last, row)
            self._root[row] = self._root[last]
            self.serving[row], self.left[row] = self.serving[last], self.left[last]
        del self.asked[number]
        self.serving.pop()
        self.left.pop()
        self.cache.clear(last)  # its text may be longer than any that is served
        self._assign()

    def _assign(self) -> None:
        """Write the rows' own settings where the rounds read them."""
        asked = [self.asked[number] for number in self.serving]
        idle = self.active.stop - len(asked)
        if not self.compiled:  # compiled rounds keep to the kinds declared at the start
            self.sampler.declare([each.sampling for each in asked] or [GREEDY])
        self.sampler.assign([each.sampling for each in asked] + [GREEDY] * idle)
        if asked:
            self.most.copy_(torch.tensor([1 if each.plain else MOST for each in asked] + [MOST] * idle))

    # ---- what the backbone thought of the tokens

    @property
    def notes(self) -> bool:
        """Whether likelihoods are asked for."""
        return any(self.asked[number].likelihoods for number in self.serving)

    def note(self, logits: torch.Tensor, path: torch.Tensor, emitted: torch.Tensor, asked: Sequence[bool] = ()) -> None:
        """Keep the likelihoods of the tokens emitted (B,P), by the logits (B,N,V) at nodes path (B,P), where a row served
        or `asked` wants them."""
        self.noted = None
        if any(asked) or (not asked and self.notes):
            at = logits.gather(1, path[..., None].expand(-1, -1, logits.shape[-1])).float().log_softmax(dim=-1)
            best = at.topk(min(TOP, at.shape[-1]), dim=-1)
            self.noted = at.gather(2, emitted[..., None])[..., 0], best.indices, best.values

    def likelihoods(self) -> list[list[tuple[float, list[tuple[int, float]]]]]:
        """Of the last forward, by row and token: its log-probability and the likeliest tokens with theirs."""
        if self.noted is None:
            return []
        return [
            [(own, list(zip(ids, values))) for own, ids, values in zip(*row)]
            for row in zip(*(part.tolist() for part in self.noted))
        ]
