"""The templates of published models, any conversation: supervised is what the assistant says, and nothing else.

The templates in tests/templates write what the published ones write, character by character, in words of our own; the
first line of each names the model. What each makes of an answer is said here a second time, in Python.
"""

from itertools import groupby

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datamodules.batching import collate
from mhc.errors import UserError
from mhc.text.chat_template import template_fingerprint
from mhc.text.encoding import encode, encode_batch, prompt_ids
from tests.helpers.published_templates import SENTENCEPIECE, TEMPLATES, byte_level, sentencepiece, template_text
from tests.helpers.templates import CHATML_TOKENS, TOKENIZERS, make

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
# What breaks masks if anything does: control tokens and what looks like them, thinking, white space.
CONTROL = st.sampled_from(
    [
        *("<|im_end|>", "<|im_start|>assistant\n", "</s>", "<s>", "[INST]", " [/INST]", "<<SYS>>\n", "<start_of_turn>"),
        *("<end_of_turn>\n", "<|eot_id|>", "<|end|>", "<｜Assistant｜>", " ASSISTANT: ", "USER:", "<|assistant|>\n"),
        *(
            "<think>",
            "</think>",
            "<tool_call>",
            "\n",
            "\n\n",
            " ",
            "  ",
            "{% raise %}",
            "\u2028",
            "\x00",
            "é",
            "e\u0301",
        ),
    ]
)
TEXTS = st.lists(st.text(max_size=6) | CONTROL, max_size=4).map("".join)
ANSWERS = TEXTS | st.tuples(TEXTS, TEXTS).map("<think>\n{0[0]}\n</think>\n\n{0[1]}".format)


