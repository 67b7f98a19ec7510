"""Rows to turns: the shapes that published data sets have, recognised from the row itself.

| format     | a row                                                                                   |
|------------|-----------------------------------------------------------------------------------------|
| sharegpt   | conversations: [{from: human or gpt or system or tool, value}]                          |
| messages   | messages, conversations or turns: [{role, content}]                                     |
| alpaca     | instruction, input or context (may be empty), output or response                        |
| question   | question, prompt, problem or query; answer, response, completion, solution or output    |
| preference | chosen and rejected: a text, turns or a conversation each; before them a prompt         |
| turns      | turns: [text], the user's alone (MT-Bench); data: [text], user and assistant (UltraChat) |
| tree       | message_id, parent_id, role, text: a message of a tree (OASST); see datamodules.trees   |
| tldr       | command, examples: [{task, command}]                                                    |
| text       | text: a document, all of which is learned                                               |

Beside these a row may have a system turn (`system`, `system_prompt`, ...), earlier turns (`history`: pairs or turns), `tools`,
the reasoning behind its answer, and a label: an answer that is labelled as bad is not learned. A turn may have reasoning,
`tool_calls`, `tools`, and a weight: 0 (`weight`, `loss`, `train`, ...) is read and not learned. The prompt and the answer of
a pair may be turns themselves; turns may be columns, and JSON may stand in a text. Every other field is counted as not used,
unless it is one of `datamodules.fields.HARMLESS`.
"""

import re
from dataclasses import dataclass

from datamodules.fields import Fields, as_list, decoded
from datamodules.streams import Broken
from datamodules.turns import (
    REASONING,
    WEIGHTS,
    Dropped,
    Turn,
    Turns,
    form_of,
    is_weight,
    listed,
    marked_bad,
    names_of,
    said,
    tools_of,
)

TURN_KEYS = ("messages", "conversations", "conversation", "turns")
QUESTIONS = ("question", "prompt", "problem", "query", "instruction", "Question", "input", "inputs")
ANSWERS = (
    *(
        "response",
        "completion",
        "solution",
        "generated_solution",
        "answer",
        "std_answer",
        "output",
        "target",
        "targets",
    ),
    *("Response", "Answer"),
)
CONTEXTS = ("input", "context", "question", "instruction", "inputs", "definition")  # further texts of a question
SYSTEMS = ("system", "system_prompt", "system_message")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")
REPEATED = (*TURN_KEYS, *QUESTIONS, *ANSWERS, *SYSTEMS, "text", "rejected")
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant): ?")
SHAPES = "conversations (from/value), messages (role/content), instruction/output, question/answer or text"


@dataclass
class Reading:
    """What a row says: its format, its turns, and the fields that are not used."""

    form: str
    turns: Turns
    unused: list[str]


def turns_of(row: object, rejected: bool = False, answered: bool = True) -> Reading:
    """The format of a row and its turns; of a preference those of the chosen answer, or of the `rejected` one. answered:
    false takes answers that are labelled as bad as well, for their prompts."""
    if not isinstance(row, dict):
        raise Broken(f"a row is {'null' if row is None else 'a ' + type(row).__name__}, not an object")
    fields = Fields(row)
    for name in MEDIA:
        if fields.values.get(name):
            raise Dropped(f"more than text: it has {name}")
    form, turns = _shape(fields, rejected)
    if form not in ("text", "tldr"):
        _weigh(fields, turns)
        if answered and (bad := marked_bad(fields)):
            raise Dropped(f"its answer is marked as bad ({bad}), so it is not learned")
        turns = _with_rest(fields, form, turns)
    unused = fields.unused(REPEATED, [turn.content for turn in turns])
    return Reading(form, turns, list(dict.fromkeys(unused)))


def _shape(row: Fields, rejected: bool) -> tuple[str, Turns]:
    if "chosen" in row and not isinstance(row.values["chosen"], bool):
        if rejected and "rejected" not in row:
            raise Dropped("nothing was rejected")
        return "preference", _preferred(row, rejected)
    empty = False
    for name in TURN_KEYS:
        turns = as_list(row.values.get(name))
        empty = empty or turns == []
        if isinstance(turns, list) and any(isinstance(turn, dict) for turn in turns):
            row.take(name)
            return form_of(turns), listed(row, turns)
    for role, content in (("from", "value"), ("role", "content")):  # the row is a conversation of columns
        if all(isinstance(row.values.get(name), list) for name in (role, content)):
            turns = as_list({role: row.take(role), content: row.take(content)})
            return form_of(turns), listed(row, turns)
    if "instruction" in row and any(name in row for name in (*ANSWERS, "input", "context")):
        return "alpaca", _pair(row, ("instruction",))
    for name, roles in (("data", ("user", "assistant")), *((name, ("user", "")) for name in TURN_KEYS)):
        texts = row.values.get(name)
        if isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts):
            row.take(name)
            if roles[1]:
                return "turns", [Turn(roles[place % 2], text) for place, text in enumerate(texts)]
            return "turns", [turn for text in texts for turn in (Turn("user", text), Turn("assistant", ""))]
    if isinstance(row.values.get("examples"), list) and "command" in row:
        return "tldr", _tldr(row)
    has_answer = any(name in row for name in ANSWERS)
    if any(name in row for name in QUESTIONS) and (has_answer or "text" not in row):
        return "question", _pair(row, QUESTIONS)
    if "text" in row:
        return "text", [Turn("document", row.take("text"))]
    if empty:
        raise Dropped("no turns")
    if "choices" in row and "answer_id" in row:
        raise Dropped("answers without their prompts (FastChat)")
    if any(name in row.names for name in ("chosen", "text", *TURN_KEYS, *QUESTIONS)):
        raise Dropped("content is missing")
    names = ", ".join(name[:40] if name.isprintable() else ascii(name[:40]) for name in map(str, row.names[:8]))
    raise Broken(f"shape not recognised (keys: {names or 'no keys'}), expected {SHAPES}")


