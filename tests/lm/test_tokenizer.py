"""The tokenizer: exact round trips, single digits, ChatML turns and the assistants' mask."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mhc.lm.corpus import dialogues
from mhc.lm.tokenizer import END_OF_TEXT, TURN_END, TURN_START, train_tokenizer

UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


def _texts() -> list[str]:
    return [m["content"] for d in dialogues(300, seed=5, docs_share=0) for m in d["messages"]]


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
