"""The small model's tokenizer: byte-level BPE trained from scratch, with ChatML turns.

Every string survives a round trip, because its bytes are the alphabet; digits are single tokens, so that the model
sees a number's places. The chat template marks each assistant's text and its `<|im_end|>` as *generation*.

Three control tokens: <|endoftext|> ends a document and pads, <|im_start|> and <|im_end|> enclose a turn. Everything else
is text, including the tags of reasoning (<think>, <answer>) and of tools (<tools>, <tool_call>).
"""

from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SMALLEST = 259  # 256 bytes and three control tokens

# How a system turn lists the functions that may be called, one JSON object a line between the two parts.
TOOLS = (
    "You may call these functions:\n<tools>\n",
    '</tools>\nTo call one, write:\n<tool_call>\n{"name": its name, "arguments": its arguments}\n</tool_call>',
)

# A message is role and content. An assistant's may have reasoning_content (written <think> in front, in every turn, so that
# a conversation only ever grows) and tool_calls (OpenAI's form or the bare function); a tool turn has a call's result.
# enable_thinking opens the block for the generation prompt if true, and writes an empty one if false.
CHAT_TEMPLATE = (
    "{% if tools %}"
    "{{ '<|im_start|>system\n' }}"
    "{% if messages[0]['role'] == 'system' and messages[0]['content'] %}"
    "{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ " + repr(TOOLS[0]) + " }}"
    "{% for tool in tools %}{{ tool | tojson + '\n' }}{% endfor %}"
    "{{ " + repr(TOOLS[1]) + " + '<|im_end|>\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{% if not (tools and loop.first and message['role'] == 'system') %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}"
    "{% if message['reasoning_content'] %}"
    "{{ '<think>\n' + message['reasoning_content'] + '\n</think>\n' }}{% endif %}"
    "{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{% set function = call['function'] or call %}"
    "{{ '\n' if message['content'] or not loop.first else '' }}"
    "{{ '<tool_call>\n{\"name\": ' + function['name'] | tojson + ', \"arguments\": ' }}"
    "{{ function['arguments'] if function['arguments'] is string else function['arguments'] | tojson }}"
    "{{ '}\n</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}"
    "{{ '\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is true %}{{ '<think>\n' }}{% endif %}"
    "{% if enable_thinking is false %}{{ '<think>\n\n</think>\n' }}{% endif %}"
    "{% endif %}"
)

# Words with their leading space, single digits, runs of other characters, runs of white space.
PIECES = Regex(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def train_tokenizer(texts: Iterable[str], vocabulary_size: int) -> PreTrainedTokenizerFast:
    """Train byte-level BPE on `texts`; the three control tokens and 256 bytes count in `vocabulary_size`.

    The same texts give the same tokenizer. It has fewer tokens where the texts have too few distinct pairs. Raises
    ValueError below `SMALLEST`.
    """
    if vocabulary_size < SMALLEST:
        raise ValueError(f"vocabulary_size must be at least {SMALLEST}: 256 bytes and three control tokens")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(PIECES, behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[END_OF_TEXT, TURN_START, TURN_END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=END_OF_TEXT,
        eos_token=TURN_END,
        additional_special_tokens=[TURN_START],
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
