"""Conversations as batches of token ids with a supervision mask, and held-out prompts to decode.

    B rows   T time

mask[b, t] is True where token t is a target (assistant text, or the token that closes its turn). The backbone
at position t - 1 predicts token t; token 0 is predicted by nothing, whatever the mask says.
"""

import json
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.markup import escape
from torch.utils.data import Dataset

from datamodules.batching import BatchData, BatchDataset, Lengths, PackedRows, Row
from datamodules.files import source_state
from datamodules.readers import Conversation, Report, iterate
from datamodules.storage import EncodedRows, StoredConversations
from mhc.errors import UserError
from mhc.text.chat_template import chat_template, template_fingerprint, tokenizer_fingerprint
from mhc.text.encoding import Encoded, encode_batch, encode_turns, prompt_ids
from mhc.text.messages import Messages
from mhc.text.splits import prompt_number, split_conversations
from mhc.util.files import write_json
from mhc.util.journal import digest
from mhc.util.progress import say, track

CHUNK = 1000  # conversations encoded at a time
WRITTEN = "the chat template does not write"
UNWRITTEN = {"token_ids": "this tokenizer does not decode to the text"}

RULES = 2  # counted up whenever rows are read or encoded in another way, so that no cache of before is taken


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
    largest_id: int = 0
    rows: int = 0  # more than conversations where answers need rows of their own: see mhc.text.encoding.encode_turns
    unwritten: dict[str, int] = field(default_factory=dict)  # by field, conversations whose template does not write it


