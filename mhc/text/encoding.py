"""Conversations to token ids and supervision masks, under any Hugging Face chat template.

Two things hold for any template (`mhc.text.chat_template` explains how):

* the mask is True exactly on what the assistant says and on the end-of-turn token that closes it;
* text in the data never becomes a control token: a user who types `<|im_end|>` has typed text.

With a byte-level tokenizer the text is tokenized piece by piece, cut where the assistant starts and stops. So
the ids of a row start with `prompt_ids` of its first turns: training sees what decoding will see.

A document, [{"role": "document", "content": text}], is its text and the tokenizer's eos, all of it supervised.
"""

import secrets
from bisect import bisect_left, bisect_right
from functools import lru_cache

from transformers import GenerationConfig, PreTrainedTokenizerBase

from mhc.errors import UserError
from mhc.text.chat_template import THOUGHT, ChatTemplate, Rendered, chat_template
from mhc.text.messages import Messages, checked, learned

Encoded = tuple[list[int], list[bool]]  # token ids, and which of them are learned


def encode(
    tokenizer: PreTrainedTokenizerBase, messages: Messages, max_length: int | None = None
) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and its mask: mask[t] is True if token t is assistant text or closes it.

    Cut to the first `max_length` tokens; the caller drops a row whose mask is False throughout. Raises
    UserError, naming the template, where the template refuses the conversation or hides the answers.
    """
    return encode_batch(tokenizer, [messages], max_length)[0]


def encode_batch(
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Messages],
    max_length: int | None = None,
    partly: bool = False,
) -> list[tuple[list[int], list[bool]]]:
    """`encode` for many conversations: one call of the tokenizer, the same result. partly: answers that cannot be located
    are not supervised, in place of an error."""
    template = chat_template(tokenizer)
    encoded = _encode_rows(template, [template.render(messages, partly) for messages in conversations])
    return [(ids[:max_length], mask[:max_length]) for ids, mask in encoded]


def encode_turns(tokenizer: PreTrainedTokenizerBase, conversations: list[Messages]) -> list[list[Encoded]]:
    """The rows of each conversation in which its answers stand as they are decoded: behind their prompt, word for word or,
    where a message has `token_ids`, with these. That is one row, unless the template changes an answer once the
    conversation goes on, as those do that drop earlier reasoning. Raises UserError as `encode`, and where an answer does not
    go on from what the template opens."""
    template = chat_template(tokenizer)
    parts = [_turn_rows(template, messages) for messages in conversations]
    encoded = iter(_encode_rows(template, [row for rows in parts for row, _ in rows]))
    return [_merged([_followed(next(encoded), ids) for _, ids in rows]) for rows in parts]


def _turn_rows(template: ChatTemplate, messages: Messages) -> list[tuple[Rendered, list[int]]]:
    """Rows with the token ids that follow: then nothing else of a row is learned."""
    if messages[0]["role"] == "document":
        return [(template.render(messages), [])]
    messages = checked(messages)
    answers = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    row = template.render(messages, partly=True)
    apart = [
        place
        for number, place in enumerate(answers)
        if learned(messages[place]) and (messages[place].get("token_ids") or number in row.changed)
    ]
    if not apart:
        return [(row, [])]
    rows: list[tuple[Rendered, list[int]]] = []
    for place in apart:
        before = [{**each, "weight": 0} if each["role"] == "assistant" else each for each in messages[:place]]
        if ids := messages[place].get("token_ids"):
            rows.append((template.prompt(before), ids))
        else:
            rows.append((_last_turn(template, [*before, messages[place]]), []))
    rest = [{**each, "weight": 0} if place in apart else each for place, each in enumerate(messages)]
    if any(map(learned, rest)):
        rows.append((template.render(rest, partly=True), []))
    return rows


def _last_turn(template: ChatTemplate, messages: Messages) -> Rendered:
    """A row in which the last answer alone is learned."""
    row, answer = template.render(messages, partly=True), messages[-1]
    last = sum(message["role"] == "assistant" for message in messages) - 1
    if last not in row.changed:
        return row
    if "tool_calls" not in answer and ("reasoning_content" in answer or THOUGHT in answer["content"]):
        return template.as_decoded(messages)
    prompt = template.prompt(messages[:-1]).text
    if row.text.startswith(prompt) and row.spans:  # what the template itself makes of an answer
        return row
    raise UserError(
        f"{template.name} begins every answer with {prompt[-20:]!r}, which the answer {answer['content'][:30]!r} does not go "
        "on from: let the model answer the prompts itself (run.py distill)"
    )


def _followed(row: Encoded, ids: list[int]) -> Encoded:
    """A row with the ids that follow it."""
    return ([*row[0], *ids], [*[False] * len(row[0]), *[True] * len(ids)]) if ids else row


def _merged(rows: list[Encoded]) -> list[Encoded]:
    """Rows that begin another one are learned in that one."""
    kept: list[Encoded] = []
    for ids, mask in sorted(rows, key=lambda row: -len(row[0])):
        whole = next((other for other in kept if other[0][: len(ids)] == ids), None)
        if whole is None:
            kept.append((ids, mask))
        else:
            whole[1][: len(ids)] = [here or there for here, there in zip(mask, whole[1])]
    return kept[::-1]


def prompt_ids(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[int]:
    """Token ids of a conversation and the generation prompt: what decoding starts from."""
    template = chat_template(tokenizer)
    return _encode_rows(template, [template.prompt(messages)])[0][0]


def text_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """Token ids of each text as in the middle of a row, after a line's end: no special tokens, and no space put before it."""
    if not _piecewise(tokenizer):
        (anchor,), whole = (
            _tokenize(tokenizer, some, split_special_tokens=True) for some in (["\n"], [f"\n{text}" for text in texts])
        )
        if all(ids[: len(anchor)] == anchor for ids in whole):
            return [ids[len(anchor) :] for ids in whole]
    return _tokenize(tokenizer, texts, split_special_tokens=True)


