"""Data for the Lightning modules: conversations read from files or made by the project, pairs of answers, and features
collected from conversations."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.conversations import ConversationData
    from datamodules.features import FeatureData
    from datamodules.preferences import PreferenceData

__all__ = ["ConversationData", "FeatureData", "PreferenceData"]
HOMES = {
    "ConversationData": "datamodules.conversations",
    "FeatureData": "datamodules.features",
    "PreferenceData": "datamodules.preferences",
}


def __getattr__(name: str) -> Any:
    """The classes, imported when they are wanted: reading files needs no Lightning."""
    if name not in HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