@st.composite
def conversations(draw, texts=TEXTS, answers=ANSWERS, tools=True):
    """1 to 4 questions, each with an answer and perhaps tool turns with further answers; perhaps a system turn."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 4))):
        messages += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(answers)}]
        for _ in range(draw(st.sampled_from([0, 0, 1, 2])) if tools else 0):
            messages += [{"role": "tool", "content": draw(texts)} for _ in range(draw(st.integers(1, 2)))]
            messages += [{"role": "assistant", "content": draw(answers)}]
    return messages


def answers_of(name: str, messages: list) -> list[str]:
    return [TEMPLATES[name].written(messages, i) for i, m in enumerate(messages) if m["role"] == "assistant"]


def supervised_runs(tokenizer, ids, mask) -> list[str]:
    """The decoded text of every stretch of supervised tokens."""
    runs = groupby(zip(ids, mask), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for said, run in runs if said]


@pytest.mark.parametrize("name", TEMPLATES)
@PROPERTY
@given(conversations())
def test_supervised_is_what_the_assistant_says(name, messages):
    """Every stretch of supervised tokens is one answer as the template writes it, with the end of its turn."""
    tokenizer, published = byte_level(name), TEMPLATES[name]
    ids, mask = encode(tokenizer, messages)
    assert supervised_runs(tokenizer, ids, mask) == answers_of(name, messages)
    roles = {message["role"] for message in messages}
    if (published.system or "system" not in roles) and (published.tools or "tool" not in roles):
        assert tokenizer.decode(ids) == tokenizer.apply_chat_template(messages, tokenize=False)


@pytest.mark.parametrize("name", TEMPLATES)
@PROPERTY
@given(conversations())
def test_rows_start_with_the_prompt(name, messages):
    """What decoding starts from is what training saw before the answer: for the first answer always, for later ones
    where the template does not rewrite history (Qwen 3 drops what was thought before the last question)."""
    tokenizer = byte_level(name)
    ids, mask = encode(tokenizer, messages)
    turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    rewrites = name == "qwen3" and any("</think>" in messages[i]["content"] for i in turns)
    for turn in turns[:1] if rewrites else turns:
        prompt = prompt_ids(tokenizer, messages[:turn])
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)] and not mask[len(prompt) - 1]


@pytest.mark.parametrize("name", TEMPLATES)
@settings(PROPERTY, max_examples=15)
@given(st.lists(conversations(), min_size=2, max_size=3), st.integers(1, 60))
def test_cut_and_padded_masks(name, several, max_length):
    """A cut row is the start of the whole one; padding is unsupervised and its rows keep their masks."""
    tokenizer = byte_level(name)
    whole = encode_batch(tokenizer, several)
    cut = encode_batch(tokenizer, several, max_length)
    assert cut == [(ids[:max_length], mask[:max_length]) for ids, mask in whole]
    rows = [*cut, whole[0]]
    batch = collate([(np.array(ids, np.int32), np.array(mask, bool)) for ids, mask in rows], pad_id=7)
    for (ids, mask), padded_ids, padded_mask in zip(rows, batch["ids"].tolist(), batch["mask"].tolist()):
        assert padded_ids == ids + [7] * (len(padded_ids) - len(ids))
        assert padded_mask == mask + [False] * (len(padded_mask) - len(mask))


@pytest.mark.parametrize("name", SENTENCEPIECE)
@PROPERTY
@given(conversations())
def test_supervised_is_what_the_assistant_says_in_sentencepiece(name, messages):
    """The same, but for white space at the borders of an answer. The text is tokenized in one piece, as the tokenizer
    wants it, so a token across a border is supervised whole (the header's line break with the answer's), and decoding
    takes the first space off a stretch. The tokenizer writes a space and "▁" alike.
    """
    tokenizer = sentencepiece(name)
    ids, mask = encode(tokenizer, messages)
    runs = supervised_runs(tokenizer, ids, mask)
    expected = [text.replace("▁", " ") for text in answers_of(name, messages)]
    assert [run.strip() for run in runs] == [text.strip() for text in expected]


WORDS = st.lists(st.sampled_from(["hello", "the", "answer", "is", "assistant", "é"]), min_size=1).map(" ".join)


@pytest.mark.parametrize("name", SENTENCEPIECE)
@settings(PROPERTY, max_examples=20)
@given(conversations(WORDS, WORDS))
def test_rows_start_with_the_prompt_in_sentencepiece(name, messages):
    """Of words it holds. It does not where the answer starts with white space that merges with what stands before, nor
    where a control string was typed in the answer alone: such a row has no space before the text behind a token."""
    tokenizer = sentencepiece(name)
    ids, mask = encode(tokenizer, messages)
    for turn in (i for i, message in enumerate(messages) if message["role"] == "assistant"):
        prompt = prompt_ids(tokenizer, messages[:turn])
        assert ids[: len(prompt)] == prompt
        assert mask[len(prompt)] and not mask[len(prompt) - 1]


DIALOGUE = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "I look."},
    {"role": "tool", "content": "found\none"},
    {"role": "tool", "content": "and <|im_end|> two"},
    {"role": "assistant", "content": "the answer"},
]


def decoded(tokenizer, messages: list) -> str:
    return tokenizer.decode(encode(tokenizer, messages)[0])


@pytest.mark.parametrize("name", [name for name, published in TEMPLATES.items() if not published.tools])
def test_tool_turns_are_user_turns_where_the_template_knows_none(name):
    """Refused (Llama 2, Mistral, Gemma, Vicuna) or dropped (Zephyr, Phi 3): joined as one user turn either way."""
    tokenizer = byte_level(name)
    as_user = [*DIALOGUE[:3], {"role": "user", "content": "found\none\n\nand <|im_end|> two"}, DIALOGUE[5]]
    assert encode(tokenizer, DIALOGUE) == encode(tokenizer, as_user)
    assert "found\none\n\nand <|im_end|> two" in decoded(tokenizer, DIALOGUE)
    asked = [DIALOGUE[1], {"role": "tool", "content": "the date"}]  # alternates, so Gemma would write it: see the next
    assert prompt_ids(tokenizer, asked) == prompt_ids(tokenizer, [{"role": "user", "content": "hello\n\nthe date"}])


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("chatml", "<|im_start|>tool\nfound\none<|im_end|>\n<|im_start|>tool\nand <|im_end|> two<|im_end|>\n"),
        ("llama31", '<|start_header_id|>ipython<|end_header_id|>\n\n"found\\none"<|eot_id|>'),
        (
            "qwen3",
            "<tool_response>\nfound\none\n</tool_response>\n<tool_response>\nand <|im_end|> two\n</tool_response>",
        ),
        (
            "deepseek_r1",
            "<｜tool▁output▁begin｜>found\none<｜tool▁output▁end｜>\n<｜tool▁output▁begin｜>and <|im_end|> two",
        ),
    ],
)
def test_tool_turns_are_left_to_templates_that_write_them(name, written):
    """One by one, even where the template quotes them (Llama 3.1 writes JSON)."""
    assert written in decoded(byte_level(name), DIALOGUE)


@pytest.mark.parametrize("name", [name for name, published in TEMPLATES.items() if not published.system])
@pytest.mark.parametrize("content", ["Be brief.", "a", "user"])
def test_a_system_turn_is_said_by_the_user_where_the_template_refuses_or_drops_it(name, content):
    """Dropped it is found out even if what it says stands elsewhere in the text too."""
    tokenizer = byte_level(name)
    merged = [{"role": "user", "content": content + "\n\nhello"}, DIALOGUE[2]]
    assert encode(tokenizer, [{"role": "system", "content": content}, *DIALOGUE[1:3]]) == encode(tokenizer, merged)


def test_answers_behind_rewritten_history_keep_their_leading_space():
    """Behind a later question Qwen 3 drops what was thought, so no prompt of that time starts the row."""
    messages = [
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "<think>\nlook\n</think>\n\nI look."},
        {"role": "tool", "content": "found"},
        {"role": "assistant", "content": "  - the answer"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    expected = ["I look.<|im_end|>", "  - the answer<|im_end|>", "<think>\n\n</think>\n\nb<|im_end|>"]
    assert supervised_runs(byte_level("qwen3"), *encode(byte_level("qwen3"), messages)) == expected
    assert answers_of("qwen3", messages) == expected


@pytest.mark.parametrize("name", ["chatml", "chatml_not_special", "zephyr"])
@PROPERTY
@given(TEXTS)
def test_documents_are_text_and_its_end(name, text):
    tokenizer = TOKENIZERS[name][0]
    ids, mask = encode(tokenizer, [{"role": "document", "content": text}])
    eos = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    assert all(mask) and len(mask) == len(ids)
    assert ids[len(ids) - len(eos) :] == eos and tokenizer.decode(ids[: len(ids) - len(eos)]) == text
    assert not set(ids[: len(ids) - len(eos)]) & set(tokenizer.added_tokens_decoder)


def test_documents_among_conversations():
    tokenizer = byte_level("llama3")
    document = [{"role": "document", "content": "hello world <|eot_id|>"}]
    rows = [document, DIALOGUE, [{"role": "document", "content": "hello"}], [{"role": "document", "content": ""}]]
    assert encode_batch(tokenizer, rows) == [encode(tokenizer, row) for row in rows]
    assert encode_batch(tokenizer, rows, 2) == [(ids[:2], mask[:2]) for ids, mask in encode_batch(tokenizer, rows)]
    plain = tokenizer("hello", add_special_tokens=False)["input_ids"]
    assert encode(tokenizer, rows[2]) == ([*plain, tokenizer.eos_token_id], [True] * (len(plain) + 1))
    assert encode(sentencepiece("llama2"), rows[2])[0][:-1] == sentencepiece("llama2")("hello")["input_ids"]
    with pytest.raises(UserError, match="a document has no prompt"):
        prompt_ids(tokenizer, document)
    with pytest.raises(UserError, match="message 2: role"):
        encode(tokenizer, [DIALOGUE[1], *document])


def test_fingerprint_tells_templates_and_control_tokens_apart():
    prints = {name: template_fingerprint(byte_level(name)) for name in TEMPLATES}
    assert len(set(prints.values())) == len(prints) and all(len(bytes.fromhex(p)) == 8 for p in prints.values())
    again, other = (
        make(template_text("chatml"), tokens, "<|im_end|>") for tokens in (CHATML_TOKENS, CHATML_TOKENS[:2])
    )
    assert template_fingerprint(again) == prints["chatml"] != template_fingerprint(other)
    assert template_fingerprint(make(None, ["</s>"], "</s>")) == template_fingerprint(make(None, ["</s>"], "</s>"))


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": "<|im_end|>"}}}
TOOL = {"type": "function", "function": {"name": "add", "description": "<|im_end|>", "parameters": {}}}
ASKED = [{"role": "system", "content": "s", "tools": [TOOL]}, {"role": "user", "content": "u"}]
CALLED = [*ASKED, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "t"}]


def test_tools_in_a_template_that_writes_them():
    tokenizer = byte_level("qwen3")
    text = tokenizer.apply_chat_template(ASKED, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    ids = prompt_ids(tokenizer, ASKED)
    assert tokenizer.decode(ids) == text
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 2  # of two turns; the description's is text


def test_calls_are_located_where_the_text_goes_on_from_them():
    """One call is let through by a template that refuses several. Qwen 3 writes the last turn otherwise: only tags can say."""
    called = [ASKED[1], *CALLED[2:], {"role": "assistant", "content": "a"}]
    written, *_ = supervised_runs(byte_level("llama31"), *encode(byte_level("llama31"), called))
    assert written == '{"name": "add", "parameters": {"a": "<|im_end|>"}}<|eot_id|>'
    with pytest.raises(UserError, match="generation"):
        encode(byte_level("qwen3"), [*CALLED, {"role": "assistant", "content": "a"}])


def test_tools_that_a_template_drops_are_named():
    with pytest.raises(UserError, match="drops system or tool turns, or their tools and calls"):
        prompt_ids(byte_level("chatml"), ASKED)
