"""Conversations answered anew, turn by turn: what is asked next, who answers, what is kept.

A *back end* is a function: requests in, one reply to each in any order. `InProcess` is this project's engine;
`mhc.server.Server` asks an OpenAI-compatible one. Everything else is the same for both.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mhc.errors import UserError
from mhc.files import write_json
from mhc.journal import Journal, digest
from mhc.messages import Messages

GIVE_UP = 50  # rejections in a row


@dataclass(frozen=True)
class Request:
    """The answer wanted behind these messages. seed: hangs on the run's seed, the conversation and the turn alone."""

    key: str
    messages: Messages
    seed: int


@dataclass(frozen=True)
class Reply:
    """An answer (text, why it ended, its tokens), or the reason why there is none; `final` if asking again is no use."""

    key: str
    text: str = ""
    finish_reason: str = ""
    tokens: int = 0
    reason: str | None = None
    final: bool = False
    attempts: int = 1


Answerer = Callable[[Sequence[Request]], Iterable[Reply]]


@dataclass
class Job:
    """A conversation on its way: `source` as it was read, `done` with the new answers so far."""

    id: str
    source: Messages
    key: str = ""
    done: Messages = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        asked = [message for message in self.source if message["role"] != "assistant"]
        self.key = digest([self.id, asked])
        self._ask()

    def _ask(self) -> None:
        """Go on to the next answer."""
        for message in self.source[len(self.done) :]:
            if message["role"] == "assistant":
                return
            self.done.append(message)

    @property
    def complete(self) -> bool:
        return not any(message["role"] == "assistant" for message in self.source[len(self.done) :])

    def request(self, seed: int) -> Request:
        """The next answer wanted."""
        own = int(digest([seed, self.key, len(self.finish_reasons)]), 16) % 2**31
        return Request(self.key, list(self.done), own)

    def answer(self, text: str, finish_reason: str) -> None:
        """Take the next answer."""
        self.done.append({"role": "assistant", "content": text})
        self.finish_reasons.append(finish_reason)
        self._ask()

    def record(self) -> dict[str, Any]:
        """The conversation up to its last answer."""
        last = max(at for at, message in enumerate(self.done) if message["role"] == "assistant")
        kept = {"messages": self.done[: last + 1], "finish_reasons": self.finish_reasons}
        return {"id": self.id, "key": self.key, **kept}


