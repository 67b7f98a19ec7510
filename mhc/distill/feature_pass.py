"""The frozen backbone reads whole rows; their windows go into the tensors of a shard.

B rows of a batch   T positions of a row   P positions of a shard   S windows   D width   n tapped layers
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mhc.backbone.model import Backbone
from mhc.distill.shards import STORES
from mhc.distill.windows import Window
from mhc.errors import UserError
from mhc.util.batches import batches

UNEMBEDDED = 1024  # positions whose logits are held at a time


def compute_features(
    backbone: Backbone,
    rows: Any,
    windows: list[Window],
    settings: dict[str, Any],
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Let the backbone read the windows' rows whole: the tensors of a shard (see `mhc.distill.shards`), and of the rows'
    supervised tokens how many there are and how many it predicts itself."""
    width, taps, store = settings["width"], tuple(settings["taps"]), STORES[settings["store"]]
    lengths = torch.tensor([window.stop - window.start for window in windows])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    count = int(offsets[-1])
    shard = {
        "hidden": torch.empty(count, width, dtype=store),
        "ids": torch.empty(count, dtype=torch.int32),
        "greedy": torch.empty(count, dtype=torch.int32),
        "mask": torch.empty(count, dtype=torch.bool),
        "offsets": offsets,
        "counted": torch.tensor([[s.first - s.start, s.last - s.start] for s in windows], dtype=torch.int32),
        "rows": torch.tensor([[s.row, s.start] for s in windows], dtype=torch.int32),
    }
    if taps:
        shard["taps"] = torch.empty(count, len(taps) * width, dtype=store)
    places: dict[int, list[int]] = {}
    for number, window in enumerate(windows):
        places.setdefault(window.row, []).append(number)
    figures = {"supervised": 0, "agreed": 0}
    for numbers in batches({row: len(rows[row][0]) for row in places}, settings["batch_tokens"]):
        texts = [[torch.tensor(part) for part in rows[row][:2]] for row in numbers]
        for place, read in enumerate(_read(backbone, [ids for ids, _ in texts], taps, store)):
            ids, mask = texts[place]
            read |= {"ids": ids, "mask": mask}
            if not all(read[name].isfinite().all() for name in ("hidden", "taps") if name in read):
                raise UserError(
                    f"row {numbers[place]}: features beyond {settings['store']}: use --store bfloat16 or float32"
                )
            for number in places[numbers[place]]:
                window, to = windows[number], slice(int(offsets[number]), int(offsets[number + 1]))
                for name, tensor in read.items():
                    shard[name][to] = tensor[window.start : window.stop]
            supervised = mask[1:]
            figures["supervised"] += int(supervised.sum())
            figures["agreed"] += int((supervised & (read["greedy"][:-1] == ids[1:])).sum())
            advance(len(ids))
    return shard, figures


@torch.no_grad()
def _read(
    backbone: Backbone, texts: list[Tensor], taps: tuple[int, ...], store: torch.dtype
) -> Iterator[dict[str, Tensor]]:
    """One forward over rows of ids (T,); of each in turn hidden (T,D), taps (T,n*D) if any, greedy (T,)."""
    ids = pad_sequence(texts, batch_first=True).long().to(backbone.device)
    features = backbone.features(ids, taps)
    parts = features.hidden.flatten(0, 1).split(UNEMBEDDED)
    greedy = torch.cat([backbone.unembed(part).argmax(dim=-1) for part in parts]).reshape(ids.shape)
    read = {"hidden": features.hidden.to(store), "greedy": greedy.to(torch.int32)}
    if taps:
        read["taps"] = features.tapped.to(store)
    read = {name: tensor.cpu() for name, tensor in read.items()}
    for number, text in enumerate(texts):
        yield {name: tensor[number, : len(text)] for name, tensor in read.items()}
