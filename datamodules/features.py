"""Batches of features written by `run.py collect`: heads train without a forward of the backbone.

B samples of a batch   T time   D width   n layers that the drafter taps
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batching import DUMMY, BatchData, Lengths, Row
from datamodules.conversations import Prompt
from mhc.distill.shards import AGAIN, PROMPTS, STORES, FeatureShards, open_shards, read_manifest
from mhc.errors import UserError
from mhc.util.progress import bar


class FeatureBatches(Dataset):
    """Indexed with a list of sample numbers, gives what `DraftModule.losses` takes, right padded:

    ids (B,T) int64, mask (B,T) bool, hidden (B,T,D), taps (B,T,n*D) where columns of them are wanted, loss_positions (B,T)
    bool.
    columns: the places of the wanted layers among those stored. agreed: only tokens that the backbone predicts itself
    are targets. An empty list gives a dummy row that nothing is learned from.
    """

    def __init__(
        self, samples: FeatureShards, pad_id: int, width: int, columns: Sequence[int], store: str, agreed: bool
    ):
        self.samples, self.pad_id, self.width, self.columns = samples, pad_id, width, list(columns)
        self.store, self.agreed = store, agreed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor]:
        samples, rows = self.samples, max(1, len(numbers))
        longest = max((int(samples.lengths[number]) for number in numbers), default=DUMMY)
        batch = {
            "ids": torch.full((rows, longest), self.pad_id),
            "mask": torch.zeros(rows, longest, dtype=torch.bool),
            "hidden": torch.zeros(rows, longest, self.width, dtype=STORES[self.store]),
            "loss_positions": torch.zeros(rows, longest, dtype=torch.bool),
        }
        if self.columns:
            shape = rows, longest, len(self.columns), self.width
            batch["taps"] = torch.zeros(shape, dtype=STORES[self.store])
        for place, number in enumerate(numbers):
            length, (first, last) = samples.lengths[number], samples.counted[number]
            batch["ids"][place, :length] = samples.read(number, "ids")
            batch["mask"][place, :length] = self._mask(number)
            batch["hidden"][place, :length] = samples.read(number, "hidden")
            batch["loss_positions"][place, first:last] = True
            if self.columns:
                taps = samples.read(number, "taps").unflatten(-1, (-1, self.width))
                batch["taps"][place, :length] = taps[:, self.columns]
        if self.columns:
            batch["taps"] = batch["taps"].flatten(2)
        return batch

    def _mask(self, number: int) -> Tensor:
        read = self.samples.read
        mask = read(number, "mask")
        return targets(mask, read(number, "ids"), read(number, "greedy")) if self.agreed else mask


def targets(mask: Tensor, ids: Tensor, greedy: Tensor) -> Tensor:
    """The supervised tokens (T) that the backbone predicts itself. Of the first the sample does not know; it is no
    target there anyway."""
    agreed = mask.clone()
    agreed[1:] &= greedy[:-1] == ids[1:]
    return agreed


class FeatureData(BatchData):
    """Features collected by `run.py collect`, memory-mapped; every shard is checked against its sha256 at setup.

    Rows no longer than the collection's sample_size give the very batches that ConversationData gives, with the features
    the backbone would compute. Longer rows come in several samples, each position counted in one of them: for drafters
    that read one hidden state the loss is that of the whole row; EAGLE-3's layer sees no further back than its sample.

    Args:
        path: a folder that `run.py collect` wrote.
        batch_size: samples in a batch, of each process.
        seed: decides the order of batches.
        workers: processes that read batches; 0 does it in the main process.
        supervise: "text" to learn every supervised token, "agreed" only those that the backbone predicts itself.
    """

    def __init__(
        self,
        path: str,
        batch_size: int = 8,
        seed: int = 0,
        workers: int = 0,
        supervise: Literal["text", "agreed"] = "text",
    ):
        super().__init__()
        if batch_size < 1:
            raise UserError(f"data.batch_size is {batch_size}: it must be at least 1")
        if supervise not in ("text", "agreed"):
            raise UserError(f"data.supervise is {supervise!r}: choose text or agreed")
        self.path, self.batch_size, self.seed, self.workers = Path(path), batch_size, seed, workers
        self.supervise = supervise
        self._samples: dict[str, FeatureShards] = {}

    # -- Lightning ---------------------------------------------------------------------------------

    def nothing_to_train_on(self) -> str:
        return f"'{self.path}' has no samples to train on: collect more"

    def batches(self, split: str) -> tuple[FeatureBatches, Lengths]:
        """Every sample of a split, and their lengths. Raises UserError unless the features belong to the module's backbone
        and drafter."""
        columns, agreed = self._columns(), self.supervise == "agreed"
        samples, settings = self.samples(split), self.manifest["settings"]
        batches = FeatureBatches(
            samples, self.manifest["pad_id"], settings["width"], columns, settings["store"], agreed
        )
        return batches, samples.lengths

    # -- the folder --------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        """What the folder says about itself."""
        if not hasattr(self, "_manifest"):
            self._manifest = read_manifest(self.path)
        return self._manifest

    def samples(self, split: str) -> FeatureShards:
        """The samples of a split, their shards verified the first time."""
        if split not in self._samples:
            with bar() as progress:
                task = progress.add_task(f"verifying {split}", total=self.manifest["splits"][split]["shards"])
                self._samples[split] = open_shards(self.path, split, lambda: progress.advance(task))
        return self._samples[split]

    def rows(self, split: str) -> list[Row]:
        """ids (T) int32 and mask (T) bool of every sample; the mask is True where a supervised token counts, so that
        none is there twice."""
        samples = self.samples(split)
        rows: list[Row] = []
        for number, (ids, mask, greedy) in enumerate(samples.each("ids", "mask", "greedy")):
            mask = targets(mask, ids, greedy) if self.supervise == "agreed" else mask.clone()
            first, last = samples.counted[number]
            mask[:first], mask[last:] = False, False
            rows.append((ids.numpy(), mask.numpy()))
        return rows

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """Which row of the training split each sample comes from, as "collected:12"."""
        return [f"collected:{self.samples('train').row(number)}" for number in numbers]

    def prompts(self, split: str, count: int) -> list[Prompt]:
        """At most `count` prompts of "validation" or "test", in the order of ConversationData; 512 of each are kept."""
        path = self.path / PROMPTS
        try:
            recorded = json.loads(path.read_text(encoding="utf-8"))
            return [Prompt(**prompt) for prompt in recorded[split][:count]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"'{path}' has no prompts of {split} ({error!r}): {AGAIN}") from error

    def _columns(self) -> list[int]:
        """Where the drafter's layers stand among those stored. Raises UserError where these features are not for it."""
        settings = self.manifest["settings"]
        module = None if self.trainer is None else self.trainer.lightning_module
        if module is None:
            return list(range(len(settings["taps"])))
        drafter = getattr(module, "drafter", None)
        if drafter is None:
            raise UserError("collected features are for draft heads: a language model trains on ConversationData")
        backbone: Any = module.backbone
        same = backbone.is_model(settings["fingerprint"], settings.get("dtype"))
        if not same or settings["width"] != backbone.width:
            raise UserError(
                f"'{self.path}' was collected from backbone '{settings['backbone']}' ({settings['fingerprint']}), not from "
                f"'{backbone.name}' ({backbone.fingerprint()}): collect with this backbone, or train on that one"
            )
        missing = [layer for layer in drafter.taps if layer not in settings["taps"]]
        if missing:
            raise UserError(
                f"'{self.path}' holds {_named(settings['taps'])}, but {type(drafter).__name__} reads "
                f"{_named(drafter.taps)}: collect with --taps {' '.join(map(str, drafter.taps))}"
            )
        most = self.manifest["most_heads"]
        if most is not None and drafter.draft_length > most:
            raise UserError(
                f"'{self.path}' leaves room for {most} heads between its samples, not {drafter.draft_length}: collect with a "
                "smaller --stride"
            )
        return [settings["taps"].index(layer) for layer in drafter.taps]


def _named(layers: Sequence[int]) -> str:
    return f"the inputs of layers {', '.join(map(str, layers))}" if layers else "no inputs of layers"
