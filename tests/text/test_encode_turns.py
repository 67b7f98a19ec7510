"""Training rows hold what is decoded: behind the prompt that decoding starts from stands the answer, whatever a template does."""

import json
from functools import cache
from types import SimpleNamespace

import pytest

from datamodules.conversations import ConversationData
from mhc.distill.answers import Job, answer_all
from mhc.errors import UserError
from mhc.text.chat_template import chat_template
from mhc.text.encoding import encode, encode_turns, prompt_ids
from tests.helpers.published_templates import byte_level, sentencepiece
from tests.helpers.templates import CHATML_TOKENS, TOKENIZERS, make

OPENS_THINKING = (  # what matters of Nemotron 3 and of later DeepSeek R1: the prompt opens, history has no reasoning
    "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{% set answer = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{% if m['reasoning_content'] and loop.last %}"
    "{% set answer = '<think>\n' + m['reasoning_content'] + '\n</think>\n' + answer %}{% endif %}"
    "{{ '<|im_start|>assistant\n' + answer + '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
)
TAGGED = OPENS_THINKING.replace(
    "{{ '<|im_start|>assistant\n' + answer", "{% generation %}{{ '<|im_start|>assistant\n' + answer"
)
TAGGED = TAGGED.replace("answer + '<|im_end|>\n' }}", "answer + '<|im_end|>\n' }}{% endgeneration %}")


@cache
def opening(tagged: bool):
    return make(TAGGED if tagged else OPENS_THINKING, CHATML_TOKENS, "<|im_end|>", plain=["<think>", "</think>"])


def dialogue(*answers, **more):
    turns = [
        [{"role": "user", "content": f"hello {n}"}, {"role": "assistant", "content": a}] for n, a in enumerate(answers)
    ]
    messages = [message for turn in turns for message in turn]
    messages[-1] |= more
    return messages


def learned_runs(tokenizer, rows):
    """(what stands before, what is learned) of each run of each row, decoded."""
    found = []
    for ids, mask in rows:
        edges = [t for t in range(1, len(ids)) if mask[t] and not mask[t - 1]]
        for start in edges:
            end = next((t for t in range(start, len(ids)) if not mask[t]), len(ids))
            found.append((ids[:start], tokenizer.decode(ids[start:end])))
    return found


def assert_decoded(tokenizer, messages, rows, answers):
    """Every answer is learned once, behind the ids of its prompt."""
    turns = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    prompts = [prompt_ids(tokenizer, messages[:turn]) for turn in turns]
    assert sorted(learned_runs(tokenizer, rows)) == sorted(zip(prompts, answers))


@pytest.mark.parametrize("tagged", [False, True])
def test_a_template_that_opens_thinking(tagged):
    """Decoded text goes on from <think>; in the history there is none of it."""
    tokenizer = opening(tagged)
    decoded = ["hm\n</think>\n\nyes", "more\n</think>\n\nno"]
    messages = dialogue(*decoded)
    (rows,) = encode_turns(tokenizer, [messages])
    assert_decoded(tokenizer, messages, rows, [text + "<|im_end|>" for text in decoded])
    whole = dialogue(*(f"<think>\n{text}" for text in decoded))
    assert encode_turns(tokenizer, [whole]) == [rows]


@pytest.mark.parametrize("tagged", [False, True])
def test_reasoning_in_a_field_of_its_own(tagged):
    tokenizer = opening(tagged)
    messages = dialogue("hm\n</think>\n\nyes", "no", reasoning_content="more")
    (rows,) = encode_turns(tokenizer, [messages])
    assert_decoded(tokenizer, messages, rows, ["hm\n</think>\n\nyes<|im_end|>", "more\n</think>\nno<|im_end|>"])


@pytest.mark.parametrize("tagged", [False, True])
def test_answers_that_do_not_go_on_from_what_is_opened_are_refused(tagged):
    with pytest.raises(
        UserError, match=r"'.*<think>\\n', which the answer 'yes' does not go on from.*distill"
    ) as refusal:
        encode_turns(opening(tagged), [dialogue("yes")])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("tagged", [False, True])
def test_a_header_between_tags_is_not_supervised(tagged):
    ids, mask = encode(opening(tagged), dialogue("yes", "no"))
    runs = [text for _, text in learned_runs(opening(tagged), [(ids, mask)])]
    assert [text.strip() for text in runs] == ["yes<|im_end|>", "no<|im_end|>"]


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1"])
def test_templates_that_drop_earlier_reasoning(name):
    tokenizer = byte_level(name)
    messages = dialogue("<think>\nhm\n</think>\n\nyes", "<think>\nmore\n</think>\n\nno", "plain")
    if name == "qwen3":
        messages[-1]["content"] = "<think>\nso\n</think>\n\nplain"
    (rows,) = encode_turns(tokenizer, [messages])
    end = tokenizer.eos_token
    assert_decoded(tokenizer, messages, rows, [m["content"] + end for m in messages[1::2]])


@pytest.mark.parametrize("name", ["chatml", "llama3", "llama31", "phi3", "gemma", "vicuna", "mistral_v3"])
@pytest.mark.parametrize("kind", [byte_level, sentencepiece])
def test_one_row_where_the_template_only_appends(name, kind):
    tokenizer, messages = kind(name), dialogue("yes", "no")
    assert encode_turns(tokenizer, [messages]) == [[encode(tokenizer, messages)]]


