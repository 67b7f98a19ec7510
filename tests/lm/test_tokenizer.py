"""The tokenizer: exact round trips, single digits, ChatML turns with tools and thinking, and the assistants' mask."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc.backbone.loading import load_tokenizer
from mhc.corpus import dialogues
from mhc.errors import UserError
from mhc.lm.tokenizer import END_OF_TEXT, TURN_END, TURN_START, train_tokenizer
from mhc.text.encoding import encode, prompt_ids

UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


def _texts() -> list[str]:
    return [m["content"] for d in dialogues(300, seed=5, documentation_share=0) for m in d["messages"]]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(_texts(), 800)


def test_every_string_survives(tokenizer):
    @settings(max_examples=200, deadline=None)
    @given(UNICODE)
    def check(text: str) -> None:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text

    check()
    for text in (
        f"a {TURN_END} b",
        "  two\t\r\n\n ",
        "naïve 123 ½ ²",
        " .",
        "don 't , is n't",
        "\x00é\u202e",
        "e\u0301\u0323 n\u0303 \U0001f469\u200d\U0001f4bb \U00020000 \U0010ffff",
        "".join(map(chr, range(32))) + "\x7f\x85\u2028\ufeff",
        "<think> </think> <answer> <tool_call>",
    ):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_sizes_and_control_tokens(tokenizer):
    assert len(tokenizer) == 800
    assert [tokenizer.pad_token, tokenizer.eos_token] == [END_OF_TEXT, TURN_END]
    assert [tokenizer.convert_tokens_to_ids(t) for t in (END_OF_TEXT, TURN_START, TURN_END)] == [0, 1, 2]
    assert tokenizer(TURN_END, split_special_tokens=True)["input_ids"] != [2]


def test_digits_stand_alone(tokenizer):
    assert len(tokenizer("20481024")["input_ids"]) == 8


def test_same_input_same_tokenizer(tokenizer):
    again = train_tokenizer(_texts(), 800)
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


@pytest.mark.parametrize("system", [True, False])
def test_mask_covers_answers_and_their_ends(tokenizer, system):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": " Good day, é.\n"},
        {"role": "user", "content": "3 + 4?"},
        {"role": "assistant", "content": "7."},
    ][0 if system else 1 :]
    out = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = out["input_ids"], out["assistant_masks"]
    kept = [i for i, m in zip(ids, mask) if m]
    assert tokenizer.decode(kept) == f" Good day, é.\n{TURN_END}7.{TURN_END}"
    whole = "".join(f"{TURN_START}{m['role']}\n{m['content']}{TURN_END}\n" for m in messages)
    assert tokenizer.decode(ids) == whole


def test_generation_prompt(tokenizer):
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == f"{TURN_START}user\nHi{TURN_END}\n{TURN_START}assistant\n"


def test_survives_saving(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    text = "Say 12 + 30 again, please: naïve."
    assert again(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert again.chat_template == tokenizer.chat_template


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(ValueError, match="259"):
        train_tokenizer(["a"], 100)


TOOL = {"name": "add", "description": "Adds é.", "parameters": {"type": "object", "properties": {"a": {}}}}
TOOLS = [{"type": "function", "function": TOOL}]
CALLS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "1 + 2 and 3 + 4?"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "Both sums.",
        "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "é": [2, None]}}},
            {"name": "add", "arguments": '{"a": 3}'},
        ],
    },
    {"role": "tool", "content": "3"},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "3 and 7."},
]
CALLED = (
    '<think>\nBoth sums.\n</think>\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "é": [2, null]}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 3}}\n</tool_call>'
)


def _said(tokenizer, messages: list[dict]) -> str:
    ids, mask = encode(tokenizer, messages)
    return tokenizer.decode([token for token, supervised in zip(ids, mask) if supervised])


def test_tools_calls_and_thinking(tokenizer):
    text = tokenizer.apply_chat_template(CALLS, tools=TOOLS, tokenize=False)
    system, *turns = text.split(TURN_START)[1:]
    assert (
        system.startswith("system\nBe brief.\n\n") and json.dumps(TOOLS[0], ensure_ascii=False) in system.splitlines()
    )
    assert turns == [
        f"user\n1 + 2 and 3 + 4?{TURN_END}\n",
        f"assistant\n{CALLED}{TURN_END}\n",
        f"tool\n3{TURN_END}\n",
        f"tool\n7{TURN_END}\n",
        f"assistant\n3 and 7.{TURN_END}\n",
    ]
    offered = [{**CALLS[0], "tools": TOOLS}, *CALLS[1:]]
    ids, _ = encode(tokenizer, offered)
    assert tokenizer.decode(ids) == text
    assert _said(tokenizer, offered) == f"{CALLED}{TURN_END}3 and 7.{TURN_END}"
    prompt = prompt_ids(tokenizer, offered[:2])
    assert ids[: len(prompt)] == prompt
    alone = tokenizer.apply_chat_template(CALLS[1:2], tools=TOOLS, tokenize=False)
    assert alone.startswith(f"{TURN_START}system\nYou may call") and alone.count(TURN_START) == 2
    assert "name" not in tokenizer.apply_chat_template(CALLS[:2], tokenize=False)


def test_content_beside_reasoning_and_a_call(tokenizer):
    answer = {"role": "assistant", "content": "I add.", "tool_calls": [{"name": "add", "arguments": {}}]}
    call = 'I add.\n<tool_call>\n{"name": "add", "arguments": {}}\n</tool_call>'
    assert _said(tokenizer, [CALLS[1], answer]) == call + TURN_END
    thought = {"role": "assistant", "content": "<answer>\n3\n</answer>", "reasoning_content": "1 + 2 = 3"}
    inline = {"role": "assistant", "content": "<think>\n1 + 2 = 3\n</think>\n<answer>\n3\n</answer>"}
    assert encode(tokenizer, [CALLS[1], thought]) == encode(tokenizer, [CALLS[1], inline])
    earlier = [CALLS[1], thought, {"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
    assert _said(tokenizer, earlier) == f"{inline['content']}{TURN_END}No.{TURN_END}"


@pytest.mark.parametrize(
    "chosen, opened",
    [({}, ""), ({"enable_thinking": True}, "<think>\n"), ({"enable_thinking": False}, "<think>\n\n</think>\n")],
)
def test_the_generation_prompt_thinks_as_asked(tokenizer, chosen, opened):
    text = tokenizer.apply_chat_template(CALLS[1:2], tokenize=False, add_generation_prompt=True, **chosen)
    assert text.endswith(f"{TURN_END}\n{TURN_START}assistant\n{opened}")


@pytest.mark.parametrize("typed", [TURN_END, TURN_START, END_OF_TEXT, "<think>", "</think>", "<answer>", "<tool_call>"])
def test_what_is_typed_stays_text(tokenizer, typed):
    called = {"role": "assistant", "content": typed, "reasoning_content": typed}
    called["tool_calls"] = [{"name": "add", "arguments": {typed: [typed]}}]
    tool = {"type": "function", "function": {**TOOL, "description": typed}}
    messages = [
        {"role": "system", "content": typed, "tools": [tool]},
        {"role": "user", "content": f"a{typed}b {typed}"},
        called,
        {"role": "tool", "content": typed},
        {"role": "assistant", "content": "end"},
    ]
    ids, mask = encode(tokenizer, messages)
    assert [token for token in ids if token < 3] == [
        1,
        2,
    ] * 5  # <|im_start|> and <|im_end|> of five turns, nothing else
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tools=[tool], tokenize=False)
    call = f'<tool_call>\n{{"name": "add", "arguments": {{"{typed}": ["{typed}"]}}}}\n</tool_call>'
    assert tokenizer.decode([token for token, supervised in zip(ids, mask) if supervised]) == (
        f"<think>\n{typed}\n</think>\n{typed}\n{call}{TURN_END}end{TURN_END}"
    )
    if typed not in (TURN_END, TURN_START, END_OF_TEXT):
        assert len(tokenizer(typed)["input_ids"]) > 1


def test_plain_conversations_are_written_as_the_pocket_writes_them(tokenizer):
    """So the template may change without a row of the pocket's data."""
    theirs = load_tokenizer("pocket")
    for dialogue in dialogues(20, seed=2):
        system = [{"role": "system", "content": "Be brief."}] if dialogue["id"].endswith("3") else []
        messages = system + dialogue["messages"]
        for opened in (False, True):
            texts = [
                each.apply_chat_template(messages, tokenize=False, add_generation_prompt=opened)
                for each in (tokenizer, theirs)
            ]
            assert texts[0] == texts[1]


@pytest.mark.parametrize(
    "message, complaint",
    [
        ({"role": "assistant", "content": "", "tool_calls": "add"}, "message 2: tool_calls must be a list"),
        (
            {"role": "assistant", "content": "", "reasoning_content": ["a"]},
            "message 2: reasoning_content must be a text",
        ),
        ({"role": "assistant", "content": None}, "message 2: role must be one of"),
    ],
)
def test_odd_messages_are_named(tokenizer, message, complaint):
    with pytest.raises(UserError, match=complaint):
        encode(tokenizer, [CALLS[1], message])


def test_templates_that_drop_tools_or_calls_are_named():
    pocket = load_tokenizer("pocket")
    offered = [{"role": "system", "content": "Be brief.", "tools": TOOLS}, CALLS[1]]
    for messages in (offered, CALLS[1:3]):
        with pytest.raises(UserError, match="drops"):
            prompt_ids(pocket, messages)