@dataclass
class Counts:
    """What a run did: conversations kept and rejected, answers and their tokens; `kept_before` by earlier runs."""

    kept_before: int = 0
    kept: int = 0
    rejected: int = 0
    answers: int = 0
    tokens: int = 0


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

    window: conversations that are worked on together; first all their first answers are asked for, then the second ones.
    What could not be answered stands in <out>.rejects.jsonl, which every run begins anew. Raises UserError where
    GIVE_UP jobs in a row were rejected, or all that there ever were, and what Journal raises.
    """
    counts, in_a_row = Counts(), 0
    partial, rejects = out.with_suffix(".partial.jsonl"), out.with_suffix(".rejects.jsonl")
    with ExitStack() as stack:
        kept, pieces = (stack.enter_context(Journal(path, tell)) for path in (out, partial))
        done = {record["key"] for record in kept.records()}
        begun: dict[str, list[tuple[str, str]]] = {}
        for piece in pieces.records():
            begun.setdefault(piece["key"], []).append((piece["text"], piece["finish_reason"]))
        waiting = {job.key: job for job in jobs}  # identical rows stand once
        counts.kept_before = sum(key in done for key in waiting)
        waiting = [job for key, job in waiting.items() if key not in done]
        for job in waiting:
            for text, reason in begun.get(job.key, [])[: sum(m["role"] == "assistant" for m in job.source)]:
                job.answer(text, reason)
        rejects.write_text("")
        refused = stack.enter_context(Journal(rejects, tell))
        progress(counts)
        for start in range(0, len(waiting), window):
            active = {job.key: job for job in waiting[start : start + window]}
            for key in [
                key for key, job in active.items() if job.complete
            ]:  # killed between its last answer and its line
                kept.append(active.pop(key).record())
                counts.kept += 1
            while active:
                for reply in answerer([job.request(seed) for job in active.values()]):
                    job = active[reply.key]
                    reason = reply.reason or (None if reply.text.strip() else "an empty answer")
                    if reason is None:
                        in_a_row = 0
                        job.answer(reply.text, reply.finish_reason)
                        counts.answers, counts.tokens = counts.answers + 1, counts.tokens + reply.tokens
                        if not job.complete:
                            pieces.append({"key": job.key, "text": reply.text, "finish_reason": reply.finish_reason})
                    else:
                        turn, in_a_row = len(job.finish_reasons), in_a_row + 1
                        told = {
                            "id": job.id,
                            "key": job.key,
                            "turn": turn,
                            "reason": reason,
                            "attempts": reply.attempts,
                        }
                        refused.append(told)
                        counts.rejected += 1
                    ended = reason is not None and (reply.final or reply.reason is None) and job.finish_reasons
                    if (reason is None and job.complete) or ended:
                        kept.append(job.record())
                        counts.kept += 1
                    if reason is not None or job.complete:
                        del active[job.key]
                    progress(counts)
                    if in_a_row >= GIVE_UP:
                        raise UserError(f"{GIVE_UP} prompts in a row were rejected, the last one: {reason}")
        if counts.rejected and not counts.kept + counts.kept_before:
            raise UserError(f"all {counts.rejected} prompts were rejected, see {rejects}; the last one: {reason}")
    if not counts.rejected:
        partial.unlink()
        rejects.unlink()
    return counts


class InProcess:
    """The engine as a back end: `batch_size` answers at once, drawn with the request's own seed."""

    def __init__(self, engine, sampling, max_new_tokens: int, batch_size: int):
        self.engine, self.sampling = engine, sampling
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, requests: Sequence[Request]) -> Iterator[Reply]:
        from mhc.chat import prompt_ids

        backbone, asked = self.engine.backbone, []
        for request in requests:
            try:
                ids = prompt_ids(backbone.tokenizer, request.messages)
            except UserError as problem:
                yield Reply(request.key, reason=str(problem), final=True)
                continue
            if len(ids) < backbone.context - 1:
                asked.append((ids, request))
            else:
                reason = f"{len(ids)} tokens do not fit the backbone's context of {backbone.context}"
                yield Reply(request.key, reason=reason, final=True)
        asked.sort(key=lambda pair: -len(pair[0]))  # long answers often follow long prompts: they should not come last
        prompts = [ids for ids, _ in asked]
        samplings = [replace(self.sampling, seed=request.seed) for _, request in asked]
        for number, answer in self.engine.generate_ids(
            prompts, self.max_new_tokens, self.batch_size, sampling=samplings
        ):
            yield Reply(asked[number][1].key, answer.text, answer.finish_reason, len(answer.token_ids))


def open_manifest(path: Path, out: Path, settings: dict[str, Any]) -> None:
    """Write the manifest of a new file; refuse to go on with one that was made with other settings."""
    if not path.exists():
        if out.exists() and out.stat().st_size:
            raise UserError(
                f"'{out}' has no {path.name} beside it, so nobody knows how it was made: choose another --out"
            )
        write_json(path, {"settings": settings})
        return
    try:
        made_with = json.loads(path.read_text())["settings"]
    except (ValueError, KeyError, TypeError) as problem:
        raise UserError(f"'{path}' is none of ours or damaged: choose another --out") from problem
    changed = [f"{name}: {made_with.get(name)}" for name in settings if made_with.get(name) != settings[name]]
    if changed:
        raise UserError(
            f"'{out}' was made with other settings ({', '.join(changed)}): choose another --out, or delete it"
        )
