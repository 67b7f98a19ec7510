"""What a language model can learn: the next token, a teacher's distribution, reasoning in tags, preferences.

    B rows   T time   N supervised tokens   D width   V vocabulary   P pairs

An objective is called with the module and a batch and gives figures by name, each a mean and the number of things it is a
mean over. "loss" is differentiable and what is trained on. mask (B,T) is True where a token is a target; the model
at position t predicts token t+1.
"""

import re
from abc import ABC, abstractmethod
from typing import NamedTuple, Protocol

import torch
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase

from datamodules.preferences import PreferenceData
from mhc.backbone.model import Backbone
from mhc.backbone.packing import Packing
from mhc.errors import UserError
from mhc.training.data import data_of
from mhc.training.losses import Finish, Teacher, chunked_loss, log_probabilities
from mhc.training.means import Figures

TAGS = ("<think>", "</think>", "<answer>", "</answer>")


def predicted(mask: Tensor, segments: Tensor | None = None) -> Tensor:
    """Where (B,T-1) the token behind a position is a target of the same conversation."""
    valid = mask[:, 1:]
    return valid if segments is None else valid & (segments[:, 1:] == segments[:, :-1])


class Learner(Protocol):
    """What objectives use of the module that learns."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def trainer(self) -> Trainer: ...

    @property
    def unembedding(self) -> tuple[Tensor, ...]: ...

    @property
    def finish(self) -> Finish | None: ...

    def hidden(self, ids: Tensor, segments: Tensor | None = None) -> Tensor: ...


class Rows(NamedTuple):
    """What a step learns from: ids and mask (B,T); segments (B,T), the conversations of packed rows (see Packing); reference
    as Preference has it."""

    ids: Tensor
    mask: Tensor
    segments: Tensor | None
    reference: Tensor | None


class Objective(ABC):
    """What is learned, with the names of its `figures`."""

    figures: tuple[str, ...]

    def begin(self, module: Learner) -> None:  # noqa: B027  (most need nothing)
        """Called once, when the trainer and its data are ready and the model is as it was at the start."""

    def __call__(
        self,
        module: Learner,
        ids: Tensor,
        mask: Tensor,
        segments: Tensor | None = None,
        reference: Tensor | None = None,
    ) -> Figures:
        """The figures of these rows, see Rows."""
        return self.learn(module, Rows(ids, mask, segments, reference))

    @abstractmethod
    def learn(self, module: Learner, rows: Rows) -> Figures:
        """Each figure's mean over the targets of these rows, and how many they are."""


class NextToken(Objective):
    """Cross-entropy of the supervised tokens: of all (pretraining) or of the assistant's (instruction tuning); the data
    decides. segments (B,T): the conversations of packed rows, see Packing."""

    figures = ("loss", "top1")

    def learn(self, module: Learner, rows: Rows) -> Figures:
        ids, mask, segments, _ = rows
        valid = predicted(mask, segments)
        hidden = module.hidden(ids, segments)[:, :-1][valid]  # (N,D)
        loss, rank, _ = chunked_loss(hidden, module.unembedding, ids[:, 1:][valid], finish=module.finish)
        return {"loss": (loss, len(rank)), "top1": (_share(rank < 1), len(rank))}


class Distillation(Objective):
    """White-box distillation: alpha * cross-entropy + (1 - alpha) * T^2 * KL(teacher || student), both distributions at
    temperature T (Hinton et al., arXiv 1503.02531). The teacher may be of any size, with the same tokens.

    teacher: pocket, a directory or a hub name.
    """

    figures = ("loss", "cross_entropy", "divergence", "top1")

    def __init__(self, teacher: str, alpha: float = 0.5, temperature: float = 1.5):
        if not 0 <= alpha <= 1:
            raise UserError(f"Distillation's alpha is {alpha}: it must be between 0 and 1")
        if temperature <= 0:
            raise UserError(f"Distillation's temperature is {temperature}: it must be above 0")
        self.name, self.alpha, self.temperature = teacher, alpha, temperature
        self.teacher: Backbone | None = None

    def begin(self, module: Learner) -> None:
        if self.teacher is None:
            teacher = Backbone.load(self.name, decoding=False)
            if teacher.tokenizer.get_vocab() != module.tokenizer.get_vocab():
                raise UserError(f"teacher '{self.name}' has other tokens than the student: give both one tokenizer")
            self.teacher = teacher.to(module.trainer.strategy.root_device)

    def learn(self, module: Learner, rows: Rows) -> Figures:
        ids, mask, segments, _ = rows
        teacher, valid = self.teacher, predicted(mask, segments)
        assert teacher is not None
        taught = teacher.features(ids, packing=None if segments is None else Packing(segments)).hidden[:, :-1][valid]
        hidden, labels = module.hidden(ids, segments)[:, :-1][valid], ids[:, 1:][valid]  # (N,D), (N,)
        matrices, finish = module.unembedding, module.finish
        entropy, rank, _ = chunked_loss(hidden, matrices, labels, finish=finish)
        soft = Teacher(taught, teacher.unembedding, self.temperature, teacher.finisher)

        def tempered(product: Tensor) -> Tensor:
            return (product if finish is None else finish(product)) / self.temperature

        divergence = chunked_loss(hidden, matrices, labels, "kl", teacher=soft, finish=tempered).loss
        loss = self.alpha * entropy + (1 - self.alpha) * self.temperature**2 * divergence
        means = loss, entropy.detach(), divergence.detach(), _share(rank < 1)
        return {name: (mean, len(rank)) for name, mean in zip(self.figures, means)}


