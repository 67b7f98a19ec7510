"""Trees of messages (OASST), a row a message or a tree: every path from a prompt to a message without replies is a conversation.

An answer that several paths share is learned in the first of them.
"""

from collections.abc import Iterator
from typing import Any

from datamodules.fields import Fields
from datamodules.turns import Dropped, Turns, turn_of

ID, PARENT, REPLIES = "message_id", "parent_id", "replies"


def is_tree(row: object) -> bool:
    """Whether a row is a message of a tree, or the tree."""
    message = row.get("prompt", row) if isinstance(row, dict) else None
    return (
        isinstance(message, dict) and "role" in message and "text" in message and (ID in message or REPLIES in message)
    )


class Trees:
    """Messages as they are read, in any order; `paths` when all are there."""

    def __init__(self) -> None:
        self.messages: dict[str, tuple[str, str | None, dict[str, Any]]] = {}  # by id: place, id of the parent, row

    def add(self, where: str, row: dict[str, Any]) -> list[str]:
        """Take a message, or a tree with all of its messages; returns the fields that are not used. Raises Dropped for a
        message that was deleted or is no text."""
        unused: list[str] = []
        if not isinstance(row.get("prompt"), dict):
            return self._message(where, row, str(row.get(ID)), row.get(PARENT))
        unused += Fields({name: value for name, value in row.items() if name != "prompt"}).unused()
        waiting: list[tuple[Any, str | None, str]] = [(row["prompt"], None, f"{where}/0")]
        while waiting:
            message, parent, name = waiting.pop()
            if not isinstance(message, dict):
                raise Dropped("a reply is not an object")
            replies = message.get(REPLIES)
            waiting += [(reply, name, f"{name}/{i}") for i, reply in enumerate(replies or [])]
            if not message.get("deleted"):
                unused += self._message(where, {**message, REPLIES: None}, name, parent)
        return list(dict.fromkeys(unused))

    def _message(self, where: str, row: dict[str, Any], name: str, parent: Any) -> list[str]:
        fields = Fields(row)
        if fields.take("deleted"):
            raise Dropped("a message that was deleted")
        turn_of(fields)
        self.messages[name] = where, None if parent is None else str(parent), row
        return list(fields.unused())

    def paths(self) -> Iterator[tuple[str, str, Turns | Dropped]]:
        """(place, id, turns) of every message without a reply; Dropped where one on the way to it is missing."""
        parents = {parent for _, parent, _ in self.messages.values()}
        learned: set[str] = set()
        for leaf, (where, _, _) in self.messages.items():
            if leaf in parents:
                continue
            path: list[str] = []
            name: str | None = leaf
            while name in self.messages and name not in path:
                path.insert(0, name)
                name = self.messages[name][1]
            if name is not None:
                yield where, leaf, Dropped("the message that it replies to is missing")
                continue
            turns = [turn_of(Fields(self.messages[name][2])) for name in path]
            for name, turn in zip(path, turns):
                if name in learned and turn.known_role == "assistant":
                    turn.more["weight"] = 0
            learned.update(path)
            yield where, leaf, turns
