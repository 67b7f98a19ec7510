"""What training uses of a data module."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from lightning import Trainer

from datamodules.conversations import Prompt


class TrainingData(Protocol):
    """ConversationData, FeatureData and PreferenceData, as modules and callbacks know them."""

    batch_size: int

    def train_batches(self) -> int:
        """Batches of an epoch on this process."""

    def rows(self, split: str) -> Sequence[tuple[np.ndarray, np.ndarray]]:
        """Token ids and supervision mask of each row."""

    def prompts(self, split: str, count: int) -> list[Prompt]:
        """At most `count` prompts of a held-out split."""

    def origins(self, numbers: Sequence[int]) -> list[str]:
        """File and line of rows of the training split."""


def data_of(trainer: Trainer) -> TrainingData:
    """The data module that a trainer was given."""
    data: TrainingData | None = getattr(trainer, "datamodule", None)
    assert data is not None
    return data