class Reasoning(Objective):
    """Cross-entropy in which the tokens of the tags (<think>, </think>, <answer>, </answer>) count `tag_weight` times, where
    they are targets: so only where the assistant writes them. The mean is over tokens, not over weights."""

    figures = ("loss", "cross_entropy", "tag_cross_entropy", "top1")

    def __init__(self, tag_weight: float = 10.0):
        if tag_weight <= 0:
            raise UserError(f"Reasoning's tag_weight is {tag_weight}: it must be above 0")
        self.tag_weight = tag_weight
        self._pieces: list[str] = []

    def learn(self, module: Learner, rows: Rows) -> Figures:
        if not self._pieces:
            self._pieces = module.tokenizer.batch_decode([[token] for token in range(len(module.tokenizer))])
        ids, mask, segments, _ = rows
        valid = predicted(mask, segments)
        tags = tag_tokens(ids, self._pieces)[:, 1:][valid]  # (N,)
        hidden, labels = module.hidden(ids, segments)[:, :-1][valid], ids[:, 1:][valid]
        weight = torch.where(tags, self.tag_weight, 1.0)
        loss, rank, _ = chunked_loss(hidden, module.unembedding, labels, weight=weight, finish=module.finish)
        with torch.no_grad():
            each = -log_probabilities(hidden, module.unembedding, labels, module.finish)
        count, tagged = len(rank), int(tags.sum())
        return {
            "loss": (loss, count),
            "cross_entropy": (each.sum() / max(1, count), count),
            "tag_cross_entropy": (each[tags].sum() / max(1, tagged), tagged),
            "top1": (_share(rank < 1), count),
        }


class Preference(Objective):
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290): of a pair of answers the chosen one is to become
    likelier than the rejected one, measured from the model as it was at the start:

        loss = -log sigmoid(beta * ((log p - log p_0)(chosen) - (log p - log p_0)(rejected)))

    length_averaged: log p is the mean over an answer's tokens, in place of their sum. The data is datamodules'
    PreferenceData: rows 2i and 2i+1 of a batch are chosen and rejected; `reference` (2P,) holds their log p_0, which
    `begin` computes once and keeps in reference.safetensors, so that no second model is held.
    """

    figures = ("loss", "accuracy", "margin", "chosen_reward", "rejected_reward")

    def __init__(self, beta: float = 0.1, length_averaged: bool = False):
        if beta <= 0:
            raise UserError(f"Preference's beta is {beta}: it must be above 0")
        self.beta, self.length_averaged = beta, length_averaged

    def begin(self, module: Learner) -> None:
        data = data_of(module.trainer)
        if not isinstance(data, PreferenceData):
            raise UserError("preferences are learned from pairs: set data.class_path to datamodules.PreferenceData")
        kind = "mean" if self.length_averaged else "sum"
        data.refer(module, lambda batch: self.answers(module, batch["ids"], batch["mask"]), kind)

    def answers(self, module: Learner, ids: Tensor, mask: Tensor) -> Tensor:
        """log p (B,) of each row's supervised tokens."""
        valid = predicted(mask)
        hidden = module.hidden(ids)[:, :-1][valid]
        each = log_probabilities(hidden, module.unembedding, ids[:, 1:][valid], module.finish)
        sums = each.new_zeros(len(ids)).index_add(0, valid.nonzero()[:, 0], each)
        return sums / valid.sum(dim=1).clamp(min=1) if self.length_averaged else sums

    def learn(self, module: Learner, rows: Rows) -> Figures:
        ids, mask, _, reference = rows
        assert reference is not None
        reward = self.beta * (self.answers(module, ids, mask) - reference)
        chosen, rejected = reward[0::2], reward[1::2]  # (P,)
        real = mask[0::2, 1:].any(dim=1) & mask[1::2, 1:].any(dim=1)  # a process without rows is given a dummy
        chosen, rejected = chosen[real], rejected[real]
        margin, count = chosen - rejected, int(real.sum())
        right = (margin > 0).float() + 0.5 * (margin == 0)
        means = -logsigmoid(margin), right, margin.detach(), chosen.detach(), rejected.detach()
        return {name: (values.sum() / max(1, count), count) for name, values in zip(self.figures, means)}


def tag_tokens(ids: Tensor, pieces: list[str]) -> Tensor:
    """Which tokens of ids (B,T) have a part in one of TAGS; pieces (V): the text of each token."""
    pattern = re.compile("|".join(map(re.escape, TAGS)))
    tags = torch.zeros_like(ids, dtype=torch.bool)
    for row, tokens in enumerate(ids.tolist()):
        texts = [pieces[token] for token in tokens]
        places = [place for place, text in enumerate(texts) for _ in text]  # of each character: its token
        for tag in pattern.finditer("".join(texts)):
            tags[row, sorted(set(places[tag.start() : tag.end()]))] = True
    return tags


def _share(hits: Tensor) -> Tensor:
    """The share of True, 0 where there is nothing."""
    return hits.float().sum() / max(1, hits.numel())
