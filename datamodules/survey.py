"""How much there is to train on, counted where that is quick and estimated from a part where it is not.

B rows of a batch   T time   A anchors (positions that are trained at)
"""

import json
import tempfile
from dataclasses import dataclass
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.batching import Row
from datamodules.conversations import ConversationData
from datamodules.features import FeatureData
from datamodules.files import data_files
from datamodules.preferences import PreferenceData
from datamodules.readers import Report, iterate

QUICK = 32 << 20  # bytes of files that are read and tokenized as a whole, some ten seconds
PART = 1000  # conversations that stand for all where there are more


@dataclass(frozen=True)
class Survey:
    """rows (or pairs), tokens and anchors of the training split; batches of an epoch; longest: the most tokens in a row of
    a batch; batch_anchors: the most that a batch can have; prompt: tokens of the longest of some validation prompts;
    counted: whether all of it was read, else it is an estimate."""

    rows: int
    tokens: int
    anchors: int
    batches: int
    longest: int
    batch_anchors: int
    prompt: int
    counted: bool


def survey(data: ConversationData | FeatureData, prompts: int, heads: bool = True) -> Survey:
    """Look through the training split of a data module that has its tokenizer; a large one is judged by its first PART
    conversations, pairs by all of them. prompts: how many are decoded at validations. heads: whether draft heads are
    trained, at positions whose next two tokens are supervised, or the model, where the next one is. Raises UserError
    for data that cannot be read or trained on."""
    if not isinstance(data, FeatureData | PreferenceData) and (share := _share(data)) < 1:
        with tempfile.TemporaryDirectory() as folder:
            return _look(_part(data, Path(folder) / "part.jsonl"), prompts, heads, 1 / share, False)
    return _look(data, prompts, heads, 1.0, True)


def _look(data: ConversationData | FeatureData, prompts: int, heads: bool, times: float, counted: bool) -> Survey:
    loader, batch_size = data.train_dataloader(), data.batch_size
    groups: list[tuple[Row, ...]]
    if isinstance(data, PreferenceData):
        groups = [tuple(pair) for pair in data.batches("train")[0].pairs]
    else:
        groups = [(row,) for row in data.rows("train")]
    lengths = np.array([[len(ids) for ids, _ in rows] for rows in groups])
    anchors = np.array([sum(_anchors(mask, heads) for _, mask in rows) for rows in groups])
    longest = int(lengths.max())
    if isinstance(data, ConversationData) and data.pack:
        longest = data.max_length  # a packed row holds so many conversations, at the most all anchors of its tokens
        most = min(batch_size * longest, ceil(anchors.sum() / max(1, len(loader)) * 1.5))
    else:
        most = int(np.sort(anchors)[-batch_size:].sum())
    batches = len(loader) if counted else max(1, round(len(loader) * times))
    rows, tokens, supervised = (round(int(total) * times) for total in (len(groups), lengths.sum(), anchors.sum()))
    prompt = max((len(each.ids) for each in data.prompts("validation", prompts)), default=longest)
    return Survey(rows, tokens, supervised, batches, longest, max(1, most), prompt, counted)


def _anchors(mask: np.ndarray, heads: bool) -> int:
    return int((mask[1:-1] & mask[2:]).sum() if heads else mask[1:].sum())


def _share(data: ConversationData) -> float:
    """Which share of the conversations PART of them are, 1 where all are read quickly."""
    if data.path == "pocket":
        from mhc.corpus import POCKET_COUNT

        return min(1.0, 2 * PART / (data.limit or POCKET_COUNT))
    if data.path.startswith("hf:") or not Path(data.path).exists():
        return 1.0  # of what is not here nothing is known; reading it says what is wrong
    size = sum(file.stat().st_size for file in data_files(Path(data.path)))
    if size <= QUICK:
        return 1.0
    first = [conversation.messages for conversation in islice(iterate(data.path, Report(data.path)), PART)]
    rows = max(1.0, size / (sum(len(json.dumps(messages)) for messages in first) / len(first)))
    return min(1.0, PART / (min(rows, data.limit) if data.limit else rows))


def _part(data: ConversationData, path: Path) -> ConversationData:
    """The same data module over the first PART conversations."""
    if data.path == "pocket":
        settings: dict[str, Any] = {
            "path": "pocket",
            "limit": 2 * PART,
            "documentation_share": data.documentation_share,
        }
    else:
        first = islice(iterate(data.path, Report(data.path)), PART)
        path.write_text("".join(json.dumps({"messages": each.messages}) + "\n" for each in first), encoding="utf-8")
        settings = {"path": str(path)}
    part = ConversationData(
        **settings,
        max_length=data.max_length,
        batch_size=data.batch_size,
        supervise=data.supervise,
        pack=data.pack,
        seed=data.seed,
    )
    part.tokenizer = data.tokenizer
    return part
