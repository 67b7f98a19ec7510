"""All conversations of a source at once."""

from pathlib import Path

from datamodules.readers import Conversation, Report, iterate


def read_conversations(path: str | Path, max_bad_share: float = 0.1) -> tuple[list[Conversation], Report]:
    """All conversations of a source, and the report of what was read. Raises as `iterate`."""
    report = Report(str(path))
    return list(iterate(str(path), report, max_bad_share=max_bad_share)), report
