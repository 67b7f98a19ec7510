"""Scripts of documents, and how many tokens they take."""

import pytest

from mhc.lm.compression import OTHER, compression, script_of
from mhc.lm.tokenizer import train_tokenizer


@pytest.mark.parametrize(
    "text, script",
    [
        ("Good day, naïve façade.", "Latin"),
        ("今天天气很好，我们去公园。", "Han"),
        ("今日は天気がいいです。", "Japanese"),
        ("カタカナ", "Japanese"),
        ("Добрый день, мир.", "Cyrillic"),
        ("नमस्ते दुनिया", "Devanagari"),
        ("안녕하세요 세계", "Hangul"),
        ("Please translate: 你好 is what they say", "Latin"),
        ("e\u0301\u0302\u0303\u0304 o\u0301\u0302\u0303\u0304", "Latin"),
        ("12 + 30 = 42", OTHER),
        ("x[i] += {1: (2, 3)}[j] ** 2", OTHER),
        ("🙂🙂", OTHER),
    ],
)
def test_the_script_of_a_document(text, script):
    assert script_of(text) == script


def test_sizes_are_added_up():
    tokenizer = train_tokenizer(["hello there"] * 3, 300)
    texts = ["hello there", "你好", "hello everyone <|im_end|>"]
    done = []
    sizes, exact = compression(texts, {"this": tokenizer}, done.append)
    assert list(sizes) == ["Latin", "Han", "all"] and exact == 3 and sum(done) == 3
    assert (sizes["Han"].documents, sizes["Han"].bytes, sizes["Han"].characters, sizes["Han"].tokens) == (
        1,
        6,
        2,
        {"this": 6},
    )
    assert sizes["Han"].figures()["this"] == {"tokens": 6, "bytes_per_token": 1.0, "characters_per_token": 0.3333}
    assert sizes["all"].characters == sum(map(len, texts))
    assert sizes["all"].tokens["this"] == sum(
        len(tokenizer(text, split_special_tokens=True)["input_ids"]) for text in texts
    )
