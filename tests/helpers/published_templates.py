"""The templates of published models in tests/templates, tokenizers with them, and what each makes of an answer."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.helpers.templates import CHATML_TOKENS, LLAMA3_TOKENS, make, make_sentencepiece

FOLDER = Path(__file__).parents[1] / "templates"
DEEPSEEK_TOKENS = [
    f"<｜{name}｜>"
    for name in (
        *("begin▁of▁sentence", "end▁of▁sentence", "User", "Assistant", "tool▁outputs▁begin", "tool▁outputs▁end"),
        *("tool▁output▁begin", "tool▁output▁end"),
    )
]
PHI3_TOKENS = ["<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
QWEN3_PLAIN = ["<think>", "</think>", "<tool_response>", "</tool_response>", "<tool_call>", "</tool_call>"]


@dataclass(frozen=True)
class Published:
    """A template, the tokens it needs, and what it makes of turn i of a conversation: the text to be supervised."""

    special: list[str]
    eos: str
    bos: str | None
    written: Callable[[list, int], str]
    system: bool = True  # writes system turns itself
    tools: bool = False  # writes tool turns itself
    plain: tuple[str, ...] = ()  # tokens that are not special


def as_is(end: str, before: str = "") -> Callable[[list, int], str]:
    return lambda messages, i: before + messages[i]["content"] + end


def stripped(end: str, before: str = "") -> Callable[[list, int], str]:
    return lambda messages, i: before + messages[i]["content"].strip() + end


def deepseek(messages: list, i: int) -> str:
    """Thinking is dropped, but not behind tool turns."""
    content = messages[i]["content"]
    kept = content if messages[i - 1]["role"] == "tool" else content.rpartition("</think>")[2]
    return kept + "<｜end▁of▁sentence｜>"


def qwen3(messages: list, i: int) -> str:
    """Thinking is kept behind the last question only; the last answer has it, be it empty."""
    content, thought = messages[i]["content"], ""
    if "</think>" in content:
        thought = content.partition("</think>")[0].rstrip("\n").rpartition("<think>")[2].strip("\n")
        content = content.rpartition("</think>")[2].lstrip("\n")
    behind_question = all(message["role"] != "user" for message in messages[i:])
    if behind_question and (i == len(messages) - 1 or thought):
        return f"<think>\n{thought}\n</think>\n\n" + content.lstrip("\n") + "<|im_end|>"
    return content + "<|im_end|>"


SPIECE = ["<s>", "</s>"]
GEMMA_TOKENS = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
LLAMA31_TOKENS = [*LLAMA3_TOKENS, "<|end_of_text|>", "<|eom_id|>", "<|python_tag|>"]
TEMPLATES = {
    "chatml": Published(CHATML_TOKENS, "<|im_end|>", None, as_is("<|im_end|>"), tools=True),
    "llama2": Published(SPIECE, "</s>", "<s>", stripped(" </s>", before=" ")),
    "llama3": Published(LLAMA3_TOKENS, "<|eot_id|>", "<|begin_of_text|>", stripped("<|eot_id|>"), tools=True),
    "llama31": Published(LLAMA31_TOKENS, "<|eot_id|>", "<|begin_of_text|>", stripped("<|eot_id|>"), tools=True),
    "mistral_v1": Published(SPIECE, "</s>", "<s>", as_is("</s>"), system=False),
    "mistral_v3": Published(SPIECE, "</s>", "<s>", stripped("</s>", before=" "), system=False),
    "vicuna": Published(SPIECE, "</s>", "<s>", stripped("</s>", before=" ")),
    "zephyr": Published(SPIECE, "</s>", "<s>", as_is("</s>")),
    "gemma": Published(GEMMA_TOKENS, "<eos>", "<bos>", stripped("<end_of_turn>"), system=False),
    "phi3": Published(PHI3_TOKENS, "<|endoftext|>", "<s>", as_is("<|end|>"), system=False),
    "phi3_small": Published(PHI3_TOKENS, "<|endoftext|>", "<|endoftext|>", as_is("<|end|>"), tools=True),
    "deepseek_r1": Published(DEEPSEEK_TOKENS, DEEPSEEK_TOKENS[1], DEEPSEEK_TOKENS[0], deepseek, tools=True),
    "qwen3": Published(CHATML_TOKENS, "<|im_end|>", None, qwen3, tools=True, plain=tuple(QWEN3_PLAIN)),
}
SENTENCEPIECE = ["llama2", "mistral_v1", "mistral_v3", "vicuna", "zephyr", "gemma"]


def template_text(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


@cache
def byte_level(name: str):
    """A byte-level tokenizer with the template and the tokens it needs."""
    made = TEMPLATES[name]
    return make(template_text(name), made.special, made.eos, made.bos, made.plain)


@cache
def sentencepiece(name: str):
    """A tokenizer that puts a space before its text, with the template and the tokens it needs."""
    made, tokenizer = TEMPLATES[name], make_sentencepiece(template_text(name))
    tokenizer.add_tokens([token for token in made.special if token not in SPIECE], special_tokens=True)
    tokenizer.eos_token, tokenizer.bos_token = made.eos, made.bos
    return tokenizer