class ConversationData(BatchData):
    """Conversations from a file, a folder, or the project's own generator.

    Splits are decided by a hash of the first user prompt, so no prompt is trained on in one run and tested in
    another. The tokenizer is the LightningModule's, unless `tokenizer` is set before `setup`.

    Args:
        path: a file, a folder or hf:NAME (see `datamodules.readers`), or "pocket" for dialogues the project generates.
        max_length: rows longer than this many tokens lose their end.
        batch_size: rows in a batch, of each process.
        limit: at most this many conversations, however they are split; for "pocket", the number generated (60000 if
            not given).
        supervise: "assistant" to learn the answers, "all" to learn every token.
        pack: put whole conversations side by side into rows of exactly max_length tokens; each still sees itself alone.
        seed: decides the order of batches and the generated dialogues.
        workers: processes that collate batches; 0 does it in the main process.
        documentation_share: for "pocket", the share of dialogues about Python's documentation.
        cache: a folder that conversations and token ids are kept in and mapped from, so that data may be larger than
            memory and are tokenized once; without, all of it is held in memory.
        answered: false keeps prompts without an answer as well; their answers are then empty (for distillation).
        max_bad_share: share of broken rows above which reading stops.
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
        documentation_share: float = 0.1,
        cache: str | None = None,
        answered: bool = True,
        max_bad_share: float = 0.1,
    ):
        super().__init__()
        for name, value in (("max_length", max_length), ("batch_size", batch_size), ("limit", limit)):
            if value is not None and value < 1:
                raise UserError(f"data.{name} is {value}: it must be at least 1")
        if supervise not in ("assistant", "all"):
            raise UserError(f"data.supervise is {supervise!r}: choose assistant or all")
        if not 0 <= max_bad_share <= 1:
            raise UserError(f"data.max_bad_share is {max_bad_share}: it must be between 0 and 1")
        self.path, self.max_length, self.batch_size, self.limit = path, max_length, batch_size, limit
        self.supervise, self.pack, self.seed, self.workers = supervise, pack, seed, workers
        self.documentation_share, self.answered, self.max_bad_share = documentation_share, answered, max_bad_share
        self.cache = None if cache is None else Path(cache)
        self.tokenizer: Any = None
        self.report: Report | None = None
        self.totals: dict[str, Totals] = {}
        self._said = False
        self._conversations: dict[str, Sequence[Conversation]] = {}
        self._rows: dict[str, EncodedRows] = {}
        self._batches: dict[str, tuple[BatchDataset, Lengths]] = {}

    # -- Lightning ---------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """As BatchData's, and say once what of the rows is not used."""
        super().setup(stage)
        if not self._said and (self.trainer is None or self.trainer.global_rank == 0):
            self._said = True
            if lines := [*(self.report.lost_lines() if self.report else []), *self.unwritten_lines()]:
                say("\n".join([f"data ({escape(str(self.path))}):", *lines]), markup=True)

    def unwritten_lines(self) -> list[str]:
        """What the chat template does not write of the conversations encoded so far, as lines of Rich markup."""
        every = Counter[str]()
        for totals in self.totals.values():
            every.update(totals.unwritten)
        of = sum(totals.conversations for totals in self.totals.values())
        return [
            f"  {number:,} of {of:,} conversations have `{name}` that {UNWRITTEN.get(name, WRITTEN)}: it is not used"
            for name, number in every.most_common()
        ]

    def nothing_to_train_on(self) -> str:
        return f"{self.path}: every conversation is held out, none is left to train on: add some"

    def batches(self, split: str) -> tuple[Dataset, Lengths]:
        """Every row of a split, packed where asked, and their lengths."""
        if split not in self._batches:
            rows, pad_id = self.rows(split), self._tokenizer().pad_token_id or 0
            if self.pack:
                packed = PackedRows(rows, rows.lengths, self.max_length, self.seed, pad_id)
                self._batches[split] = BatchDataset(packed, pad_id), np.full(len(packed), self.max_length)
            else:
                self._batches[split] = BatchDataset(rows, pad_id), rows.lengths
        return self._batches[split]

    # -- conversations -----------------------------------------------------------------------------

    def conversations(self, split: str) -> Sequence[Conversation]:
        """The conversations of "train", "validation" or "test", before encoding."""
        if not self._conversations:
            numbers = array("Q")
            if self.cache is None:
                every: Sequence[Conversation] = list(self._read(numbers))
            else:
                every, numbers = self._cached()
            limit = None if self.path == "pocket" else self.limit
            for name, chosen in split_conversations(numbers, limit).items():
                if isinstance(every, StoredConversations):
                    self._conversations[name] = every.only(chosen)
                else:
                    self._conversations[name] = [every[i] for i in chosen]
        return self._conversations[split]

    def _read(self, numbers: array) -> Iterator[Conversation]:
        """Every conversation of the source, once; the prompt_number of each is appended to `numbers`."""
        if self.path == "pocket":
            read = self._generated()
        else:
            self.report = Report(str(self.path))
            read = iterate(self.path, self.report, self.answered, self.max_bad_share)
        for conversation in read:
            numbers.append(prompt_number(conversation.prompt))
            yield conversation

    def _generated(self) -> Iterator[Conversation]:
        from mhc.corpus import POCKET_COUNT, dialogues

        count = self.limit or POCKET_COUNT
        self.report = Report("pocket", {"generated": count}, count, count)
        made = track(dialogues(count, self.seed, self.documentation_share), count, "making dialogues")
        for number, dialogue in enumerate(made, start=1):
            yield Conversation(dialogue["id"], dialogue["messages"], f"pocket:{number}")

    # -- the cache -----------------------------------------------------------------------------------

    def _source(self) -> dict[str, Any]:
        """What decides which conversations there are."""
        if self.path == "pocket":
            return {name: getattr(self, name) for name in ("path", "limit", "seed", "documentation_share")}
        read = {"answered": self.answered, "max_bad_share": self.max_bad_share, "rules": RULES}
        return {"source": source_state(self.path), **read}

    def _cached(self) -> tuple[StoredConversations, array]:
        """The conversations as files of the cache, read into it where they are not there, and their prompt_numbers."""
        assert self.cache is not None
        path = self.cache / digest(self._source()) / "conversations"
        report = path.with_name("report.json")
        numbers, stored = array("Q"), StoredConversations.mapped(path)
        if stored is None or not report.exists():
            stored = StoredConversations.on_disk(path, self._read(numbers))
            np.save(path.with_name("numbers.npy"), np.frombuffer(numbers, np.uint64))
            assert self.report is not None  # reading made it
            write_json(report, {"report": asdict(self.report), "source": self._source()})  # last: now it is whole
        self.report = Report(**json.loads(report.read_text(encoding="utf-8"))["report"])
        return stored, array("Q", np.load(path.with_name("numbers.npy")).tobytes())

    def prompts(self, split: str, count: int) -> list[Prompt]:
        """At most `count` different prompts of a split, shorter than max_length, ordered by their hash. Of a
        conversation with several answers one is asked for, chosen by the same hash."""
        tokenizer, seen = self._tokenizer(), set()
        prompts: list[Prompt] = []
        by_hash = sorted(self.conversations(split), key=lambda c: (prompt_number(c.prompt), c.id))
        for conversation in by_hash:
            if len(prompts) == count:
                break
            turns = [place for place, m in enumerate(conversation.messages) if m["role"] == "assistant"]
            if not turns:
                continue  # a document
            messages, _ = chat_template(tokenizer).written(conversation.messages)
            messages = messages[: turns[prompt_number(conversation.prompt) % len(turns)]]
            ids = prompt_ids(tokenizer, messages)
            if len(ids) < self.max_length and tuple(ids) not in seen:
                seen.add(tuple(ids))
                prompts.append(Prompt(conversation.id, messages, ids))
        return prompts

    # -- encoding ----------------------------------------------------------------------------------

    def rows(self, split: str) -> EncodedRows:
        """The encoded rows of a split, each with ids (T) int32 and mask (T) bool, at most max_length long. A conversation is
        one row, unless its answers need several (mhc.text.encoding.encode_turns)."""
        if split not in self._rows:
            totals = Totals()
            if self.cache is None:
                rows = EncodedRows.in_memory(self._encoded(split, totals))
            else:
                rows, totals = self._cached_rows(split, totals)
            if totals.conversations and not len(rows):
                raise UserError(
                    f"{self.path}: no token of the {totals.conversations} {split} conversations is supervised: "
                    f"{chat_template(self._tokenizer()).name} hides the answers, or data.max_length "
                    f"({self.max_length}) ends before the first answer"
                )
            self._check_vocabulary(totals.largest_id)
            self.totals[split], self._rows[split] = totals, rows
        return self._rows[split]

    def _cached_rows(self, split: str, totals: Totals) -> tuple[EncodedRows, Totals]:
        """The rows as files of the cache, encoded into it where they are not there."""
        tokenizer = self._tokenizer()
        assert self.cache is not None
        settings = {
            "limit": self.limit,
            "max_length": self.max_length,
            "supervise": self.supervise,
            "template": template_fingerprint(tokenizer),
            "tokenizer": tokenizer_fingerprint(tokenizer),
        }
        path = self.cache / digest(self._source()) / digest(settings) / split
        result = path.with_name(f"{split}.json")
        rows = EncodedRows.mapped(path)
        if rows is None or not result.exists():
            rows = EncodedRows.on_disk(path, self._encoded(split, totals))
            write_json(result, {"totals": asdict(totals), "encoded": settings})
        return rows, Totals(**json.loads(result.read_text(encoding="utf-8"))["totals"])

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """Where training rows come from: "file.jsonl:12" of each conversation, several for a packed row."""
        assert self.trainer is not None
        loader: Any = self.trainer.train_dataloader
        packed = loader.dataset.rows
        if isinstance(packed, PackedRows):
            numbers = [row for number in numbers for row in packed.bins[number]]
        conversations = self.conversations("train")
        totals = self.totals["train"]
        if totals.dropped or totals.rows != totals.conversations:
            numbers = [self._learned_from[row] for row in numbers]
        return [conversations[number].where for number in numbers]

    @cached_property
    def _learned_from(self) -> array:
        """The numbers of the conversations that became training rows, found by encoding them again."""
        return array("q", (number for number, _ in self._numbered("train", Totals())))

    def _encoded(self, split: str, totals: Totals) -> Iterator[Row]:
        """Row by row what can be learned from; `totals` counts along."""
        return (row for _, row in self._numbered(split, totals))

    def _numbered(self, split: str, totals: Totals) -> Iterator[tuple[int, Row]]:
        """As `_encoded`, each row with the number of its conversation."""
        self._tokenizer()  # where there is none, this is said before a file is read
        conversations = self.conversations(split)
        totals.conversations = len(conversations)
        chunks = range(0, len(conversations), CHUNK)
        for start in track(chunks, len(chunks), f"encoding {split}"):
            some = conversations[start : start + CHUNK]
            for number, rows in enumerate(self._encoded_turns([each.messages for each in some], totals), start):
                whole = rows
                rows = [(ids[: self.max_length], mask[: self.max_length]) for ids, mask in rows]
                totals.truncated += any(len(ids) > self.max_length for ids, _ in whole)
                rows = [(ids, mask) for ids, mask in rows if any(mask)]
                totals.dropped += not rows
                totals.rows += len(rows)
                for all_ids, targets in rows:
                    ids, mask = np.array(all_ids, np.int32), np.array(targets, bool)
                    totals.tokens += len(ids)
                    totals.supervised += int(mask.sum())
                    totals.largest_id = max(totals.largest_id, int(ids.max()))
                    yield number, (ids, mask)

    def _encoded_turns(self, several: list[Messages], totals: Totals) -> list[list[Encoded]]:
        """The rows of each conversation, of any length, without what the template does not write."""
        tokenizer, written = self._tokenizer(), []
        for messages in several:
            kept, unwritten = chat_template(tokenizer).written(messages)
            written.append(kept)
            for name in unwritten:
                totals.unwritten[name] = totals.unwritten.get(name, 0) + 1
        if self.supervise == "all":
            return [[(ids, [True] * len(ids))] for ids, _ in encode_batch(tokenizer, written, partly=True)]
        return encode_turns(tokenizer, written)

    def _tokenizer(self) -> Any:
        if self.tokenizer is None:
            if self.trainer is None:
                raise UserError("ConversationData has no tokenizer: set data.tokenizer or give it a trainer")
            self.tokenizer = self.trainer.lightning_module.tokenizer
        return self.tokenizer

    def _check_vocabulary(self, largest: int) -> None:
        size = getattr(getattr(self.trainer, "lightning_module", None), "vocabulary_size", None)
        if size is not None and largest >= size:
            raise UserError(
                f"the tokenizer gives id {largest} but the model has {size} rows: "
                "use the tokenizer the backbone was trained with"
            )
