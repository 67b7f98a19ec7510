"""Conversations whose answers are generated again, turn by turn: the next requests, the answerers, and what is written.

An *answerer* is a function: requests in, one reply to each in any order. It takes requests as it has room for them. Every
reply may bring a further request, so it iterates over them again until there is none and no reply is due. `InProcess` is
this project's engine; `mhc.distill.openai_server.OpenAIAnswerer` calls an OpenAI-compatible server.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhc.errors import UserError
from mhc.text.messages import Messages
from mhc.util.journal import Journal, digest

if TYPE_CHECKING:  # with a server there is nothing to load torch for
    from mhc.sampling import Sampling

GIVE_UP = 50  # rejections in a row


@dataclass(frozen=True)
class Request:
    """The answer wanted behind these messages. seed: depends on the run's seed, the conversation and the turn alone."""

    key: str
    messages: Messages
    seed: int


@dataclass(frozen=True)
class Reply:
    """An answer (text, why it ended, its tokens), or the reason why there is none; `final` if a retry cannot help; attempts:
    how often it was tried, 0 where no attempt could succeed; more: what else its message has, such as `token_ids`, which
    training learns as they were decoded, or a server's `reasoning_content`."""

    key: str
    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    reason: str | None = None
    final: bool = False
    attempts: int = 1
    more: dict[str, Any] = field(default_factory=dict)


Answerer = Callable[[Iterable[Request]], Iterable[Reply]]


@dataclass
class Job:
    """A conversation in progress: `source` as it was read, `done` with the new answers so far."""

    id: str
    source: Messages
    key: str = ""
    done: Messages = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        prompts = [message for message in self.source if message["role"] != "assistant"]
        self.key = digest([self.id, prompts])
        self._copy_prompts()

    def _copy_prompts(self) -> None:
        """Append to `done` what stands before the next answer."""
        for message in self.source[len(self.done) :]:
            if message["role"] == "assistant":
                return
            self.done.append(message)

    @property
    def complete(self) -> bool:
        return not any(message["role"] == "assistant" for message in self.source[len(self.done) :])

    def request(self, seed: int) -> Request:
        """The request for the next answer."""
        own_seed = int(digest([seed, self.key, len(self.finish_reasons)]), 16) % 2**31
        return Request(self.key, list(self.done), own_seed)

    def answer(self, text: str, finish_reason: str, more: dict[str, Any]) -> None:
        """Append the next answer, a message with `more` than a text."""
        self.done.append({"role": "assistant", "content": text, **more})
        self.finish_reasons.append(finish_reason)
        self._copy_prompts()

    def record(self) -> dict[str, Any]:
        """The conversation up to its last answer."""
        last = max(place for place, message in enumerate(self.done) if message["role"] == "assistant")
        answered = {"messages": self.done[: last + 1], "finish_reasons": self.finish_reasons}
        return {"id": self.id, "key": self.key, **answered}


@dataclass
class Counts:
    """What a run did: conversations kept and rejected, answers and their tokens; `kept_before` by earlier runs."""

    kept_before: int = 0
    kept: int = 0
    rejected: int = 0
    answers: int = 0
    tokens: int = 0


class Requests:
    """The requests that can be made now: the next turns of conversations in progress, then the first turns of others. At
    most `window` conversations are in progress."""

    def __init__(self, jobs: Iterable[Job], seed: int, window: int):
        self.fresh, self.seed, self.window = iter(jobs), seed, window
        self.active: dict[str, Job] = {}
        self.next_turns: deque[Job] = deque()

    def __iter__(self) -> Iterator[Request]:
        while job := self._next():
            yield job.request(self.seed)

    def _next(self) -> Job | None:
        if self.next_turns:
            return self.next_turns.popleft()
        job = next(self.fresh, None) if len(self.active) < self.window else None
        if job is not None:
            self.active[job.key] = job
        return job


def partial_of(out: Path) -> Path:
    """The file with the answers of unfinished conversations."""
    return out.with_suffix(".partial.jsonl")