def _pair(row: Fields, questions: tuple[str, ...]) -> Turns:
    """A question, with every further text of it, and its answer; what was thought before."""
    question = next((name for name in questions if row.values.get(name)), None)
    question = question or next(name for name in questions if name in row)
    texts = [row.take(question)]
    for name in CONTEXTS:
        more = row.values.get(name)
        if name in row.used or not isinstance(texts[0], str):
            continue
        if isinstance(more, list) and more and all(isinstance(text, str) for text in more):
            more = "\n\n".join(more)
        if isinstance(more, str):
            row.take(name)
            texts.append(more)
    whole = "\n\n".join(filter(None, texts)) if len(texts) > 1 else texts[0]
    answer = said(row, row.take(*ANSWERS), "assistant")
    if reasoning := row.take(*REASONING, "Complex_CoT", kind=str):
        answer[-1].more.setdefault("reasoning_content", reasoning)
    return [*said(row, whole, "user"), *answer]


def _with_rest(row: Fields, form: str, turns: Turns) -> Turns:
    """The turns with what stands before them: the system turn, the tools it offers, earlier turns."""
    earlier: Turns = []
    if isinstance(history := decoded(row.values.get("history")), list) and form in ("alpaca", "question", "preference"):
        row.take("history")
        for each in history:
            if isinstance(each, list) and len(each) == 2:
                earlier += [Turn("user", each[0]), Turn("assistant", each[1])]
            else:
                earlier += listed(row, [each])
    systems: Turns = []
    while turns and turns[0].known_role == "system":
        systems.append(turns.pop(0))
    for name in SYSTEMS:
        text = row.values.get(name)
        if text and name not in row.used:
            row.take(name)
            if text not in [turn.content for turn in systems]:
                systems.insert(0, Turn("system", text))
    tools, listed_in = tools_of(row), "".join(str(turn.content) for turn in systems)
    # Hermes lists them in the system turn as well: once is enough.
    if tools and not all(name in listed_in for name in names_of(tools)):
        systems = systems or [Turn("system", "")]
        systems[0].more.setdefault("tools", tools)
    return [*systems, *earlier, *turns]


def _weigh(row: Fields, turns: Turns) -> None:
    """Give turns the weights that stand beside them in the row: one each, or one for all."""
    for name in WEIGHTS:
        value = row.values.get(name)
        weights = value if isinstance(value, list) else [value] * len(turns)
        if weights and len(weights) == len(turns) and all(map(is_weight, weights)):
            row.take(name)
            for turn, weight in zip(turns, weights):
                if not weight and turn.known_role == "assistant":
                    turn.more["weight"] = 0


def _preferred(row: Fields, rejected: bool) -> Turns:
    """The conversation that was preferred: chosen alone where the user speaks in it, else what stands before it too."""
    both = row.take("chosen"), row.take("rejected")
    answer = both[rejected]
    before = next((name for name in (*TURN_KEYS, *QUESTIONS) if row.values.get(name)), None)
    if isinstance(answer, str) and (parts := SPEAKER.split(answer))[2:] and not parts[0].strip():
        return [Turn(role, text) for role, text in zip(parts[1::2], parts[2::2])]  # Anthropic's HH
    turns = said(row, answer, "assistant")
    if isinstance(answer, str | list) and turns[0].known_role in ("system", "user"):
        return turns
    return [*said(row, row.take(before) if before else None, "user"), *turns]


def _tldr(row: Fields) -> Turns:
    """A page of tldr: every task of a command is asked for."""
    turns: Turns = []
    for example in row.take("examples"):
        fields = row.within(example, " of an example") if isinstance(example, dict) else None
        if fields is None or not isinstance(task := fields.take("task"), str):
            raise Broken("an example without a task")
        turns += [Turn("user", f"With `{row.take('command')}`: {task}"), Turn("assistant", fields.take("command"))]
    if not turns:
        raise Dropped("no examples")
    return turns
