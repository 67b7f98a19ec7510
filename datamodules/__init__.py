"""Data for the Lightning modules: conversations read from files or made by the project, and features collected from them."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.conversations import ConversationData
    from datamodules.features import FeatureData

__all__ = ["ConversationData", "FeatureData"]
HOMES = {"ConversationData": "datamodules.conversations", "FeatureData": "datamodules.features"}


def __getattr__(name: str) -> Any:
    """The classes, imported when they are wanted: reading files needs no Lightning."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__} has no {name}")
    return getattr(importlib.import_module(HOMES[name]), name)