def answer_all(
    jobs: Sequence[Job],
    answerer: Answerer,
    out: Path,
    seed: int,
    window: int,
    tell: Callable[[str], None],
    progress: Callable[[Counts], None] = lambda counts: None,
) -> Counts:
    """Append a record to `out` for every job that is not in it, and keep what is not finished in <out>.partial.jsonl.

    window: conversations in progress at once. What could not be answered is in <out>.rejects.jsonl, which every run begins
    anew. Raises UserError where GIVE_UP jobs in a row were rejected (those without an attempt do not count) or all jobs
    were, and what Journal raises.
    """
    counts, in_a_row = Counts(), 0
    partial, rejects = partial_of(out), out.with_suffix(".rejects.jsonl")
    with ExitStack() as stack:
        kept, pieces = (stack.enter_context(Journal(path, tell)) for path in (out, partial))
        done = {record["key"] for record in kept.records()}
        begun: dict[str, list[tuple[str, str, dict[str, Any]]]] = {}
        for piece in pieces.records():
            answers = begun.setdefault(piece["key"], [])
            if piece["turn"] == len(answers):  # else it followed an answer that is damaged now
                answers.append((piece["text"], piece["finish_reason"], piece.get("more", {})))
        unique = {job.key: job for job in jobs}  # identical rows are answered once
        counts.kept_before = sum(key in done for key in unique)
        waiting = [job for key, job in unique.items() if key not in done]
        for job in waiting:
            for answer in begun.get(job.key, [])[: sum(m["role"] == "assistant" for m in job.source)]:
                job.answer(*answer)
        rejects.write_text("", encoding="utf-8")
        refused = stack.enter_context(Journal(rejects, tell))
        progress(counts)
        for job in [job for job in waiting if job.complete]:  # killed between its last answer and its line
            kept.append(job.record())
            counts.kept += 1
        requests = Requests([job for job in waiting if not job.complete], seed, window)
        refusal: str | None = None
        for reply in answerer(requests):
            job = requests.active[reply.key]
            turn = len(job.finish_reasons)
            refusal = reply.reason or (
                None if reply.text.strip() or reply.more.get("tool_calls") else "an empty answer"
            )
            if refusal is None:
                in_a_row = 0
                job.answer(reply.text, reply.finish_reason, reply.more)
                counts.answers, counts.tokens = counts.answers + 1, counts.tokens + reply.tokens
                if not job.complete:
                    piece = {"key": job.key, "turn": turn, "text": reply.text, "finish_reason": reply.finish_reason}
                    pieces.append(piece | ({"more": reply.more} if reply.more else {}))
                    requests.next_turns.append(job)
                    continue
            else:
                in_a_row += reply.attempts > 0
                record = {"id": job.id, "key": job.key, "turn": turn, "reason": refusal, "attempts": reply.attempts}
                refused.append(record)
                counts.rejected += 1
            ended = refusal is not None and (reply.final or reply.reason is None) and turn
            if refusal is None or ended:
                kept.append(job.record())
                counts.kept += 1
            del requests.active[job.key]
            progress(counts)
            if in_a_row >= GIVE_UP:
                raise UserError(f"{GIVE_UP} prompts in a row were rejected, the last one: {refusal}")
        if counts.rejected and not counts.kept + counts.kept_before:
            raise UserError(f"all {counts.rejected} prompts were rejected, see {rejects}; the last one: {refusal}")
    if not counts.rejected:
        partial.unlink()
        rejects.unlink()
    return counts


class InProcess:
    """An `Engine`, which stands above this room, as an answerer: `batch_size` answers at once, each with its own seed."""

    def __init__(self, engine: Any, sampling: "Sampling", max_new_tokens: int, batch_size: int):
        self.engine, self.sampling = engine, sampling
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size
        self.unwritten = Counter[str]()  # by field of a message, prompts whose template does not write it

    def __call__(self, requests: Iterable[Request]) -> Iterator[Reply]:
        from mhc.text.chat_template import chat_template
        from mhc.text.encoding import prompt_ids

        backbone = self.engine.backbone
        template = chat_template(backbone.tokenizer)
        while waiting := list(requests):  # all that there are now, so that batches stay full
            fitting = []
            for request in waiting:
                try:
                    messages, unwritten = template.written(request.messages)
                    self.unwritten.update(unwritten)
                    ids = prompt_ids(backbone.tokenizer, messages)
                except UserError as problem:
                    yield Reply(request.key, reason=str(problem), final=True, attempts=0)
                    continue
                if len(ids) < backbone.context - 1:
                    fitting.append((ids, request))
                else:
                    reason = f"{len(ids)} tokens do not fit the backbone's context of {backbone.context}"
                    yield Reply(request.key, reason=reason, final=True, attempts=0)
            # Long answers often follow long prompts: they should not come last.
            fitting.sort(key=lambda pair: -len(pair[0]))
            prompts = [ids for ids, _ in fitting]
            samplings = [replace(self.sampling, seed=request.seed) for _, request in fitting]
            answers = self.engine.generate_ids(prompts, self.max_new_tokens, self.batch_size, sampling=samplings)
            for number, answer in answers:
                ids = answer.token_ids
                yield Reply(
                    fitting[number][1].key, answer.text, answer.finish_reason, len(ids), more={"token_ids": ids}
                )
