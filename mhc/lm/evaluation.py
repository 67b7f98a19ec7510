"""How well a model predicts a text: loss per token, perplexity, bits per byte.

    B windows read together   T time   N counted tokens   D width   V vocabulary

Of a document every token counts. It is read behind the tokenizer's bos, or its eos where there is none, so that the first
token is predicted as well (lm-evaluation-harness does it so); the end of the document is no part of it. Of a
conversation under the model's chat template the assistant's tokens count and the token that closes its turn: what
instruction tuning learns.

A text longer than a window is read in several, each half a window further than the one before, and each token counts
once: behind the first window it sees at least half a window to its left.

Loss and perplexity are per token, so they hang on the tokenizer. Bits per byte,
sum(-log2 p) / bytes of the counted text in UTF-8, compare models of any tokenizer.
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
from mhc.text.encoding import encode_batch
from mhc.text.messages import Messages
from mhc.training.losses import CHUNK

LONGEST = 2048  # tokens of a window unless told otherwise: more memory than insight


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
    """-log p (N,) in fp32 of labels (N,) behind hidden states (N,D); logits of all never exist at once."""
    chunks = zip(hidden.split(CHUNK), labels.split(CHUNK))
    parts = [cross_entropy(backbone.unembed(part).float(), label, reduction="none") for part, label in chunks]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float)


def start_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """What a plain text is read behind: bos, else eos; nothing where there is neither."""
    return [token for token in (tokenizer.bos_token_id, tokenizer.eos_token_id) if token is not None][:1]


def counted_rows(
    tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Messages]
) -> list[tuple[list[int], list[bool]]]:
    """Token ids of each text and which of them count; the very first token of a row never does."""
    start, rows = start_ids(tokenizer), []
    for messages, (ids, mask) in zip(conversations, encode_batch(tokenizer, list(conversations))):
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

    window: tokens seen at once; batch_tokens: tokens read at once, padding included. progress(done, total) hears of
    windows. Raises UserError where no token counts, and where the model says what is no number.
    """
    tokenizer = backbone.tokenizer
    rows = [row for row in counted_rows(tokenizer, conversations) if any(row[1])]
    if not rows:
        raise UserError(f"none of the {len(conversations)} rows has a token that counts")
    sizes = torch.tensor([sum(mask) for _, mask in rows], dtype=torch.float64)
    bytes_ = torch.tensor([counted_bytes(tokenizer, *row) for row in rows], dtype=torch.float64)
    nats = torch.zeros(len(rows), dtype=torch.float64)
    cut = [each for row, (ids, _) in enumerate(rows) for each in windows(row, len(ids), window)]
    cut = [each for each in cut if any(rows[each.row][1][each.first : each.stop])]
    done = 0
    for batch in batched(cut, [each.stop - each.start for each in cut], batch_tokens):
        ids, counts, row = _collated(batch, rows, backbone.device)
        found = token_losses(backbone, backbone.features(ids).hidden[:, :-1][counts[:, 1:]], ids[:, 1:][counts[:, 1:]])
        nats.index_add_(0, row[counts[:, 1:].nonzero()[:, 0].cpu()], found.double().cpu())
        done += len(batch)
        if progress:
            progress(done, len(cut))
    loss, loss_se = ratio(nats, sizes)
    if not isfinite(loss):
        raise UserError("the model's loss is not finite: its weights are broken, or --dtype float32 is called for")
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


def batched(items: Sequence[Any], lengths: Sequence[int], tokens: int) -> Iterator[list[Any]]:
    """The items by falling length, as many at a time as have `tokens` together when padded: the largest batch comes first, so
    that what does not fit in memory shows at once."""
    order = sorted(range(len(items)), key=lambda place: -lengths[place])
    while order:
        count = max(1, tokens // max(1, lengths[order[0]]))
        yield [items[place] for place in order[:count]]
        order = order[count:]


def ratio(numerators: Tensor, denominators: Tensor) -> tuple[float, float | None]:
    """sum / sum over rows (R,), and its standard error where rows are drawn independently (linearised); None of one row."""
    value, count = float(numerators.sum() / denominators.sum()), len(numerators)
    if count < 2:
        return value, None
    residuals = numerators - value * denominators
    return value, float((count / (count - 1) * (residuals**2).sum()).sqrt() / denominators.sum())


def _collated(batch: list[Window], rows: Sequence[tuple], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """ids (B,T), which of them count (B,T), and each window's row (B,). Padding stands behind, where nobody sees it."""
    shape = len(batch), max(each.stop - each.start for each in batch)
    ids, counts = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    for place, each in enumerate(batch):
        row_ids, mask = rows[each.row]
        ids[place, : each.stop - each.start] = torch.tensor(row_ids[each.start : each.stop])
        counts[place, each.first - each.start : each.stop - each.start] = torch.tensor(mask[each.first : each.stop])
    return ids.to(device), counts.to(device), torch.tensor([each.row for each in batch])
