"""JSON objects of data sets whose fields are ticked off as they are used, so that none is dropped without being counted.

A field is used (something took it), or it is in HARMLESS, or it repeats a text that is used already, or `unused` names it.
"""

import json
from collections.abc import Collection, Iterator
from typing import Any

# Says where a row is from, how it was made and how it is rated, and nothing that a model reads or writes.
HARMLESS = frozenset(
    (
        *("id", "ids", "idx", "index", "uuid", "uid", "guid", "key", "hash", "check", "row_id", "sample_id", "item_id"),
        *("question_id", "answer_id", "conversation_id", "conversation_hash", "prompt_id", "message_id", "parent_id"),
        *("message_tree_id", "user_id", "session_id", "thread_id", "task_id", "problem_id", "model_id", "qid", "_id"),
        *("tool_call_id", "hashed_ip", "turn_identifier", "__index_level_0__"),
        *(
            "source",
            "sources",
            "source_dataset",
            "data_source",
            "dataset",
            "dataset_name",
            "origin",
            "url",
            "urls",
            "link",
        ),
        *("license", "author", "authors", "date", "created", "created_at", "created_date", "timestamp", "updated_at"),
        *(
            "model",
            "model_name",
            "models",
            "generator",
            "chosen_model",
            "rejected_model",
            "chosen-model",
            "rejected-model",
        ),
        *("category", "categories", "subcategory", "topic", "topics", "subject", "domain", "tags", "class"),
        *("type", "task", "task_name", "task_type", "task_source", "template_idx", "template_type", "language", "lang"),
        *("locale", "split", "subset", "difficulty", "level", "problem_type", "question_type", "turn", "num_turns"),
        *("score", "scores", "score_chosen", "score_rejected", "chosen_score", "rejected_score", "rating", "ratings"),
        *("chosen-rating", "rejected-rating", "chosen_rating", "rejected_rating", "margin", "rank", "quality", "votes"),
        *("helpfulness", "correctness", "coherence", "complexity", "verbosity", "instruct_reward", "review_count"),
        *("review_result", "upvotes", "downvotes", "views", "word_count", "char_count", "num_tokens", "token_count"),
        *("length", "finish_reason", "finish_reasons", "stop_reason", "language_score", "perplexity"),
        *(
            "toxic",
            "toxicity",
            "detoxify",
            "redacted",
            "openai_moderation",
            "detoxify_moderation",
            "synthetic",
            "state",
        ),
        *("country", "header", "avatarUrl", "tree_state", "emojis", "labels", "langdetect", "conversation_tokens"),
        *("parallel_tool_calls", "skip_prompt_formatting", "meta", "metadata", "usage", "version"),
    )
)


class Fields:
    """One object. `kind` follows a field's name in `unused` ("" for the row itself, " of a turn"). Fields that are null are
    as good as absent: a table has every column in every row."""

    def __init__(self, values: dict[str, Any], kind: str = ""):
        self.names = list(values)
        self.values = {key: value for key, value in values.items() if value is not None}
        self.kind, self.used = kind, set[str]()
        self.inner: list[Fields] = []

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def take(self, *names: str, kind: type | tuple[type, ...] = object) -> Any:
        """The value of the first of these fields that has one of this kind, or None; fields that say the same are used
        with it."""
        present = [name for name in names if name in self.values and isinstance(self.values[name], kind)]
        name = next((name for name in present if not _empty(self.values[name])), present[0] if present else None)
        if name is None:
            return None
        self.used.update(other for other in present if self.values[other] == self.values[name])
        return self.values[name]

    def within(self, values: dict[str, Any], kind: str) -> "Fields":
        """An object inside this one, whose unused fields are told with this one's."""
        self.inner.append(Fields(values, kind))
        return self.inner[-1]

    def unused(self, repeated: Collection[str] = (), made: Collection[object] = ()) -> Iterator[str]:
        """Every field with a value that nothing took. repeated: fields that are of no account where they only repeat what
        was taken of the row, or was `made` of it."""
        taken = {text for name in self.used for text in texts_in(self.values.get(name)) if text}
        known = taken | {text for value in made for text in texts_in(value)}
        for name in sorted(self.values.keys() - self.used - HARMLESS):
            value = self.values[name]
            written_out = isinstance(value, str) and len(taken) > 1 and all(text in value for text in taken)
            texts = texts_in(as_list(value))  # none in a number or a switch, which repeats nothing
            repeats = name in repeated and (written_out or (bool(texts) and all(text in known for text in texts)))
            if not _empty(value) and not repeats:
                yield f"`{_shown(name)}`{self.kind}"
        for each in self.inner:
            yield from each.unused()


def decoded(value: Any) -> Any:
    """What a text holds as JSON where that is a list or an object, else the value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            parsed = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return parsed if isinstance(parsed, list | dict) else value
    return value


def as_list(value: Any) -> Any:
    """A list of objects that is written as JSON in a text, as one object of lists (a column a field) or as its only
    object, as a list; any other value as it is."""
    value = decoded(value)
    if not isinstance(value, dict):
        return value
    columns = list(value.values())
    if columns and all(isinstance(column, list) for column in columns) and len(set(map(len, columns))) == 1:
        return [dict(zip(value, row)) for row in zip(*columns)]
    return [value]


def texts_in(value: Any) -> list[str]:
    """Every text in a JSON value, names of fields and of roles apart."""
    if isinstance(value, str):
        return [] if value in ("system", "user", "assistant", "human", "gpt") else [value.strip()]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in parts for text in texts_in(part)]


def _empty(value: Any) -> bool:
    return isinstance(value, str | list | dict) and not value


def _shown(name: str) -> str:
    return name[:40] if name.isprintable() else ascii(name[:40])
