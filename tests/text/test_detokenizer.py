"""Text that is shown while tokens come is, joined, the whole text; a stop string is never seen, not even in part."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mhc.backbone.loading import load_tokenizer
from mhc.text.detokenizer import BROKEN, TextStream


def metaspace() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are part of tokens, a leading one is eaten, unknown characters are single bytes."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁the", "▁a", "b", "c", "▁\n", "é"]
    model = models.BPE({word: id for id, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


TOKENIZERS = {"byte-level": load_tokenizer("pocket"), "metaspace": metaspace()}


def shown(stream: TextStream, ids: list[int], sizes: list[int]) -> list[str]:
    pieces = []
    while ids:
        size = sizes.pop() if sizes else 1
        pieces.append(stream.push(ids[:size]))
        ids = ids[size:]
    return [*pieces, stream.finish()]


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_the_pieces_are_the_text(name, data):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=30))
    sizes = data.draw(st.lists(st.integers(1, 5), max_size=30))
    text, whole = "".join(shown(TextStream(tokenizer), ids, sizes)), tokenizer.decode(ids, skip_special_tokens=True)
    if name == "byte-level" or BROKEN not in whole:  # byte fallback breaks good characters for a bad one behind them
        assert text == whole


@settings(max_examples=300, deadline=None)
@given(
    text=st.text("aé🙂b\n", max_size=30),
    stops=st.lists(st.text("aé🙂b\n", min_size=1, max_size=4), max_size=3),
    sizes=st.lists(st.integers(1, 5), max_size=30),
)
def test_a_stop_string_ends_the_text(text, stops, sizes):
    """Over the borders of tokens, pieces and bytes: what is shown is all before the stop string that is complete first."""
    tokenizer = TOKENIZERS["byte-level"]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stream = TextStream(tokenizer, stops)
    pieces = shown(stream, ids, sizes)
    found = [(at + len(stop), at) for stop in stops if (at := text.find(stop)) >= 0]
    assert "".join(pieces) == stream.text == text[: min(found)[1] if found else None]
    assert (stream.stopped is not None) == bool(found)


def test_no_more_is_held_back_than_may_be_a_stop_string():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [tokenizer(letter, add_special_tokens=False)["input_ids"] for letter in "xENyEND"]
    stream = TextStream(tokenizer, ["END"])
    assert [stream.push(each) for each in ids] == ["x", "", "", "ENy", "", "", ""]
    assert stream.stopped == "END" and stream.finish() == ""


def test_half_a_character_waits():
    tokenizer = TOKENIZERS["byte-level"]
    ids = [token for token in tokenizer("🙂", add_special_tokens=False)["input_ids"]]
    assert len(ids) > 1, "else this test shows nothing"
    stream = TextStream(tokenizer)
    assert [stream.push([each]) for each in ids] == [""] * (len(ids) - 1) + ["🙂"]
    stream = TextStream(tokenizer)
    stream.push(ids[:-1])
    assert stream.finish() == tokenizer.decode(ids[:-1])
