"""The LightningModule that trains heads on a frozen backbone. (mhc/lm/module.py has the language model's.)

    B rows   T time   A anchors   K heads   D width   V vocabulary

Index convention: the backbone at t predicts token t+1, head k (from 0) predicts token t+2+k.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from lightning import LightningModule
from torch import Tensor, nn
from torchmetrics import MeanMetric

from callbacks.run_checkpoint import reseed
from mhc.backbone.model import Backbone, Features, load_tokenizer, vocabulary_size_of
from mhc.backbone.packing import Packing
from mhc.distributed.sharding import averaged, shares_of
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.training.losses import OBJECTIVES, Teacher, chunked_loss
from mhc.training.optimization import optimize, total_steps


def find_anchors(mask: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Positions to train heads at: those whose next two tokens are both supervised, mask (B,T) bool, and which are
    `counted` (B,T), where that is given.

    Returns (row (A,), position (A,)).
    """
    fit = mask[:, 1:-1] & mask[:, 2:]
    row, position = (fit if counted is None else fit & counted[:, :-2]).nonzero(as_tuple=True)
    return row, position


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

    Logs head{k}_loss, head{k}_top1, head{k}_top5, with 'kl' and 'lk' head{k}_acceptance (how much of the backbone's
    distribution the head's covers), and expected_tokens_per_step: what a chain would emit a step (bonus counted) if it
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
        load = partial(Backbone.load, backbone, dtype=getattr(torch, dtype), decoding=False, quantize=quantize)
        if sharded:
            self.backbone = None
            self._tokenizer, self._vocabulary_size = load_tokenizer(backbone), vocabulary_size_of(backbone)
            self._load, self._drafter = load, drafter
        else:
            self._build(load(), drafter)

    def _build(self, backbone: Backbone, drafter: Callable[[Backbone], Drafter]) -> None:
        self.backbone = backbone
        self._tokenizer, self._vocabulary_size = backbone.tokenizer, backbone.vocabulary_size
        self.drafter = drafter(backbone)
        kinds = ("loss", "top1", "top5", "acceptance")
        names = [f"head{head}_{kind}" for head in range(self.drafter.heads) for kind in kinds]
        names += ["expected_tokens_per_step"]
        # NaN stays NaN (torchmetrics' "disable" would leave the weights out)
        self.means = nn.ModuleDict({name: MeanMetric(nan_strategy=float("nan")) for name in names})

    def configure_model(self) -> None:
        """Called once the strategy's processes stand and the data are there: load what waited for that, and show the
        drafter how often each token is learned from (a run that goes on then takes its answer from the checkpoint)."""
        if self.backbone is None:
            self._build(self._load(sharding=getattr(self.trainer.strategy, "sharding", lambda path: {})), self._drafter)
        data = self.trainer.datamodule
        if data is not None and self.trainer.state.fn == "fit":
            learned = np.concatenate([ids[mask] for ids, mask in data.rows("train")])
            frequencies = torch.bincount(torch.from_numpy(learned), minlength=self.vocabulary_size)
            if told := self.drafter.choose_vocabulary(frequencies):
                self.print(told)

    @property
    def tokenizer(self):
        return self._tokenizer

    @property
    def vocabulary_size(self) -> int:
        return self._vocabulary_size

    def on_fit_start(self) -> None:
        self.seed = torch.initial_seed()

    def on_train_start(self) -> None:
        self.steps = total_steps(self.trainer)

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        reseed(self.trainer, self.seed, index)
        self.drafter.progress = self.trainer.global_step / max(1, self.steps)

    def taught(self, hidden: list[Tensor]) -> Teacher | None:
        """What the backbone itself says behind these hidden states (A,D), given in pieces, where the objective asks."""
        if self.objective == "ce":
            return None
        return Teacher(torch.cat(hidden), self.backbone.unembedding, self.distillation_temperature)

    def losses(
        self,
        ids: Tensor,
        mask: Tensor,
        segments: Tensor | None = None,
        hidden: Tensor | None = None,
        taps: Tensor | None = None,
        counted: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, tuple[Tensor, int]]]:
        """Weighted loss over the heads, and every figure with the number of anchors behind it.

        ids, mask (B,T). segments (B,T): the conversations of packed rows, see Packing. hidden (B,T,D) and taps (B,T,n*D):
        features collected beforehand; the backbone is not run then. counted (B,T): the positions that may be anchors.
        """
        drafter = self.drafter
        parts = self._parts(ids, mask, segments, hidden, taps, counted)
        targets = [tuple(zip(*(part.targets(head) for part in parts))) for head in range(drafter.heads)]
        counts = torch.stack([torch.cat(valid).sum() for valid, _, _ in targets])
        shares = shares_of(counts) if self.training else torch.ones_like(counts, dtype=torch.float)
        # `forward` itself, since hooks (ZeRO-3 has one on every module) make nothing of a generator
        guesses = [drafter.forward(part.features, part.ids, part.anchors) for part in parts]
        count = sum(len(part.anchors[0]) for part in parts)
        total = torch.zeros((), device=ids.device)
        figures: dict[str, tuple[Tensor, int]] = {}
        reached = torch.ones(count, dtype=torch.bool, device=ids.device)  # where every head so far was right
        expected = torch.ones(count, device=ids.device)  # tokens a chain would emit: one bonus, and
        for head, (valid, row, target) in enumerate(targets):
            found = [next(guess) for guess in guesses]
            weight = None
            if found[0].weight is not None:
                weight = torch.cat([guess.weight[there] for guess, there in zip(found, valid)])
            loss, rank, acceptance = chunked_loss(
                torch.cat([guess.hidden[there] for guess, there in zip(found, valid)]),
                drafter.unembedding(head),
                torch.cat([part.ids[r, t] for part, r, t in zip(parts, row, target)]),
                self.objective,
                weight,
                self.taught([part.features.hidden[r, t - 1] for part, r, t in zip(parts, row, target)]),
                drafter.vocabulary,
                self.backbone.softcap,
            )
            total = total + self.head_weight**head * shares[head] * loss
            figures[f"head{head}_loss"] = loss.detach(), len(rank)
            hits = torch.zeros_like(reached)
            hits[torch.cat(valid)] = rank < 1
            reached &= hits
            expected += reached  # ... each guess up to the first wrong one
            if weight is not None:  # a figure is about what was guessed, not about what was shown
                asked = weight > 0
                rank, acceptance = rank[asked], None if acceptance is None else acceptance[asked]
            figures[f"head{head}_top1"] = _mean(rank < 1), len(rank)
            figures[f"head{head}_top5"] = _mean(rank < 5), len(rank)
            if acceptance is not None:
                figures[f"head{head}_acceptance"] = _mean(acceptance), len(rank)
        figures["expected_tokens_per_step"] = _mean(expected), count
        return total, figures

    def _total(self, figures: dict[str, Any]) -> Any:
        """The loss over all heads, from their means."""
        return sum(
            self.head_weight**head * figures[name]
            for head in range(self.drafter.heads)
            if (name := f"head{head}_loss") in figures
        )

    def _parts(self, ids, mask, segments, hidden, taps, counted) -> list[Part]:
        """What drafters see: rows of one conversation each. Packed rows are taken apart behind the backbone."""
        if segments is not None:
            packing = Packing(segments)
            features = self.backbone.features(ids, self.drafter.taps, packing)
            apart = zip(
                packing.split(features.hidden),
                [None] * len(packing.groups) if features.taps is None else packing.split(features.taps),
                packing.split(ids),
                [part & inside for part, (_, inside) in zip(packing.split(mask), packing.groups)],
            )
            return [Part(Features(h, t), i, m, find_anchors(m)) for h, t, i, m in apart]
        if hidden is None:
            features = self.backbone.features(ids, self.drafter.taps)
        else:
            features = Features(*(one if one is None else one.to(self.backbone.dtype) for one in (hidden, taps)))
        return [Part(features, ids, mask, find_anchors(mask, counted))]

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        """The loss of this process's rows, which may be none at all; what is logged is about the rows of all."""
        loss, figures = self.losses(**batch)
        found = averaged(figures)
        if found:
            self.log("loss", self._total(found), prog_bar=True)
            self.log_dict({f"train/{name}": value for name, value in (found | {"loss": self._total(found)}).items()})
        return loss

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        _, figures = self.losses(**batch)
        for name, (value, count) in figures.items():
            self.means[name].update(value, count)

    def on_validation_epoch_end(self) -> None:
        self.log_dict({f"val/{name}": value for name, value in self._means().items()}, prog_bar=False)

    def test_step(self, batch: dict[str, Tensor], index: int) -> None:
        self.validation_step(batch, index)  # decoding itself is a callback's work (DecodeBenchmark)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self._means().items()})

    def _means(self) -> dict[str, Tensor]:
        """The epoch's figures by name, computed over all its anchors, and a fresh start."""
        figures = {name: mean.compute() for name, mean in self.means.items() if mean.update_called}
        guessed = {
            name for name, mean in self.means.items() if mean.weight
        }  # by the others there was no token to guess
        for mean in self.means.values():
            mean.reset()
        figures = {name: value for name, value in figures.items() if name in guessed or not value.isnan()}
        return figures | {"loss": self._total(figures)}

    def configure_optimizers(self) -> dict[str, Any]:
        return optimize(self, self.learning_rate, self.weight_decay, self.warmup)

    def state_dict(self, *args, **kwargs) -> dict[str, Any]:
        """The heads alone: the backbone is borrowed."""
        state = super().state_dict(*args, **kwargs)
        return {name: value for name, value in state.items() if name.startswith("drafter.")}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        from mhc.checkpoints.heads_folder import describe

        checkpoint["drafter"] = describe(self.drafter)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        from mhc.checkpoints.heads_folder import require_match

        require_match(checkpoint.get("drafter"), self.drafter, "the checkpoint")
        missing = set(self.state_dict()) - set(checkpoint["state_dict"])
        if missing:
            raise UserError(f"the checkpoint lacks {len(missing)} head tensors, {min(missing)} among them")
