"""Rows to turns: the shapes that published data sets have, recognised from the row itself.

| format     | a row                                                                                   |
|------------|-----------------------------------------------------------------------------------------|
| sharegpt   | conversations: [{from: human or gpt or system or tool, value}]                          |
| messages   | messages, conversations or turns: [{role, content}]                                     |
| alpaca     | instruction, input (may be empty), output or response                                   |
| question   | question, prompt or query; answer, response, completion, std_answer or output           |
| preference | chosen and rejected: a text, turns or a conversation each; before them a prompt       |
| turns      | turns: [text], the user's alone (MT-Bench)                                               |
| tldr       | command, examples: [{task, command}]                                                    |
| text       | text: a document, all of which is learned                                               |

A system turn may stand in `system`. The prompt and the answer of a pair may be turns themselves.
"""

import re
from typing import Any

from datamodules.streams import Broken

TURN_KEYS = ("messages", "conversations", "conversation", "turns")
QUESTIONS = ("question", "prompt", "query", "instruction")
ANSWERS = ("answer", "response", "completion", "std_answer", "output")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "claude", "model", "bot"), "assistant"),
    **dict.fromkeys(("function_call", "tool_call", "tool_calls"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "ipython", "function_response"), "tool"),
}
FIRST = [name for name, role in ROLES.items() if role in ("system", "user")]
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
SHAPES = "conversations (from/value), messages (role/content), instruction/output, question/answer or text"

Turns = list[tuple[object, object]]  # (role, content), neither of them checked yet


class Dropped(Exception):
    """The row has a known shape but nothing to learn from; the reason is its text."""


def turns_of(row: object, rejected: bool = False) -> tuple[str, Turns]:
    """The format of a row and its turns; of a preference those of the chosen answer, or of the rejected one."""
    if not isinstance(row, dict):
        raise Broken(f"a row is {'null' if row is None else 'a ' + type(row).__name__}, not an object")
    known = {key: value for key, value in row.items() if value is not None}  # a table has every column in every row
    if rejected and "chosen" in known:
        if "rejected" not in known:
            raise Dropped("nothing was rejected")
        known["chosen"] = known["rejected"]
    if "chosen" in known:
        return "preference", _preferred(known)
    answer = next((known[key] for key in ANSWERS if key in known), None)
    if "instruction" in known and (answer is not None or "input" in known):
        question, extra = known["instruction"], known.get("input")
        if isinstance(question, str) and isinstance(extra, str) and extra:
            question = f"{question}\n\n{extra}"
        return "alpaca", [*_system(known), ("user", question), *_said(answer, "assistant")]
    for key in TURN_KEYS:
        turns = known.get(key)
        if not isinstance(turns, list):
            continue
        if not turns:
            raise Dropped("no turns")
        if all(isinstance(turn, str) for turn in turns):
            return "turns", [turn for text in turns for turn in (("user", text), ("assistant", ""))]
        for form, role in (("messages", "role"), ("sharegpt", "from")):
            if any(isinstance(turn, dict) and turn.get(role) is not None for turn in turns):
                return form, [*_system(known), *map(_turn, turns)]
    if isinstance(known.get("examples"), list) and "command" in known:
        return "tldr", _tldr(known)
    for key in QUESTIONS:
        if key in known and (answer is not None or "text" not in known):
            return "question", [*_system(known), *_said(known[key], "user"), *_said(answer, "assistant")]
    if "text" in known:
        return "text", [("document", known["text"])]
    if "choices" in known and "answer_id" in known:
        raise Dropped("answers without their prompts (FastChat)")
    if any(key in row for key in ("chosen", "text", *TURN_KEYS, *QUESTIONS)):
        raise Dropped("content is missing")
    keys = ", ".join(key[:40] if key.isprintable() else ascii(key[:40]) for key in map(str, list(row)[:8]))
    raise Broken(f"shape not recognised (keys: {keys or 'no keys'}), expected {SHAPES}")


def _turn(turn: object) -> tuple[object, object]:
    """One turn, in OpenAI's words or ShareGPT's."""
    if not isinstance(turn, dict):
        raise Dropped(f"a turn is {'null' if turn is None else 'a ' + type(turn).__name__}, not an object")
    content = turn.get("content")
    return turn.get("role") or turn.get("from"), turn.get("value") if content is None else content


def _said(value: object, role: str) -> Turns:
    """One side of a pair: a text, a turn or several of them. No answer is an empty one."""
    if isinstance(value, dict):
        return [_turn(value)]
    if isinstance(value, list) and any(isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value):
        return [_turn(turn) for turn in value]
    return [(role, "" if value is None else value)]


def _system(row: dict[str, Any]) -> Turns:
    return [("system", row["system"])] if row.get("system") else []


def _preferred(row: dict[str, Any]) -> Turns:
    """The conversation that was preferred: chosen alone where the user speaks in it, else what stands before it too."""
    chosen = row["chosen"]
    before = next((row[key] for key in (*TURN_KEYS, *QUESTIONS) if row.get(key)), None)
    if isinstance(chosen, str) and (parts := SPEAKER.split(chosen))[2:] and not parts[0].strip():
        return list(zip(parts[1::2], parts[2::2]))  # Anthropic's HH
    turns = _said(chosen, "assistant")
    if isinstance(chosen, list) and str(turns[0][0]).lower() in FIRST:
        return [*_system(row), *turns]
    return [*_system(row), *_said(before, "user"), *turns]


def _tldr(row: dict[str, Any]) -> Turns:
    """A page of tldr: every task of a command is asked for."""
    turns: Turns = []
    for example in row["examples"]:
        if not isinstance(example, dict) or not isinstance(example.get("task"), str):
            raise Broken("an example without a task")
        turns += [("user", f"With `{row['command']}`: {example['task']}"), ("assistant", example.get("command"))]
    if not turns:
        raise Dropped("no examples")
    return turns
