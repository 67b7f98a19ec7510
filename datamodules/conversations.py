"""Conversations as batches of token ids with a supervision mask, and held-out prompts to decode.

    B rows   T time

mask[b, t] is True where token t is a target (assistant text, or the token that closes its turn). The backbone
at position t - 1 predicts token t; token 0 is predicted by nothing, whatever the mask says.
"""

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from lightning import LightningDataModule
from rich.console import Console
from rich.progress import Progress
from torch.utils.data import DataLoader

from datamodules.batching import BatchDataset, BatchOrder, Row, packed
from datamodules.readers import Conversation, Report, read_conversations
from mhc.chat import encode_batch, prompt_ids
from mhc.chat_template import Messages, chat_template
from mhc.errors import UserError
from mhc.splits import split_of

CHUNK = 1000  # conversations encoded at a time
POCKET_COUNT = 60_000
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Prompt:
    """The turns before an answer; `ids` ends where the assistant starts to speak."""

    id: str
    messages: Messages
    ids: list[int]


@dataclass
class Totals:
    """What became of the conversations of one split, in conversations and tokens."""

    conversations: int = 0
    dropped: int = 0  # no supervised token within max_length
    truncated: int = 0
    tokens: int = 0
    supervised: int = 0


class ConversationData(LightningDataModule):
    """Conversations from a file, a folder, or the project's own generator.

    Splits are decided by a hash of the first user prompt, so no prompt is trained on in one run and tested in
    another. The tokenizer is the LightningModule's, unless `tokenizer` is set before `setup`.

    Args:
        path: a file or folder of conversations (see `datamodules.readers`), or "pocket" for dialogues the
            project generates.
        max_length: rows longer than this many tokens lose their end.
        batch_size: rows in a batch.
        limit: at most this many conversations of each split; for "pocket", the number generated (60000 if
            not given).
        supervise: "assistant" to learn the answers, "all" to learn every token.
        pack: put whole conversations side by side into rows of exactly max_length tokens (attention runs
            across them).
        seed: decides the order of batches and the generated dialogues.
        workers: processes that collate batches; 0 does it in the main process.
        docs_share: for "pocket", the share of dialogues about Python's documentation.
    """

    def __init__(
        self,
        path: str = "pocket",
        max_length: int = 512,
        batch_size: int = 8,
        limit: int | None = None,
        supervise: Literal["assistant", "all"] = "assistant",
        pack: bool = False,
        seed: int = 0,
        workers: int = 0,
        docs_share: float = 0.1,
    ):
        super().__init__()
        for name, value in (("max_length", max_length), ("batch_size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}: it must be at least 1")
        if supervise not in ("assistant", "all"):
            raise UserError(f"data.supervise is {supervise!r}: choose assistant or all")
        self.path, self.max_length, self.batch_size, self.limit = path, max_length, batch_size, limit
        self.supervise, self.pack, self.seed, self.workers = supervise, pack, seed, workers
        self.docs_share = docs_share
        self.tokenizer = None
        self.report: Report | None = None
        self.totals: dict[str, Totals] = {}
        self._conversations: dict[str, list[Conversation]] = {}
        self._rows: dict[str, list[Row]] = {}

    # -- Lightning ---------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read, split and encode what `stage` (fit, validate, test; None is all) needs; once."""
        needed = {"fit": SPLITS[:2], "validate": SPLITS[1:2], "test": SPLITS[2:]}.get(stage, SPLITS)
        for split in needed:
            self.rows(split)

    def train_dataloader(self) -> DataLoader:
        """Batches in an order that is a pure function of (seed, epoch)."""
        if not self.rows("train"):
            raise UserError(f"{self.path}: every conversation is held out, none is left to train on: add some")
        return self._loader("train")

    def val_dataloader(self) -> DataLoader:
        """The validation split in a fixed order."""
        return self._loader("validation")

    def test_dataloader(self) -> DataLoader:
        """The test split in a fixed order."""
        return self._loader("test")

    def _loader(self, split: str) -> DataLoader:
        rows = self.rows(split)
        pad_id = self._tokenizer().pad_token_id or 0
        lengths = [len(ids) for ids, _ in rows]
        order = BatchOrder(lengths, self.batch_size, self.seed, fixed=split != "train")
        return DataLoader(
            BatchDataset(rows, pad_id),
            sampler=order,
            batch_size=None,  # the sampler yields whole batches
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    # -- conversations -----------------------------------------------------------------------------

    def conversations(self, split: str) -> list[Conversation]:
        """The conversations of "train", "validation" or "test", before encoding."""
        if not self._conversations:
            if self.path == "pocket":
                found, self.report = self._generated()
            else:
                found, self.report = read_conversations(self.path)
            splits = split_conversations(found)
            if self.limit is not None and self.path != "pocket":
                splits = {name: _sample(rows, self.limit) for name, rows in splits.items()}
            self._conversations = splits
        return self._conversations[split]

    def _generated(self) -> tuple[list[Conversation], Report]:
        from mhc.lm.corpus import dialogues

        count = self.limit or POCKET_COUNT
        made = _progress(dialogues(count, self.seed, self.docs_share), count, "making dialogues")
        found = [Conversation(d["id"], d["messages"], f"pocket:{i}") for i, d in enumerate(made, start=1)]
        return found, Report("pocket", {"generated": len(found)}, len(found), len(found))

    def prompts(self, split: str, count: int) -> list[Prompt]:
        """At most `count` different prompts of a split, shorter than max_length, ordered by their hash. Of a
        conversation with several answers one is asked for, chosen by the same hash."""
        tokenizer, found, seen = self._tokenizer(), [], set()
        for conversation in sorted(self.conversations(split), key=lambda c: (prompt_hash(c.prompt), c.id)):
            if len(found) == count:
                break
            turns = [at for at, m in enumerate(conversation.messages) if m["role"] == "assistant"]
            messages = conversation.messages[: turns[int(prompt_hash(conversation.prompt), 16) % len(turns)]]
            ids = prompt_ids(tokenizer, messages)
            if len(ids) < self.max_length and tuple(ids) not in seen:
                seen.add(tuple(ids))
                found.append(Prompt(conversation.id, messages, ids))
        return found

    # -- encoding ----------------------------------------------------------------------------------

    def rows(self, split: str) -> list[Row]:
        """The encoded rows of a split: ids (T) int32 and mask (T) bool, at most max_length long."""
        if split not in self._rows:
            self._rows[split] = self._encoded(split)
        return self._rows[split]

    def _encoded(self, split: str) -> list[Row]:
        tokenizer, conversations = self._tokenizer(), self.conversations(split)
        totals = self.totals[split] = Totals(conversations=len(conversations))
        chunks = [conversations[i : i + CHUNK] for i in range(0, len(conversations), CHUNK)]
        rows: list[Row] = []
        for chunk in _progress(chunks, len(chunks), f"encoding {split}"):
            for ids, mask in encode_batch(tokenizer, [conversation.messages for conversation in chunk]):
                row = np.array(ids, dtype=np.int32), np.array(mask, dtype=bool)
                if self.supervise == "all":
                    row[1][:] = True
                totals.truncated += len(ids) > self.max_length and not self.pack
                rows.append(row if self.pack else (row[0][: self.max_length], row[1][: self.max_length]))
        if self.pack:
            rows = packed(rows, self.max_length, self.seed, tokenizer.pad_token_id or 0)
        kept = [row for row in rows if row[1].any()]
        if conversations and not kept:
            raise UserError(
                f"{self.path}: no token of the {len(conversations)} {split} conversations is supervised: "
                f"{chat_template(tokenizer).name} hides the answers, or data.max_length ({self.max_length}) "
                "ends before the first answer"
            )
        totals.dropped = len(rows) - len(kept)
        totals.tokens = sum(len(ids) for ids, _ in kept)
        totals.supervised = sum(int(mask.sum()) for _, mask in kept)
        self._check_vocabulary(kept)
        return kept

    def _tokenizer(self):
        if self.tokenizer is None:
            if self.trainer is None:
                raise UserError("ConversationData has no tokenizer: set data.tokenizer or give it a trainer")
            self.tokenizer = self.trainer.lightning_module.tokenizer
        return self.tokenizer

    def _check_vocabulary(self, rows: list[Row]) -> None:
        size = getattr(getattr(self.trainer, "lightning_module", None), "vocabulary_size", None)
        largest = max((int(ids.max()) for ids, _ in rows), default=0)
        if size is not None and largest >= size:
            raise UserError(
                f"the tokenizer gives id {largest} but the model has {size} rows: "
                "use the tokenizer the backbone was trained with"
            )


def prompt_hash(prompt: str) -> str:
    """A stable order of prompts that has nothing to do with their place in a file."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()


def split_conversations(conversations: list[Conversation]) -> dict[str, list[Conversation]]:
    """Conversations by split; a validation or test split left empty takes a tenth of the training prompts."""
    splits: dict[str, list[Conversation]] = {name: [] for name in SPLITS}
    for conversation in conversations:
        splits[split_of(conversation.prompt)].append(conversation)
    for name in ("validation", "test"):
        # Whole prompts move, so that no prompt is in two splits; the last one stays for training.
        hashes = sorted({prompt_hash(c.prompt) for c in splits["train"]})
        if not splits[name] and len(hashes) > 1:
            moved = set(hashes[: max(1, len(hashes) // 10)])
            splits[name] = [c for c in splits["train"] if prompt_hash(c.prompt) in moved]
            splits["train"] = [c for c in splits["train"] if prompt_hash(c.prompt) not in moved]
    return splits


def _sample(conversations: list[Conversation], limit: int) -> list[Conversation]:
    """The first `limit` by hash, in their old order: files are often sorted, a sample should not be."""
    if len(conversations) <= limit:
        return conversations
    by_hash = sorted(range(len(conversations)), key=lambda i: (prompt_hash(conversations[i].prompt), i))
    return [conversations[i] for i in sorted(by_hash[:limit])]


def _progress(items: Iterable, total: int, title: str, after: float = 2.0) -> Iterator:
    """The items, with a bar on the terminal once they take longer than `after` seconds."""
    started, bar, task = time.monotonic(), None, None
    try:
        for done, item in enumerate(items):
            if bar is None and time.monotonic() - started > after:
                bar = Progress(console=Console(stderr=True), transient=True)
                bar.start()
                task = bar.add_task(title, total=total)
            if bar is not None:
                bar.update(task, completed=done)
            yield item
    finally:
        if bar is not None:
            bar.stop()
