"""Data for the Lightning modules: conversations read from files or made by the project."""

from datamodules.conversations import ConversationData

__all__ = ["ConversationData"]
