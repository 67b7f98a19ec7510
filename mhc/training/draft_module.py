"""The LightningModule that trains heads on a frozen backbone. (mhc/lm/module.py has the language model's.)

    B rows   T time   A anchors   K heads   D width   V vocabulary

Index convention: the backbone at t predicts token t+1, head k (from 0) predicts token t+2+k.
"""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from mhc.backbone.loading import load_tokenizer, vocabulary_size_of
from mhc.backbone.model import Backbone, Features
from mhc.backbone.packing import Packing
from mhc.checkpoints.heads_folder import describe, require_match
from mhc.distributed.sharding import averaged, shares_of
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.training.data import data_of
from mhc.training.losses import OBJECTIVES, Teacher, chunked_loss
from mhc.training.means import Figures, Means
from mhc.training.optimization import optimize, reseed, total_steps

ROWS_AT_ONCE = 4096  # whose tokens are counted together


def find_anchors(mask: Tensor, loss_positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions to train heads at: those whose next two tokens are both supervised, mask (B,T) bool, and which are
    among `loss_positions` (B,T) bool, where these are given.

    Returns (row (A,), position (A,)).
    """
    fit = mask[:, 1:-1] & mask[:, 2:]
    row, position = (fit if loss_positions is None else fit & loss_positions[:, :-2]).nonzero(as_tuple=True)
    return row, position


def token_frequencies(rows: Iterable[tuple[np.ndarray, np.ndarray]], vocabulary_size: int) -> Tensor:
    """How often each token (V,) is supervised in rows of (ids, mask); few rows' tokens are in memory at once."""
    frequencies, remaining = torch.zeros(vocabulary_size, dtype=torch.long), iter(rows)
    while chunk := [ids[mask] for ids, mask in islice(remaining, ROWS_AT_ONCE)]:
        frequencies += torch.bincount(torch.from_numpy(np.concatenate(chunk)), minlength=vocabulary_size)
    return frequencies


def _mean(values: Tensor) -> Tensor:
    """Their mean, 0 where there are none."""
    return values.float().sum() / max(1, values.numel())


class Part(NamedTuple):
    """Rows of one conversation each, as drafters see them: features, ids (B,T), mask (B,T), anchors."""

    features: Features
    ids: Tensor
    mask: Tensor
    anchors: tuple[Tensor, Tensor]

    def targets(self, head: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which anchors (A,) have a token for this head to guess, and the rows and positions of these tokens."""
        row, target = self.anchors[0], self.anchors[1] + 2 + head
        last = self.ids.shape[1] - 1
        valid = (target <= last) & self.mask[row, target.clamp(max=last)]
        return valid, row[valid], target[valid]


class DraftModule(LightningModule):
    """Trains draft heads on a frozen backbone.

    drafter: the heads, as a class_path whose sizes come from the backbone. backbone: 'pocket', a
    directory or a hub name. objective: 'ce' learns the text, 'kl' the backbone's distribution (softened by
    distillation_temperature), 'lk' acceptance itself; see mhc.training.losses. head_weight: head k's loss counts head_weight**k.
    learning_rate, weight_decay, warmup (share of the steps): AdamW with a cosine schedule. dtype: precision in
    which the frozen backbone is held. quantize: 'int8' or 'int4', its linear weights (needs torchao). sharded: load the
    backbone only when the trainer's strategy stands, which splits it over the processes as it is read (ZeRO-3, FSDP).

    Logs head{k}_loss, head{k}_top1, head{k}_top5, with 'kl' and 'lk' head{k}_overlap (sum min(p, q) of the
    backbone's distribution p and the head's q), and expected_tokens_per_step: what a chain would emit a step (bonus counted) if it
    started from every position alike. What it emits in truth is measured by callbacks.Acceptance.
    """

    def __init__(
        self,
        drafter: Callable[[Backbone], Drafter],
        backbone: str = "pocket",
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        warmup: float = 0.05,
        objective: Literal["ce", "kl", "lk"] = "ce",
        distillation_temperature: float = 1.0,
        head_weight: float = 0.8,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        quantize: Literal["int8", "int4"] | None = None,
        sharded: bool = False,
    ):
        super().__init__()
        if objective not in OBJECTIVES:
            raise UserError(f"objective '{objective}': choose {', '.join(OBJECTIVES)}")
        if distillation_temperature <= 0:
            raise UserError(f"distillation_temperature is {distillation_temperature}: it must be above 0")
        self.strict_loading = False  # the backbone is in no checkpoint
        self.learning_rate, self.weight_decay, self.warmup = learning_rate, weight_decay, warmup
        self.objective, self.distillation_temperature = objective, distillation_temperature
        self.head_weight = head_weight
        self._make_drafter = drafter
        load = partial(Backbone.load, backbone, dtype=getattr(torch, dtype), decoding=False, quantize=quantize)
        if sharded:
            self.tokenizer, self.vocabulary_size = load_tokenizer(backbone), vocabulary_size_of(backbone)
            self._load = load
        else:
            self.build(load())

    def build(self, backbone: Backbone) -> None:
        """Put the heads on their backbone."""
        self.backbone = backbone
        self.tokenizer, self.vocabulary_size = backbone.tokenizer, backbone.vocabulary_size
        self.drafter = self._make_drafter(backbone)
        kinds = ("loss", "top1", "top5", "overlap")
        names = [f"head{head}_{kind}" for head in range(self.drafter.draft_length) for kind in kinds]
        self.means = Means([*names, "expected_tokens_per_step"])

    def configure_model(self) -> None:
        """Called once the strategy's processes and the data are ready: load what waited for that, and give a drafter with a
        vocabulary of its own the tokens' frequencies to choose by (a resumed run then takes its choice from the
        checkpoint)."""
        if not hasattr(self, "backbone"):
            self.build(self._load(sharding=getattr(self.trainer.strategy, "sharding", None)))
        data: Any = getattr(self.trainer, "datamodule", None)
        if self.trainer.state.fn == "fit" and hasattr(data, "conversations"):
            context, longest = self.backbone.context, int(max(data.rows("train").lengths, default=0))
            if longest > context:
                raise UserError(
                    f"a training row has {longest:,} tokens, and the backbone reads {context:,}: cut rows with "
                    f"--data.max_length {context}"
                )
        if self.drafter.vocabulary is not None and self.trainer.state.fn == "fit":
            frequencies = token_frequencies(data_of(self.trainer).rows("train"), self.vocabulary_size)
            if message := self.drafter.choose_vocabulary(frequencies):
                self.print(message)

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()

    def on_train_start(self) -> None:
        self.steps = total_steps(self.trainer)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        reseed(self.trainer, self.seed, index)
        self.drafter.progress = self.trainer.global_step / max(1, self.steps)

    def teacher(self, hidden: list[Tensor]) -> Teacher | None:
        """The backbone's own distribution behind these hidden states (A,D), given in pieces, where the objective needs it."""
        if self.objective == "ce":
            return None
        backbone = self.backbone
        return Teacher(torch.cat(hidden), backbone.unembedding, self.distillation_temperature, backbone.finisher)

    def losses(
        self,
        ids: Tensor,
        mask: Tensor,
        segments: Tensor | None = None,
        hidden: Tensor | None = None,
        taps: Tensor | None = None,
        loss_positions: Tensor | None = None,
    ) -> tuple[Tensor, Figures]:
        """Weighted loss over the heads, and every figure with the number of anchors behind it.

        ids, mask (B,T). segments (B,T): the conversations of packed rows, see Packing. hidden (B,T,D) and taps (B,T,n*D):
        features collected beforehand; the backbone is not run then. loss_positions (B,T) bool: those that may be anchors.
        """
        drafter = self.drafter
        parts = self._parts(ids, mask, segments, hidden, taps, loss_positions)
        targets = [tuple(zip(*(part.targets(head) for part in parts))) for head in range(drafter.draft_length)]
        counts = torch.stack([torch.cat(valid).sum() for valid, _, _ in targets])
        shares = shares_of(counts) if self.training else torch.ones_like(counts, dtype=torch.float)
        # `forward` itself: module hooks, as ZeRO-3 has one on every module, cannot follow a generator
        guesses = [drafter.forward(part.features, part.ids, part.anchors) for part in parts]
        count = sum(len(part.anchors[0]) for part in parts)
        total = torch.zeros((), device=ids.device)
        figures: Figures = {}
        reached = torch.ones(count, dtype=torch.bool, device=ids.device)  # where every head so far was right
        expected = torch.ones(count, device=ids.device)  # tokens a chain would emit: one bonus, and
        for head, (valid, row, target) in enumerate(targets):
            guess = [next(iterator) for iterator in guesses]
            weights = [part.weight[inside] for part, inside in zip(guess, valid) if part.weight is not None]
            weight = torch.cat(weights) if weights else None
            loss, rank, overlap = chunked_loss(
                torch.cat([part.hidden[inside] for part, inside in zip(guess, valid)]),
                drafter.unembedding(head),
                torch.cat([part.ids[r, t] for part, r, t in zip(parts, row, target)]),
                self.objective,
                weight,
                self.teacher([part.features.hidden[r, t - 1] for part, r, t in zip(parts, row, target)]),
                drafter.vocabulary,
                drafter.finisher,
            )
            total = total + self.head_weight**head * shares[head] * loss
            figures[f"head{head}_loss"] = loss.detach(), len(rank)
            hits = torch.zeros_like(reached)
            hits[torch.cat(valid)] = rank < 1
            reached &= hits
            expected += reached  # ... each guess up to the first wrong one
            if weight is not None:  # a figure is about what was guessed, not about what was shown
                guessed = weight > 0
                rank, overlap = rank[guessed], None if overlap is None else overlap[guessed]
            figures[f"head{head}_top1"] = _mean(rank < 1), len(rank)
            figures[f"head{head}_top5"] = _mean(rank < 5), len(rank)
            if overlap is not None:
                figures[f"head{head}_overlap"] = _mean(overlap), len(rank)
        figures["expected_tokens_per_step"] = _mean(expected), count
        return total, figures

    def _total(self, figures: dict[str, Any]) -> Any:
        """The loss over all heads, from their means."""
        return sum(
            self.head_weight**head * figures[name]
            for head in range(self.drafter.draft_length)
            if (name := f"head{head}_loss") in figures
        )

    def _parts(
        self,
        ids: Tensor,
        mask: Tensor,
        segments: Tensor | None,
        hidden: Tensor | None,
        taps: Tensor | None,
        loss_positions: Tensor | None,
    ) -> list[Part]:
        """What drafters see: rows of one conversation each. Packed rows are split behind the backbone."""
        if segments is not None:
            packing = Packing(segments)
            features = self.backbone.features(ids, self.drafter.taps, packing)
            groups = zip(
                packing.split(features.hidden),
                [None] * len(packing.groups) if features.taps is None else packing.split(features.taps),
                packing.split(ids),
                [part & inside for part, (_, inside) in zip(packing.split(mask), packing.groups)],
            )
            return [Part(Features(h, t), i, m, find_anchors(m)) for h, t, i, m in groups]
        if hidden is None:
            features = self.backbone.features(ids, self.drafter.taps)
        else:
            dtype = self.backbone.dtype
            features = Features(hidden.to(dtype), None if taps is None else taps.to(dtype))
        return [Part(features, ids, mask, find_anchors(mask, loss_positions))]

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """The loss of this process's rows, which may be none at all; the figures logged are of all processes' rows."""
        loss, figures = self.losses(**batch)
        means = averaged(figures)
        if means:
            means |= {"loss": self._total(means)}
            self.log("loss", means["loss"], prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in means.items()})
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.means.update(self.losses(**batch)[1])

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._means().items()}, prog_bar=False)

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.validation_step(batch, index)  # decoding itself is a callback's work (DecodeBenchmark)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._means().items()})

    def _means(self) -> dict[str, Tensor]:
        """The epoch's figures by name, computed over all its anchors, and a fresh start."""
        means = {name: value for name, (value, guessed) in self.means.compute().items() if guessed or not value.isnan()}
        return means | {"loss": self._total(means)}

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return optimize(self, self.learning_rate, self.weight_decay, self.warmup)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]  # torch overloads it
        """The heads alone: the backbone is borrowed."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name.startswith("drafter.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["drafter"] = describe(self.drafter)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        require_match(checkpoint.get("drafter"), self.drafter, "the checkpoint")
        missing = set(self.state_dict()) - set(checkpoint["state_dict"])
        if missing:
            raise UserError(f"the checkpoint lacks {len(missing)} head tensors, {min(missing)} among them")
