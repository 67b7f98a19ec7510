"""The text the small chat model learns: made by rules in this package, or found in Python's own documentation."""

from .generate import POCKET_COUNT, dialogues, fingerprint

__all__ = ["POCKET_COUNT", "dialogues", "fingerprint"]
