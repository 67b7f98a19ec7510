"""A conversation: its questions and answers, how answers are drawn, and the file it is kept in."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from mhc.errors import UserError
from mhc.sampling import GREEDY, Sampling
from mhc.text.encoding import prompt_ids
from mhc.text.messages import Messages, clean_text
from mhc.util.files import write_json

FORMAT, VERSION = "mhc-conversation", 1
SAMPLING = ("temperature", "top_p", "top_k", "seed")
INTERRUPTED = "interrupted"  # the finish_reason of an answer that the user stopped
FINISHED = ("stop", "length", INTERRUPTED)


@dataclass
class Exchange:
    """A question and its answer. finish_reason: 'stop', 'length' or 'interrupted'."""

    question: str
    answer: str
    finish_reason: str


@dataclass
class Conversation:
    """What was said so far. sampling: how the next answer is drawn; `again` takes the next seed, everything else leaves it, so
    that the same questions get the same answers."""

    system: str = ""
    sampling: Sampling = GREEDY
    exchanges: list[Exchange] = field(default_factory=list)

    def messages(self, question: str, first: int = 0) -> Messages:
        """The conversation with a new question, from exchange `first` on. Questions without an answer are left out: no
        template foresees them."""
        messages: Messages = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self.exchanges[first:]:
            if exchange.answer:
                messages.append({"role": "user", "content": exchange.question})
                messages.append({"role": "assistant", "content": exchange.answer})
        return [*messages, {"role": "user", "content": question}]

    def prompt(
        self, tokenizer: PreTrainedTokenizerBase, question: str, context: int, room: int
    ) -> tuple[list[int], int]:
        """Token ids to be answered, and how many of the oldest exchanges were left out so that `room` tokens of the
        context are free for the answer. Raises UserError where the question alone does not fit."""
        for first in range(len(self.exchanges) + 1):
            ids = prompt_ids(tokenizer, self.messages(question, first))
            if len(ids) + room <= context:
                return ids, first
        if len(ids) >= context:
            raise UserError(
                f"the question takes {len(ids)} tokens{' with the system prompt' if self.system else ''}, the model's "
                f"context is {context}: shorten it"
            )
        return ids, len(self.exchanges)

    def again(self) -> Exchange:
        """Take the last exchange out, to answer its question anew: with the next seed, where answers are drawn."""
        last = self.remove()
        if self.sampling.temperature:
            self.sampling = replace(self.sampling, seed=(self.sampling.seed + 1) % 2**63)
        return last

    def remove(self) -> Exchange:
        """Take the last exchange out; UserError where there is none."""
        if not self.exchanges:
            raise UserError("nothing was said yet")
        return self.exchanges.pop()

    def reset(self) -> int:
        """Forget all that was said; how many exchanges that were."""
        count = len(self.exchanges)
        self.exchanges.clear()
        return count

    def save(self, path: Path, overwrite: bool = False) -> None:
        """Write the conversation as JSON, whole or not at all. UserError where the file exists, but for `overwrite`."""
        file = os.path.isfile(path)
        if os.path.exists(path) and not (overwrite and file):
            raise UserError(f"'{path}' exists{'' if file else ' and is no file'}: choose another name")
        messages: Messages = [{"role": "system", "content": self.system}] if self.system else []
        for exchange in self.exchanges:
            messages.append({"role": "user", "content": exchange.question})
            messages.append({"role": "assistant", "content": exchange.answer, "finish_reason": exchange.finish_reason})
        sampling = {name: getattr(self.sampling, name) for name in SAMPLING}
        try:
            write_json(path, {"format": FORMAT, "version": VERSION, "sampling": sampling, "messages": messages})
        except (OSError, ValueError) as problem:
            raise UserError(f"cannot write '{path}' ({_reason(problem)}): choose another name") from problem

    @classmethod
    def load(cls, path: Path) -> "Conversation":
        """The conversation that `save` wrote; UserError where it cannot be read or is something else."""
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as problem:
            raise UserError(f"cannot read '{path}' ({_reason(problem)}): give a file that !!save wrote") from problem
        try:
            saved = json.loads(data.decode())
        except (ValueError, RecursionError) as problem:
            raise UserError(f"'{path}' is damaged or no conversation: give a file that !!save wrote") from problem
        if not isinstance(saved, dict) or saved.get("format") != FORMAT:
            raise UserError(f"'{path}' is no conversation: give a file that !!save wrote")
        if saved.get("version") != VERSION:
            raise UserError(f"'{path}' is of version {saved.get('version')!r}, this program reads {VERSION}: update it")
        try:
            system, exchanges = _read(saved["messages"])
            return cls(system, _sampling(saved["sampling"]), exchanges)
        except (KeyError, TypeError, ValueError, UserError) as problem:
            raise UserError(f"'{path}' is damaged ({problem}): give a file that !!save wrote") from problem


def _read(messages: Any) -> tuple[str, list[Exchange]]:
    """The system prompt and the exchanges of a file's messages; ValueError where they are not what `save` writes."""
    roles = [message["role"] for message in messages]
    system = roles[:1] == ["system"]
    turns = messages[system:]
    if roles[system:] != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError("questions and answers do not take turns")
    for message in messages:
        if not isinstance(message["content"], str) or message["content"] != clean_text(message["content"]):
            raise ValueError("what was said is no text")
    exchanges = []
    for question, answer in zip(turns[::2], turns[1::2]):
        if answer["finish_reason"] not in FINISHED:
            raise ValueError(f"an answer's finish_reason is none of {', '.join(FINISHED)}")
        exchanges.append(Exchange(question["content"], answer["content"], answer["finish_reason"]))
    return (messages[0]["content"] if system else ""), exchanges


def _reason(problem: Exception) -> str:
    return getattr(problem, "strerror", None) or str(problem)


def _sampling(numbers: dict[str, Any]) -> Sampling:
    if set(numbers) != set(SAMPLING) or any(type(number) not in (int, float) for number in numbers.values()):
        raise ValueError(f"sampling is not {', '.join(SAMPLING)}")
    return Sampling(**numbers)