def end_token_ids(
    tokenizer: PreTrainedTokenizerBase, model_generation_config: GenerationConfig | None = None
) -> list[int]:
    """Ids that end an answer: the tokenizer's eos, the generation config's, and what closes a turn."""
    configured = getattr(model_generation_config, "eos_token_id", None)
    configured = configured if isinstance(configured, list) else [configured]
    ids, mask = encode(tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    closing = [token for token, supervised in zip(ids, mask) if supervised][-1:]
    control = set(chat_template(tokenizer).control_ids.values())
    ends = [tokenizer.eos_token_id, *configured, *(token for token in closing if token in control)]
    return list(dict.fromkeys(token for token in ends if token is not None))


def _encode_rows(template: ChatTemplate, rows: list[Rendered]) -> list[tuple[list[int], list[bool]]]:
    """Token ids and mask of every row."""
    tokenizer = template.tokenizer
    together = [row.pieces() if _piecewise(tokenizer) and not row.hidden else [] for row in rows]
    ids_of = iter(_tokenize(tokenizer, [text for pieces in together for text, _ in pieces]))
    encoded = []
    for row, pieces in zip(rows, together):
        if pieces:
            ids, mask = _joined([(next(ids_of), supervised) for _, supervised in pieces])
        elif row.hidden:
            ids, mask = _joined(
                [(_hidden_ids(template, text, row.hidden), supervised) for text, supervised in row.pieces()]
            )
        else:
            ids, mask = _encode_whole(tokenizer, row)
        if row.document and tokenizer.eos_token_id is not None:
            ids, mask = [*ids, tokenizer.eos_token_id], [*mask, True]
        encoded.append((ids, mask))
    return encoded


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: list[str], **options: bool) -> list[list[int]]:
    options = {"add_special_tokens": False, "return_attention_mask": False, "verbose": False} | options
    return tokenizer(texts, **options)["input_ids"] if texts else []


@lru_cache(maxsize=8)
def _piecewise(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether pieces may be tokenized one by one: not if a space is put before each, or eaten by tokens."""
    twice = _tokenize(tokenizer, ["a"], split_special_tokens=False)[0] * 2
    strips = any(token.lstrip or token.rstrip for token in tokenizer.added_tokens_decoder.values())
    return not strips and tokenizer.decode(twice) == "aa"


def _joined(pieces: list[tuple[list[int], bool]]) -> tuple[list[int], list[bool]]:
    ids = [token for piece, _ in pieces for token in piece]
    return ids, [supervised for piece, supervised in pieces for _ in piece]


def _encode_whole(tokenizer: PreTrainedTokenizerBase, row: Rendered) -> tuple[list[int], list[bool]]:
    """For tokenizers that need the text in one piece: a token is supervised if it overlaps a span."""
    out = tokenizer(row.text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    starts, ends = [start for start, _ in out["offset_mapping"]], [end for _, end in out["offset_mapping"]]
    mask = [False] * len(starts)
    for start, end in (span for number, span in enumerate(row.spans) if number not in row.context):
        first, last = bisect_right(ends, start), bisect_left(starts, end)
        mask[first:last] = [True] * (last - first)
    return out["input_ids"], mask


def _hidden_ids(template: ChatTemplate, text: str, hidden: dict[str, str]) -> list[int]:
    """Ids of a text with marks: control tokens the template wrote are tokens, what the marks hide is text."""
    cut = secrets.token_hex(8)
    ids: list[int] = []
    for part in template.control_pattern.split(text):
        if part in template.control_ids:
            ids.append(template.control_ids[part])
            continue
        for mark, string in hidden.items():
            # The tokenizer splits special tokens on request; one not marked special is cut in two here.
            part = part.replace(mark, string if string in template.special else string[0] + cut + string[1:])
        for piece in filter(None, part.split(cut)):
            ids += text_ids(template.tokenizer, [piece])[0]
    return ids
