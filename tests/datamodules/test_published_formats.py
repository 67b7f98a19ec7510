"""Data sets in the shape in which they are published: what is learned of a row, and that nothing else is dropped silently."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.fields import HARMLESS
from datamodules.readers import Report, iterate
from datamodules.shapes import turns_of
from datamodules.turns import LABELS, RATINGS, WEIGHTS, Dropped
from mhc.text.messages import learned
from tests.helpers.conversations import read_conversations

ADD = {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}
TOOL = {"type": "function", "function": ADD}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
RAW_CALL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


def turn(role, content, **more):
    return {"role": role, "content": content, **more}


def said(source, value, **more):
    return {"from": source, "value": value, **more}


QA = [turn("user", "q"), turn("assistant", "a")]
SHAREGPT = [said("human", "q"), said("gpt", "a")]

# name: (row, messages that it becomes, fields that are told as not used)
PUBLISHED = {
    "Alpaca": (
        {
            "instruction": "Translate.",
            "input": "Hund",
            "output": "dog",
            "text": "Below is an instruction.\n\n### Instruction:\nTranslate.\n\n### Input:\nHund\n\n### Response:\ndog",
        },
        [turn("user", "Translate.\n\nHund"), turn("assistant", "dog")],
        [],
    ),
    "Alpaca with system and history (LLaMA-Factory)": (
        {"instruction": "q", "input": "", "output": "a", "system": "s", "history": [["q0", "a0"]]},
        [turn("system", "s"), turn("user", "q0"), turn("assistant", "a0"), *QA],
        [],
    ),
    "Dolly": (
        {"instruction": "q", "context": "c", "response": "a", "category": "closed_qa"},
        [turn("user", "q\n\nc"), turn("assistant", "a")],
        [],
    ),
    "ShareGPT, Vicuna": (
        {"id": "x_0", "conversations": [said("human", "q", text=None, markdown=None), said("gpt", "a")]},
        QA,
        [],
    ),
    "ShareGPT4 with system": ({"conversations": [said("system", "s"), *SHAREGPT]}, [turn("system", "s"), *QA], []),
    "SlimOrca": (
        {
            "conversations": [
                said("system", "s", weight=None),
                said("human", "q", weight=0.0),
                said("gpt", "a", weight=1.0),
            ]
        },
        [turn("system", "s"), *QA],
        [],
    ),
    "OpenHermes": (
        {
            "conversations": SHAREGPT,
            "system_prompt": "s",
            "source": "x",
            "category": "y",
            "custom_instruction": None,
            "title": "t",
            "idx": 1,
            "skip_prompt_formatting": False,
        },
        [turn("system", "s"), *QA],
        ["`title`"],
    ),
    "OpenAI fine-tuning": (
        {
            "messages": [
                turn("system", "s"),
                turn("user", "q"),
                {"role": "assistant", "tool_calls": [RAW_CALL]},
                turn("tool", "3", tool_call_id="c1"),
                turn("assistant", "a", weight=1),
            ],
            "tools": [TOOL],
            "parallel_tool_calls": False,
        },
        [
            turn("system", "s", tools=[TOOL]),
            turn("user", "q"),
            turn("assistant", "", tool_calls=[{"id": "c1", **CALL}]),
            turn("tool", "3", tool_call_id="c1"),
            turn("assistant", "a"),
        ],
        [],
    ),
    "OpenAI fine-tuning with weights": (
        {"messages": [turn("user", "q"), turn("assistant", "bad", weight=0), turn("user", "q"), *QA[1:]]},
        [turn("user", "q"), turn("assistant", "bad", weight=0), *QA],
        [],
    ),
    "OpenAI functions": (
        {
            "messages": [
                turn("user", "q", name="Ann"),
                {"role": "assistant", "content": None, "function_call": {"name": "add", "arguments": '{"a": 1}'}},
            ],
            "functions": [ADD],
        },
        [
            turn("system", "", tools=[ADD]),
            turn("user", "q"),
            turn("assistant", "", tool_calls=[CALL["function"]]),
        ],
        ["`name` of a turn"],
    ),
    "UltraChat": ({"prompt": "q", "prompt_id": "x", "messages": QA}, QA, []),
    "UltraChat, as first published": ({"id": "0", "data": ["q", "a", "q", "a"]}, [*QA, *QA], []),
    "UltraFeedback binarized": (
        {
            "prompt": "q",
            "prompt_id": "x",
            "chosen": QA,
            "rejected": [turn("user", "q"), turn("assistant", "no")],
            "messages": QA,
            "score_chosen": 9.0,
            "score_rejected": 2.0,
        },
        QA,
        [],
    ),
    "Anthropic HH-RLHF": (
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: no"},
        [turn("Human", "q"), turn("Assistant", "a")],
        [],
    ),
    "Orca DPO pairs": (
        {"system": "s", "question": "q", "chosen": "a", "rejected": "no"},
        [turn("system", "s"), *QA],
        [],
    ),
    "distilabel Orca DPO pairs": (
        {"system": "s", "input": "q", "chosen": "a", "rejected": "no", "rating": [9, 2], "status": "tie"},
        [turn("system", "s"), *QA],
        ["`status`"],
    ),
    "OpenOrca": (
        {"id": "t0.1", "system_prompt": "s", "question": "q", "response": "a"},
        [turn("system", "s"), *QA],
        [],
    ),
    "KTO": ({"prompt": "q", "completion": "a", "label": True}, QA, []),
    "Tulu 3": ({"id": "x", "messages": QA, "source": "ai2"}, QA, []),
    "MiniMind": (
        {
            "conversations": [
                turn("system", "", tools=json.dumps([TOOL])),
                turn("user", "q"),
                turn("assistant", "", reasoning_content="r", tool_calls=json.dumps([CALL["function"]])),
                turn("tool", "3"),
                turn("assistant", "a", reasoning_content="r2"),
            ]
        },
        [
            turn("system", "", tools=[TOOL]),
            turn("user", "q"),
            turn("assistant", "", reasoning_content="r", tool_calls=[CALL["function"]]),
            turn("tool", "3"),
            turn("assistant", "a", reasoning_content="r2"),
        ],
        [],
    ),
    "NuminaMath": ({"source": "aops", "problem": "q", "solution": "a", "messages": QA}, QA, []),
    "NuminaMath 1.5": (
        {"problem": "q", "solution": "a, so 4", "answer": "4", "problem_type": "algebra", "uuid": "x"},
        [turn("user", "q"), turn("assistant", "a, so 4")],
        ["`answer`"],
    ),
    "Hermes function calling": (
        {
            "id": "x",
            "conversations": [said("system", 'Use <tools>[{"name": "add"}]</tools>'), *SHAREGPT],
            "tools": json.dumps([TOOL]),
            "category": "c",
            "subcategory": "s",
            "task": "t",
        },
        [turn("system", 'Use <tools>[{"name": "add"}]</tools>'), *QA],
        [],
    ),
    "ShareGPT with tools beside (APIGen)": (
        {"conversations": SHAREGPT, "tools": json.dumps([ADD]), "system": "s"},
        [turn("system", "s", tools=[ADD]), *QA],
        [],
    ),
    "WizardLM evol_instruct": ({"idx": 7, "conversations": SHAREGPT}, QA, []),
    "WizardLM evol_instruct 70k": ({"instruction": "q", "output": "a"}, QA, []),
    "FLAN": ({"inputs": "q", "targets": "a", "task_source": "x", "task_name": "y", "template_type": "z"}, QA, []),
    "input and target": ({"input": "q", "target": "a"}, QA, []),
    "Natural Instructions": (
        {"definition": "d", "inputs": "q", "targets": "a"},
        [turn("user", "q\n\nd"), turn("assistant", "a")],
        [],
    ),
    "Magpie": ({"uuid": "x", "instruction": "q", "response": "a", "conversations": SHAREGPT, "language": "EN"}, QA, []),
    "Capybara": ({"source": "x", "conversation": [{"input": "q", "output": "a"}] * 2}, [*QA, *QA], []),
    "MetaMathQA": ({"query": "q", "response": "a", "type": "t", "original_question": "o"}, QA, ["`original_question`"]),
    "medical-o1": (
        {"Question": "q", "Complex_CoT": "r", "Response": "a"},
        [turn("user", "q"), turn("assistant", "a", reasoning_content="r")],
        [],
    ),
    "LMSYS and WildChat": (
        {
            "conversation_id": "x",
            "model": "m",
            "turn": 1,
            "language": "English",
            "openai_moderation": [{}],
            "redacted": False,
            "conversation": [turn("user", "q", toxic=False, country="DE"), turn("assistant", "a", timestamp=1)],
        },
        QA,
        [],
    ),
    "columns": ({"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, QA, []),
    "columns of messages": ({"messages": {"role": ["user", "assistant"], "content": ["q", "a"]}}, QA, []),
    "a row of columns": ({"role": ["user", "assistant"], "content": ["q", "a"]}, QA, []),
    "messages as JSON in a text": ({"messages": json.dumps(QA)}, QA, []),
    "parts": (
        {
            "messages": [
                turn("user", [{"type": "text", "text": "q"}, {"type": "text", "text": "!", "x": 1}]),
                turn("assistant", "a"),
            ]
        },
        [turn("user", "q!"), turn("assistant", "a")],
        ["`x` of a part of a turn"],
    ),
    "a loss mask beside the turns": (
        {"messages": [*QA, *QA], "loss_mask": [0, 0, 0, 1]},
        [turn("user", "q"), turn("assistant", "a", weight=0), *QA],
        [],
    ),
    "train per turn": (
        {"messages": [*QA[:1], turn("assistant", "a", train=False), *QA]},
        [turn("user", "q"), turn("assistant", "a", weight=0), *QA],
        [],
    ),
}


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row(tmp_path, name):
    row, expected, unused = PUBLISHED[name]
    (conversation,), report = read_conversations(write(tmp_path, [row]))
    roles = {"Human": "user", "Assistant": "assistant"}
    assert conversation.messages == [{**each, "role": roles.get(each["role"], each["role"])} for each in expected]
    assert list(report.unused) == unused
    assert (report.kept, report.dropped, report.repaired) == (1, {}, {})
    shown = "\n".join(report.lines())
    assert all(f"1 of 1 rows have a field {field} that is not used" in shown for field in unused)


def oasst(name, parent, role, text, **more):
    return {"message_id": name, "parent_id": parent, "message_tree_id": "p", "role": role, "text": text, **more}


TREE = [
    oasst("p", None, "prompter", "q", lang="en", review_count=3, rank=None),
    oasst("a", "p", "assistant", "a", rank=0, emojis={"name": ["+1"], "count": [1]}),
    oasst("b", "p", "assistant", "b", rank=1),
    oasst("p2", "a", "prompter", "q2"),
    oasst("a2", "p2", "assistant", "a2", extra="x"),
    oasst("p3", "a", "prompter", "q3", deleted=True),
]


@pytest.mark.parametrize("order", [1, -1])
def test_a_tree_of_flat_messages(tmp_path, order):
    """OASST: each answer is learned once, wherever its message stands in the file."""
    conversations, report = read_conversations(write(tmp_path, TREE[::order]))
    found = sorted([(m["role"], m["content"], m.get("weight", 1)) for m in c.messages] for c in conversations)
    assert [[text for _, text, _ in path] for path in found] == [["q", "a", "q2", "a2"], ["q", "b"]]
    answers = [m["content"] for c in conversations for m in c.messages if learned(m)]
    assert sorted(answers) == ["a", "a2", "b"] and report.formats == {"tree": 2}
    assert list(report.unused) == ["`extra`"] and list(report.dropped) == ["a message that was deleted"]


def test_an_answer_of_two_paths_is_learned_once(tmp_path):
    rows = [*TREE[:2], oasst("x", "a", "prompter", "x"), *TREE[3:5], oasst("y", "x", "assistant", "y")]
    conversations, _ = read_conversations(write(tmp_path, [*rows, oasst("z", "missing", "assistant", "z")]))
    assert sorted(m["content"] for c in conversations for m in c.messages if learned(m)) == ["a", "a2", "y"]


def test_a_whole_tree(tmp_path):
    reply = {"text": "a", "role": "assistant", "replies": [], "note": 1}
    row = {
        "message_tree_id": "p",
        "tree_state": "ready",
        "prompt": {"text": "q", "role": "prompter", "replies": [reply]},
    }
    (conversation,), report = read_conversations(write(tmp_path, [row]))
    assert conversation.messages == QA and list(report.unused) == ["`note`"]


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"prompt": "q", "completion": "a", "label": False}, "label: false"),
        ({"prompt": [QA[0]], "completion": [QA[1]], "chosen": False}, "chosen: false"),
        ({"messages": QA, "label": False}, "label: false"),
        ({"conversations": SHAREGPT, "kto_tag": False}, "kto_tag: false"),
        ({"question": "q", "answer": "a", "rating": -1}, "rating: -1"),
        ({"question": "q", "answer": "a", "rating": "thumbs_down"}, "rating: thumbs_down"),
    ],
)
def test_a_bad_answer_is_not_learned_but_its_prompt_is_distilled(tmp_path, row, reason):
    good = {"question": "good", "answer": "yes"}
    path = write(tmp_path, [good, row])
    conversations, report = read_conversations(path)
    assert [c.messages[-1]["content"] for c in conversations] == ["yes"]
    assert report.dropped == {f"its answer is marked as bad ({reason}), so it is not learned": (1, "rows.jsonl:2")}
    assert len(list(iterate(str(path), Report("x"), answered=False))) == 2


def test_a_bad_turn_is_read_and_not_learned(tmp_path):
    row = {"messages": [QA[0], turn("assistant", "bad", rating=-1), *QA]}
    (conversation,), report = read_conversations(write(tmp_path, [row]))
    assert [learned(m) for m in conversation.messages] == [False, False, False, True] and not report.unused


@pytest.mark.parametrize(
    "row, reason",
    [
        ({"messages": [QA[0], turn("assistant", "a", weight=0)]}, "none of its answers is to be learned"),
        ({"messages": QA, "weight": 0}, "none of its answers is to be learned"),
        ({"id": 1, "image": "x.jpg", "conversations": SHAREGPT}, "more than text: it has image"),
        ({"messages": [turn("user", [{"type": "image_url"}]), QA[1]]}, "content is not text (image_url)"),
        ({"messages": [QA[0], {"role": "assistant", "tool_calls": "none"}]}, "a tool call without the name"),
        ({"messages": [QA[0], {"role": "assistant", "tool_calls": 7}]}, "a tool call without the name"),
        ({"messages": {"role": ["user"], "content": ["a", "b"]}}, "columns of turns that differ"),
        ({"role": ["user"], "content": ["a", "b"]}, "columns of turns that differ"),
    ],
)
def test_what_cannot_be_learned_is_named(tmp_path, row, reason):
    _, report = read_conversations(write(tmp_path, [{"messages": QA}, row]))
    assert next(iter(report.dropped)).startswith(reason) and report.kept == 1


WEIRD = [
    float("nan"),
    float("inf"),
    -float("inf"),
    10**400,
    -(10**400),
    True,
    [],
    {},
    "",
    "[",
    "{}",
    [[]],
    [None],
    {"a": [1]},
]
KNOWN = sorted(
    {
        *(
            "weight",
            "loss",
            "train",
            "loss_mask",
            "label",
            "rating",
            "score",
            "feedback",
            "chosen",
            "rejected",
            "tools",
        ),
        *("functions", "tool_calls", "function_call", "reasoning", "history", "system", "input", "context", "role"),
        *("from", "value", "content", "text", "data", "turns", "messages", "image", "token_ids", "examples", "command"),
        *("message_id", "prompt", "name", "question", "answer", "id", "replies", "deleted"),
    }
)
VALUES = st.recursive(
    st.sampled_from(WEIRD) | st.text(max_size=5) | st.integers(-2, 5) | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KNOWN), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(
    st.data(),
    st.sampled_from(sorted(PUBLISHED)),
    st.text(max_size=12),
    st.sampled_from(["x", 1, False, [0], {"a": ""}]),
)
def test_a_random_extra_field_is_never_silently_ignored(data, name, key, value):
    """Of a row or of a turn: it is used (another conversation, or none), or it is counted."""
    row = json.loads(json.dumps(PUBLISHED[name][0]))
    turns = [each for part in row.values() if isinstance(part, list) for each in part if isinstance(each, dict)]
    turns = [each for each in turns if "role" in each or "from" in each] if "chosen" not in row else []
    place = data.draw(st.sampled_from([row, *turns]))
    if key in place or key in HARMLESS or key in (*WEIGHTS, *LABELS, *RATINGS):  # these may say "as usual"
        return
    before = turns_of(row)
    place[key] = value
    try:
        after = turns_of(row)
    except Dropped:
        return  # the report names the row
    assert after.turns != before.turns or any(f"`{key[:40]}`" in name or ascii(key) in name for name in after.unused)


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from(sorted(PUBLISHED)), st.sampled_from(KNOWN), VALUES, st.booleans())
def test_a_known_field_with_any_value_is_used_counted_or_named(tmp_path_factory, name, key, value, in_turn):
    """Whatever stands in a field that means something, the row is read, dropped or broken, and never a traceback."""
    row = json.loads(json.dumps(PUBLISHED[name][0]))
    lists = [part for part in row.values() if isinstance(part, list) and part and isinstance(part[0], dict)]
    (lists[0][-1] if in_turn and lists else row)[key] = value
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps({"messages": QA}) + "\n" + json.dumps(row) + "\n")
    for answered in (True, False):
        for rejected in (True, False):
            report = Report("x")
            assert len(list(iterate(str(path), report, answered, 0.9, rejected))) == report.kept
            assert report.kept + report.bad + sum(n for n, _ in report.dropped.values()) == 2
