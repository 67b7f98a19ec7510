"""Pairs of answers, chosen and rejected, as batches for preference optimisation.

P pairs of a batch   T time   R rows: 2 P, pair by pair the chosen and the rejected
"""

import hashlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.batching import DUMMY, Lengths, Row, collate
from datamodules.conversations import ConversationData, Totals
from datamodules.readers import Report, iterate
from mhc.errors import UserError
from mhc.util.files import write_atomically
from mhc.util.journal import digest
from mhc.util.progress import bar

REFERENCE = "reference.safetensors"


class PairBatches(Dataset):
    """Indexed with a list of pair numbers, gives ids (2P,T), mask (2P,T) and, once they are known, reference (2P,): the
    log-probabilities of the answers under the model as it was. An empty list gives a dummy pair nothing is learned from."""

    def __init__(self, pairs: list[tuple[Row, Row]], pad_id: int):
        self.pairs, self.pad_id = pairs, pad_id
        self.reference: Tensor | None = None  # (R,) of all pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, numbers: list[int]) -> dict[str, Tensor]:
        dummy = np.full(DUMMY, self.pad_id, np.int32), np.zeros(DUMMY, bool)
        batch = collate([row for number in numbers for row in self.pairs[number]] or [dummy, dummy], self.pad_id)
        if self.reference is not None:
            rows = [2 * number + side for number in numbers for side in (0, 1)]
            batch["reference"] = self.reference[rows] if rows else torch.zeros(2)
        return batch


class PreferenceData(ConversationData):
    """Pairs from a file, a folder or a data set whose rows have a prompt, `chosen` and `rejected` (datamodules.readers).
    Only the answers after the last prompt are learned from; pairs whose answers do not fit in max_length, or are the
    same, are left out. Splits depend on the prompt as everywhere.

    Args:
        path, max_length, limit, seed, workers, max_bad_share: as in ConversationData.
        batch_size: pairs in a batch, of each process.
    """

    def __init__(
        self,
        path: str,
        max_length: int = 512,
        batch_size: int = 8,
        limit: int | None = None,
        seed: int = 0,
        workers: int = 0,
        max_bad_share: float = 0.1,
    ):
        super().__init__(path, max_length, batch_size, limit, seed=seed, workers=workers, max_bad_share=max_bad_share)
        self._pairs: dict[str, tuple[PairBatches, Lengths]] = {}
        self._kept: dict[str, list[int]] = {}  # the conversations that became pairs

    def nothing_to_train_on(self) -> str:
        return f"{self.path}: no pair is left to train on: add some, or raise data.max_length"

    def batches(self, split: str) -> tuple[PairBatches, Lengths]:
        """Every pair of a split, and the length of the longer answer of each."""
        if split not in self._pairs:
            pairs = self._encoded_pairs(split)
            lengths = np.array([max(len(ids) for ids, _ in pair) for pair in pairs], np.int64)
            self._pairs[split] = PairBatches(pairs, self._tokenizer().pad_token_id or 0), lengths
        return self._pairs[split]

    def _encoded_pairs(self, split: str) -> list[tuple[Row, Row]]:
        chosen = self.conversations(split)
        told = Report(str(self.path))
        if not hasattr(self, "_rejected"):
            found = iterate(self.path, told, max_bad_share=self.max_bad_share, rejected=True)
            self._rejected = {conversation.where: conversation.messages for conversation in found}
            if self.report:
                self.report.unused = told.unused | self.report.unused
        pairs: list[tuple[Row, Row]] = []
        self._kept[split], self.totals[split] = [], (totals := Totals(len(chosen)))
        for number, conversation in enumerate(chosen):
            other = self._rejected.get(conversation.where)
            if other is None or other == conversation.messages or other[:-1] != conversation.messages[:-1]:
                continue
            both = self._encoded_turns([conversation.messages, other], totals)
            first, second = (_answer_alone(rows[-1]) for rows in both)
            pair = first, second
            if all(len(ids) <= self.max_length and mask.any() for ids, mask in pair):
                self._check_vocabulary(int(max(ids.max() for ids, _ in pair)))
                pairs.append(pair)
                self._kept[split].append(number)
        if chosen and not pairs:
            raise UserError(
                f"{self.path}: none of the {len(chosen)} {split} conversations is a pair: rows need a prompt, chosen and "
                f"rejected, which differ and fit in data.max_length ({self.max_length})"
            )
        return pairs

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """Where training pairs come from: "file.jsonl:12" of each."""
        conversations, kept = self.conversations("train"), self._kept["train"]
        return [conversations[kept[number]].where for number in numbers]

    def refer(self, module: LightningModule, answers: Callable[[dict[str, Tensor]], Tensor], kind: str) -> None:
        """Let batches carry `reference`: answers(batch) -> (R,), of this kind, of every pair that was set up. Computed now and
        kept in default_root_dir; a run that resumes reads them there."""
        for split, (batches, lengths) in self._pairs.items():
            folder = Path(module.trainer.default_root_dir)
            path = folder / f"{split}-{REFERENCE}"
            key = _key(module, batches, kind)
            batches.reference = _kept(path, key)
            if batches.reference is None:
                batches.reference = self._referred(module, batches, lengths, answers)
                if module.trainer.is_global_zero:
                    kept = {"log_probability": batches.reference}
                    write_atomically(path, lambda at, kept=kept, key=key: save_file(kept, at, {"key": key}))

    def _referred(self, module, batches: PairBatches, lengths: Lengths, answers) -> Tensor:
        device, found = module.trainer.strategy.root_device, torch.zeros(2 * len(batches))
        training, order = module.training, np.argsort(lengths, kind="stable").tolist()
        module.to(device).eval()
        with torch.no_grad(), bar() as progress:
            task = progress.add_task("what the model says before", total=len(order))
            for start in range(0, len(order), self.batch_size):
                numbers = order[start : start + self.batch_size]
                batch = {name: value.to(device) for name, value in batches[numbers].items()}
                rows = [2 * number + side for number in numbers for side in (0, 1)]
                found[rows] = answers(batch).float().cpu()
                progress.advance(task, len(numbers))
        module.train(training)
        return found


def _key(module: LightningModule, batches: PairBatches, kind: str) -> str:
    """What references depend on: the weights, the pairs, and what is computed of them."""
    weights = hashlib.sha256()
    model: Any = module.model
    for parameter in model.parameters():
        weights.update(parameter.detach().float().cpu().numpy().tobytes())
    rows = [[ids.tolist(), mask.tolist()] for pair in batches.pairs for ids, mask in pair]
    return digest([weights.hexdigest(), rows, kind])


def _kept(path: Path, key: str) -> Tensor | None:
    """What is kept at `path`, if it was computed for the same."""
    try:
        with safe_open(path, "pt") as file:
            return file.get_tensor("log_probability") if file.metadata() == {"key": key} else None
    except (OSError, SafetensorError):
        return None


def _answer_alone(row: tuple[list[int], list[bool]]) -> Row:
    """ids and mask of a row, supervised from the last answer's first token on."""
    ids, mask = np.array(row[0], np.int32), np.array(row[1], bool)
    starts = [at + 1 for at, (before, here) in enumerate(pairwise(mask.tolist())) if here and not before]
    mask[: starts[-1] if starts else 0] = False
    return ids, mask
