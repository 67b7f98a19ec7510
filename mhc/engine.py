"""The façade: a target model, optionally with draft heads, that answers prompts.

Plain and speculative decoding emit exactly the same tokens: emitted tokens are always the target model's own choices.
*Tokens per step* counts the bonus token, so plain decoding has 1.0.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import for_decoding, load_drafter
from mhc.decoding.decoder import Decoder, PlainDecoder, SpeculativeDecoder
from mhc.decoding.request import DecodeRequest, Generation, StepOutput
from mhc.decoding.scheduler import Scheduler
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling
from mhc.text.encoding import end_token_ids, prompt_ids
from mhc.trees.shapes import FixedTree, TreeShape, parse_tree


class Engine:
    """A target model, optionally with a drafter and the shape of the trees that it grows (default: a chain).

    compile: rounds run as compiled programs over buffers of fixed sizes, which on CUDA are captured whole (drafting,
    verification, acceptance, commit) as CUDA graphs. Worth its warm-up where kernel launches dominate.
    """

    def __init__(
        self, backbone: Backbone, drafter: Drafter | None = None, tree: TreeShape | None = None, compile: bool = False
    ):
        self.backbone, self.drafter, self.compile = backbone, drafter, compile
        self.tree = tree or FixedTree.chain(0 if drafter is None else drafter.draft_length)
        self.large_batch_tree: TreeShape | None = None
        self._idle: list[Decoder] = []  # a compiled decoder with its buffers, for the next call
        if drafter is not None:
            if self.tree.max_depth > drafter.draft_length:
                raise UserError(
                    f"the tree is {self.tree.max_depth} deep but the drafter has {drafter.draft_length} heads: cut the tree"
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
            end = configured.eos_token_id
            self.end_ids = set(end) if isinstance(end, list) else {end}

    @classmethod
    def from_checkpoint(
        cls, path: str, backbone: str | None = None, tree: Any = None, compile: bool = False, **loading: Any
    ) -> "Engine":
        """The engine of a checkpoint folder. backbone: load the model from here; tree (see `parse_tree`): by default
        the tuned one if there is one, else the checkpoint's; loading: device, dtype, quantize as in `Backbone.load`."""
        chosen = None if tree is None else parse_tree(tree)
        drafter, stored = load_drafter(path, backbone, **loading)
        return cls(drafter.backbone, for_decoding(drafter), chosen or stored, compile)

    def with_large_batch_tree(self) -> "Engine":
        """Draft a single token per row once LARGE_BATCH rows or more are decoded at once: the hardware is already saturated,
        so larger trees cost more than they gain (docs/log.md)."""
        self.large_batch_tree = FixedTree.chain(1)
        return self

    @property
    def speculates(self) -> bool:
        """Whether it has a drafter and a tree with draft tokens."""
        return self.drafter is not None and self.tree.nodes > 1

    def require_drafter(self) -> Drafter:
        """The drafter. Raises UserError where there is none."""
        if self.drafter is None:
            raise UserError("this engine has no draft heads: give a checkpoint that has some")
        return self.drafter

    def decoder(self, size: int, context: int, plain: bool = False) -> Decoder:
        """A decoder for `size` rows of at most `context` tokens, prompt and answer together; plain: without drafts."""
        if plain or not self.speculates:
            return PlainDecoder(self.backbone, size, context, self.compile)
        return self.speculative_decoder(size, context)

    def speculative_decoder(self, size: int, context: int) -> SpeculativeDecoder:
        """As `decoder`, drafting even where the tree is only a root. Raises UserError without a drafter."""
        return SpeculativeDecoder(
            self.backbone, self.require_drafter(), self.tree, size, context, self.large_batch_tree, self.compile
        )

    def scheduler(self, size: int, context: int) -> Scheduler:
        """Continuous batching of up to `size` requests at once, each of at most `context` tokens with its answer. Compiles
        here, where the engine is to compile."""
        context = min(context, self.backbone.context)
        decoder = self.decoder(size, context)
        decoder.start(
            [], kinds=[GREEDY, Sampling(temperature=1.0, top_p=0.5)]
        )  # so that a compiled round can serve any
        decoder.warm_up()
        return Scheduler(decoder, self.end_ids, context)

    def stream(
        self,
        requests: Sequence[DecodeRequest],
        batch_size: int = 1,
        warming: Callable[[int, int], None] | None = None,
    ) -> Iterator[StepOutput]:
        """Answer requests, up to `batch_size` at once, and yield what each step emitted, under the number of its request.

        Waiting requests take the place of finished ones; each request gets the tokens it would get
        alone. warming(done, total) reports compilation.
        Raises UserError where a prompt leaves no tokens of the backbone's context.
        """
        if not requests:
            return
        context = self.backbone.context
        requests = [request.within(context, number) for number, request in enumerate(requests)]
        decoder = self._decoder_for(requests, min(batch_size, len(requests)))
        decoder.start(requests)
        decoder.warm_up(warming)
        scheduler = Scheduler(decoder, self.end_ids, context)
        while scheduler.busy:
            yield from scheduler.step()
        if self.compile:
            self._idle = [decoder]  # the latest only: buffers are large

    def _decoder_for(self, requests: Sequence[DecodeRequest], size: int) -> Decoder:
        """A decoder large enough for these requests; a compiled one is reused from an earlier call."""
        context = max(len(request.prompt) + request.max_new_tokens for request in requests)
        plain = all(request.plain for request in requests) or not self.speculates
        for decoder in self._idle:
            if isinstance(decoder, PlainDecoder) == plain and decoder.batch.size == size and decoder.context >= context:
                self._idle.remove(decoder)
                return decoder
        return self.decoder(size, context, plain)

    # ---- the usual entry points

    def generate_ids(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int = 256,
        batch_size: int = 1,
        plain: bool = False,
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        warming: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Generation]]:
        """Answers to prompts of token ids as they finish: (number of the prompt, Generation).
        sampling: one for all prompts, or one each; the rest as in `stream`."""
        settings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else list(sampling)
        if len(settings) != len(prompts):
            raise UserError(f"{len(prompts)} prompts but {len(settings)} samplings: give one for all, or one each")
        requests = [DecodeRequest(prompt, max_new_tokens, own, plain) for prompt, own in zip(prompts, settings)]
        started: dict[int, float] = {}
        answers: dict[int, Generation] = {}
        last = time.perf_counter()

        def warmed(done: int, total: int) -> None:
            nonlocal last  # compilation does not count as an answer's time
            last = time.perf_counter()
            if warming:
                warming(done, total)

        for output in self.stream(requests, batch_size, warmed):
            started.setdefault(output.request, last)
            answer = answers.setdefault(output.request, Generation())
            answer.append(output)
            last = time.perf_counter()
            if output.finish_reason is not None:
                answer.seconds = last - started.pop(output.request)
                if self.backbone.tokenizer is not None:
                    answer.text = self.backbone.tokenizer.decode(answer.token_ids, skip_special_tokens=True)
                yield output.request, answers.pop(output.request)

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