@pytest.mark.parametrize("name", list(TOKENIZERS))
def test_what_has_weight_0_is_read_alone(name):
    tokenizer, _, _ = TOKENIZERS[name]
    messages = dialogue("yes", "no", "so")
    whole, whole_mask = encode(tokenizer, messages)
    for kept in (0, 1, 2):
        weighed = [{**m, "weight": int(at // 2 == kept)} if at % 2 else m for at, m in enumerate(messages)]
        ids, mask = encode(tokenizer, weighed)
        assert ids == whole and learned_runs(tokenizer, [(ids, mask)]) == [
            learned_runs(tokenizer, [(whole, whole_mask)])[kept]
        ]


@pytest.mark.parametrize("name", ["qwen3", "deepseek_r1", "chatml", "llama31"])
def test_token_ids_are_learned_as_they_were_decoded(name):
    """Not as the tokenizer would write the text, and no end where the answer was cut."""
    tokenizer = byte_level(name)
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in "hello"]
    assert len(letters) > len(tokenizer("hello", add_special_tokens=False)["input_ids"])
    messages = dialogue("hello", "hello")
    messages[1]["token_ids"], messages[3]["token_ids"] = [*letters, tokenizer.eos_token_id], letters
    kept, unwritten = chat_template(tokenizer).written(messages)
    assert not unwritten
    (rows,) = encode_turns(tokenizer, [kept])
    assert_decoded(tokenizer, messages, rows, ["hello" + tokenizer.eos_token, "hello"])
    assert all(letters in [ids[t : t + 5] for t in range(len(ids))] for ids, _ in rows)
    messages[1]["token_ids"] = [0, 1, 2]
    assert chat_template(tokenizer).written(messages)[1] == ["token_ids"]
    messages[1]["token_ids"] = [10**9]
    assert chat_template(tokenizer).written(messages)[1] == ["token_ids"]


TOOL = {"type": "function", "function": {"name": "add", "description": "", "parameters": {}}}
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
CALLED = [
    {"role": "system", "content": "", "tools": [TOOL]},
    {"role": "user", "content": "sum"},
    {"role": "assistant", "content": "", "tool_calls": [CALL], "reasoning_content": "look"},
    {"role": "tool", "content": "3"},
    {"role": "assistant", "content": "three", "reasoning_content": "so"},
    {"role": "user", "content": "thanks"},
    {"role": "assistant", "content": "yes"},
]


def test_calls_and_reasoning_are_learned_where_the_template_writes_them():
    tokenizer = byte_level("qwen3")
    assert chat_template(tokenizer).written(CALLED) == (CALLED, [])
    (rows,) = encode_turns(tokenizer, [CALLED])
    call = '<think>\nlook\n</think>\n\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call><|im_end|>'
    expected = [call, "<think>\nso\n</think>\n\nthree<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"]
    assert_decoded(tokenizer, CALLED, rows, expected)
    assert '"name": "add"' in tokenizer.decode(rows[0][0]).partition("sum")[0]


def test_what_a_template_does_not_write_is_taken_out_and_named():
    tokenizer = byte_level("chatml")
    messages, unwritten = chat_template(tokenizer).written(CALLED)
    assert unwritten == ["reasoning_content", "tool_calls", "tools"]
    (rows,) = encode_turns(tokenizer, [messages])
    assert [text for _, text in learned_runs(tokenizer, rows)] == ["three<|im_end|>", "yes<|im_end|>"]


def test_the_data_module_counts_and_says_it_once(tmp_path, capsys):
    rows = [{"messages": [{**m, "content": m["content"] + str(n)} for m in CALLED[1:]], "note": "x"} for n in range(40)]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, lines in (
        ("chatml", ["`reasoning_content` that the chat template does not write", "`tool_calls` that"]),
        ("qwen3", []),
    ):
        data = ConversationData(str(tmp_path / "x.jsonl"))
        data.tokenizer = byte_level(name)
        data.setup()
        data.setup("fit")
        told = capsys.readouterr().err
        assert "40 of 40 rows have a field `note` that is not used (first: x.jsonl:1)" in told
        assert told.count("not used") == 1 + len(lines) and all(
            f"40 of 40 conversations have {line}" in told for line in lines
        )
        data.trainer = SimpleNamespace(train_dataloader=data.train_dataloader()) if name == "qwen3" else None
        if data.trainer:  # several rows come from one conversation
            places = data.origins(range(len(data.rows("train"))))
            assert len(places) > len(set(places)) == len(data.conversations("train"))


def test_distilled_rows_hold_what_was_decoded(tmp_path):
    """From the answerer's token ids through the file to the rows of training, over two turns of reasoning."""
    from mhc.distill.answers import Reply

    tokenizer = opening(False)
    texts = ["hm\n</think>\n\nyes", "cut while it thinks"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")

    def answerer(requests):
        for request in requests:
            turn = sum(m["role"] == "assistant" for m in request.messages)
            ids = tokenizer(texts[turn], add_special_tokens=False)["input_ids"] + ([end] if turn == 0 else [])
            yield Reply(request.key, texts[turn], "stop", len(ids), more={"token_ids": ids})

    jobs = [Job(str(n), dialogue(f"old {n}", "old")) for n in range(3)]
    answer_all(
        [Job(job.id, [{**m, "content": m["content"] + job.id} for m in job.source]) for job in jobs],
        answerer,
        tmp_path / "out.jsonl",
        1,
        9,
        print,
    )
    data = ConversationData(str(tmp_path / "out.jsonl"))
    data.tokenizer = tokenizer
    rows = [
        (ids.tolist(), mask.tolist()) for split in ("train", "validation", "test") for ids, mask in data.rows(split)
    ]
    every = [c.messages for split in ("train", "validation", "test") for c in data.conversations(split)]
    assert len(every) == 3 and not data.report.unused
    expected = [
        (prompt_ids(tokenizer, messages[: 2 * turn + 1]), texts[turn] + ("<|im_end|>" if turn == 0 else ""))
        for messages in every
        for turn in (0, 1)
    ]
    assert sorted(learned_runs(tokenizer, rows)) == sorted(expected)
