"""The rows that are decoded together: the buffers that a round reads and writes, with any drafter.

B rows   N nodes   P tokens emitted a row   S slots   V vocabulary
"""

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from mhc.backbone.cache import TreeCache
from mhc.backbone.model import Backbone
from mhc.decoding.request import DecodeRequest, TokenLogprob
from mhc.sampling import GREEDY, RoundNoise, Sampler, Sampling

BUCKET = {"cuda": 256, "cpu": 8}  # compiled rounds attend to a multiple of this many slots
PREFILL_TOKENS = {"cuda": 8192, "cpu": 1024}  # tokens of one prefill at most, padding included
PREFILL_SHARE = 8  # prefill waits until 1/8 of the rows are free: reading prompts one by one costs twice as much
UNLIMITED = 1 << 30  # tokens that a round may emit for a row: as many as are accepted
TOP_LOGPROBS = 20  # likeliest tokens reported beside each token


class DecodeBatch:
    """Up to `size` sequences decoded together: their cache, their roots and their noise.

    capacity: slots of a row, those of a round's nodes included. fixed: each round computes all rows over a padded cache,
    so that it can be compiled and captured; all its buffers are allocated once.
    """

    def __init__(self, backbone: Backbone, size: int, capacity: int, fixed: bool = False):
        self.backbone, self.size, self.fixed = backbone, size, fixed
        device = backbone.device
        self.bucket = BUCKET.get(device.type, 256)
        self.prefill_tokens = PREFILL_TOKENS.get(device.type, 8192)
        self.cache: TreeCache = backbone.cache(size, capacity, self.bucket if fixed else None)
        self._root, self._max_emitted = torch.zeros(2, size, dtype=torch.long, device=device)
        self.sampler = Sampler(size, backbone.vocabulary_size, device)
        self.root_only = (  # the tree of a root: ancestors and depth
            torch.ones(1, 1, 1, dtype=torch.bool, device=device),
            torch.zeros(1, 1, dtype=torch.long, device=device),
        )
        self.start([])

    def start(self, requests: Sequence[DecodeRequest], kinds: Sequence[Sampling] = ()) -> None:
        """Serve these requests from now on, numbered in order; none is prefilled yet. kinds: further settings to expect."""
        self.requests = dict(enumerate(requests))
        self.serving: list[int] = []  # request number of each row
        self.remaining: list[int] = []  # tokens that each row may still emit
        self._logprobs: tuple[Tensor, Tensor, Tensor] | None = None  # of the last forward, where a request wants them
        self.cache.lengths = [0] * self.size
        sampling = [request.sampling for request in requests]
        self.sampler.declare([*sampling, *kinds] or [GREEDY])
        self.sampler.assign(([*sampling, *[GREEDY] * self.size])[: self.size])
        self._max_emitted.fill_(UNLIMITED)

    @property
    def max_emitted(self) -> Tensor:
        """(B,) tokens that a round may emit; a view."""
        return self._max_emitted[self.active]

    @property
    def root(self) -> Tensor:
        """(B,) tokens that are decided but not yet read by the target model; a view, to be written in place."""
        return self._root[self.active]

    @property
    def active(self) -> slice:
        """The rows that a round computes: those being served, or in fixed rounds, whose shapes never change, all."""
        return slice(0, self.size if self.fixed else len(self.serving))

    def activate(self) -> None:
        """Have the next forward serve the active rows."""
        self.cache.set_active(self.active.start, self.active.stop)

    @property
    def wants_drafts(self) -> bool:
        """Whether any request being served wants draft tokens."""
        return not all(self.requests[number].plain for number in self.serving)

    def can_admit(self, waiting: int) -> bool:
        """Whether enough rows are free to prefill some of `waiting` prompts."""
        free = self.size - len(self.serving)
        return free >= max(1, min(self.size // PREFILL_SHARE, waiting))

    def take_prefill_group(self, waiting: deque[int]) -> list[int]:
        """As many waiting requests as there are free rows and as fit into one prefill."""
        numbers: list[int] = []
        longest = 0
        while waiting and len(self.serving) + len(numbers) < self.size:
            longest = max(longest, len(self.requests[waiting[0]].prompt))
            if numbers and longest * (len(numbers) + 1) > self.prefill_tokens:
                break
            numbers.append(waiting.popleft())
        return numbers

    def round_noise(self, depth: int) -> RoundNoise:
        """The noise of this round, for a tree `depth` deep."""
        start = self.cache.start
        return self.sampler.for_round(start if isinstance(start, int) else start[:, None], depth)

    def forward_inputs(self, ancestors: Tensor, depth: Tensor) -> tuple[Tensor, TreeCache, dict[str, Tensor] | None]:
        """Positions (B,N), cache and mask for a forward over nodes of these depths (1|B,N)."""
        return self.backbone.tree_inputs(self.cache, self.active.stop, ancestors, depth)

    def admit(self, numbers: list[int], tokens: Tensor) -> None:
        """Prefilled requests become the last rows; tokens (B,) are the first of their answers."""
        self._root[len(self.serving) : len(self.serving) + len(numbers)] = tokens
        self.serving += numbers
        self.remaining += [self.requests[number].max_new_tokens for number in numbers]
        self._assign()

    def evict(self, row: int) -> None:
        """Remove a finished row; the last row takes its place."""
        number, last = self.serving[row], len(self.serving) - 1
        if row != last:
            self.cache.move(last, row)
            self._root[row] = self._root[last]
            self.serving[row], self.remaining[row] = self.serving[last], self.remaining[last]
        del self.requests[number]
        self.serving.pop()
        self.remaining.pop()
        self.cache.clear(last)  # its text may be longer than any being served
        self._assign()

    def _assign(self) -> None:
        """Write each row's settings into the buffers that rounds read."""
        requests = [self.requests[number] for number in self.serving]
        idle = self.active.stop - len(requests)
        if not self.fixed:  # fixed rounds keep the kinds declared at the start
            self.sampler.declare([request.sampling for request in requests] or [GREEDY])
        self.sampler.assign([request.sampling for request in requests] + [GREEDY] * idle)
        if requests:
            limits = [1 if request.plain else UNLIMITED for request in requests] + [UNLIMITED] * idle
            self.max_emitted.copy_(torch.tensor(limits))

    def snapshot(self) -> tuple[list[int], Tensor]:
        """The state of all rows, for `restore`."""
        return list(self.cache.lengths), self._root.clone()

    def restore(self, snapshot: tuple[list[int], Tensor]) -> None:
        """Go back to a snapshot; what was committed since is overwritten by the next round."""
        lengths, root = snapshot
        self.cache.lengths = list(lengths)
        self._root.copy_(root)
        self.activate()

    # ---- log-probabilities of emitted tokens

    @property
    def wants_logprobs(self) -> bool:
        """Whether any request being served wants them."""
        return any(self.requests[number].logprobs for number in self.serving)

    def record_logprobs(self, logits: Tensor, path: Tensor, emitted: Tensor, wanted: bool) -> None:
        """If `wanted`, store the logprobs of the tokens emitted (B,P), from the logits (B,N,V) at nodes path (B,P)."""
        self._logprobs = None
        if wanted:
            at_path = logits.gather(1, path[..., None].expand(-1, -1, logits.shape[-1])).float().log_softmax(dim=-1)
            best = at_path.topk(min(TOP_LOGPROBS, at_path.shape[-1]), dim=-1)
            self._logprobs = at_path.gather(2, emitted[..., None])[..., 0], best.indices, best.values

    def logprobs(self) -> list[list[TokenLogprob]]:
        """Those of the last forward, by row and token; empty where no request wants them."""
        if self._logprobs is None:
            return []
        emitted, ids, values = (part.tolist() for part in self._logprobs)
        return [
            [TokenLogprob(logprob, list(zip(*top))) for logprob, *top in zip(*row)] for row in zip(emitted, ids, values)
        ]
