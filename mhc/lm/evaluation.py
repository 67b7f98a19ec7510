"""How well a model predicts a text: loss per token, perplexity, bits per byte.

    B windows read together   T time   N counted tokens   D width   V vocabulary

Of a document every token counts. It is read after the tokenizer's bos, or its eos where there is none, so that the first
token is predicted as well (as in lm-evaluation-harness); the end of the document does not count. Of a
conversation under the model's chat template the assistant's tokens count and the token that closes its turn: what
instruction tuning learns.

A text longer than a window is read in several, each half a window further than the one before, and each token counts
once: after the first window it has at least half a window of context.

Loss and perplexity are per token, so they depend on the tokenizer. Bits per byte,
sum(-log2 p) / bytes of the counted text in UTF-8, compare models with different tokenizers.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from math import exp, isfinite, log
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase

from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.text.chat_template import chat_template
from mhc.text.encoding import encode_batch
from mhc.text.messages import Messages
from mhc.training.losses import CHUNK
from mhc.util.batches import batches

LONGEST = 2048  # default limit of a window, in tokens: more costs memory and changes little
NOT_FINITE = "the model's loss is not finite: its weights are broken, or they need --dtype float32"


class Window(NamedTuple):
    """Tokens start to stop of row `row` are read together, of which those from `first` on count."""

    row: int
    start: int
    stop: int
    first: int


def windows(row: int, length: int, size: int) -> Iterator[Window]:
    """A row of `length` tokens in windows of at most `size`, which is at least 2."""
    yield Window(row, 0, min(length, size), 0)
    for counted in range(size, length, size // 2):
        stop = min(length, counted + size // 2)
        yield Window(row, stop - size, stop, counted)


def token_losses(backbone: Backbone, hidden: Tensor, labels: Tensor) -> Tensor:
    """-log p (N,) in fp32 of labels (N,) given hidden states (N,D); logits of all never exist at once."""
    chunks = zip(hidden.split(CHUNK), labels.split(CHUNK))
    parts = [cross_entropy(backbone.unembed(part).float(), label, reduction="none") for part, label in chunks]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float)


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What precedes a plain text: bos, else eos; nothing where there is neither."""
    return [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]


def counted_rows(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each text and which of them count; the very first token of a row never does."""
    start, rows = start_ids(tokenizer), []
    written = [chat_template(tokenizer).written(messages)[0] for messages in conversations]
    for messages, (ids, mask) in zip(conversations, encode_batch(tokenizer, written, partly=True)):
        if messages[0]["role"] == "document":
            text = len(ids) - (tokenizer.eos_token_id is not None)
            ids, mask = [*start, *ids[:text]], [False] * len(start) + [True] * text
        rows.append((ids, [False, *mask[1:]]))
    return rows


def counted_bytes(tokenizer: PreTrainedTokenizerBase, ids: list[int], mask: list[bool]) -> int:
    """Bytes of the text that the counted tokens spell; control tokens spell none."""
    numbered = groupby(range(len(ids)), key=mask.__getitem__)
    runs = [[ids[place] for place in places] for counts, places in numbered if counts]
    texts = tokenizer.batch_decode(runs, skip_special_tokens=True, clean_up_tokenization_spaces=False) if runs else []
    return sum(len(text.encode()) for text in texts)


@torch.inference_mode()
def perplexity(
    backbone: Backbone,
    conversations: Sequence[Messages],
    window: int,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Loss (nats per token), perplexity and bits per byte over conversations or documents, with standard errors over rows.

    window: tokens seen at once; batch_tokens: tokens read at once, padding included. progress(done, total) counts
    windows. Raises UserError where no token counts, and where the loss is not finite.
    """
    tokenizer = backbone.tokenizer
    rows = [row for row in counted_rows(tokenizer, conversations) if any(row[1])]
    if not rows:
        raise UserError(f"none of the {len(conversations)} rows has a token that counts")
    sizes = torch.tensor([sum(mask) for _, mask in rows], dtype=torch.float64)
    bytes_ = torch.tensor([counted_bytes(tokenizer, *row) for row in rows], dtype=torch.float64)
    nats = torch.zeros(len(rows), dtype=torch.float64)
    every = (part for row, (ids, _) in enumerate(rows) for part in windows(row, len(ids), window))
    lengths = {part: part.stop - part.start for part in every if any(rows[part.row][1][part.first : part.stop])}
    done = 0
    for batch in batches(lengths, batch_tokens):
        ids, counts, row = _collated(batch, rows, backbone.device)
        counts = counts[:, 1:]  # of the next token
        losses = token_losses(backbone, backbone.features(ids).hidden[:, :-1][counts], ids[:, 1:][counts])
        nats.index_add_(0, row[counts.nonzero()[:, 0].cpu()], losses.double().cpu())
        done += len(batch)
        if progress:
            progress(done, len(lengths))
    loss, loss_se = ratio(nats, sizes)
    if not isfinite(loss):
        raise UserError(NOT_FINITE)
    figures = {
        "rows": len(rows),
        "tokens": int(sizes.sum()),
        "bytes": int(bytes_.sum()),
        "loss": loss,
        "loss_se": loss_se,
        "perplexity": exp(min(loss, 700)),
    }
    if figures["bytes"]:
        figures["bits_per_byte"], figures["bits_per_byte_se"] = ratio(nats / log(2), bytes_)
    return figures


def ratio(numerators: Tensor, denominators: Tensor) -> tuple[float, float | None]:
    """sum / sum over rows (R,), and its standard error where rows are drawn independently (linearised); None of one row."""
    value, count = float(numerators.sum() / denominators.sum()), len(numerators)
    if count < 2:
        return value, None
    residuals = numerators - value * denominators
    return value, float((count / (count - 1) * (residuals**2).sum()).sqrt() / denominators.sum())


def _collated(batch: list[Window], rows: Sequence[tuple], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids (B,T), which of them count (B,T), and each window's row (B,). Padding comes last, where no token attends to it."""
    shape = len(batch), max(part.stop - part.start for part in batch)
    ids, counts = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for place, part in enumerate(batch):
        row_ids, mask = rows[part.row]
        ids[place, : part.stop - part.start] = torch.tensor(row_ids[part.start : part.stop])
        counts[place, part.first - part.start : part.stop - part.start] = torch.tensor(mask[part.first : part.stop])
    return ids.to(device), counts.to(device), torch.tensor([part.row for part in batch])
