"""Chat templates as published models have them, and tokenizers to go with them."""

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TAGS = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_TAGS_WITHOUT_END = CHATML_TAGS.replace(
    "{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}",
    "{{ m['content'] }}{% endgeneration %}{{ '<|im_end|>\n' }}",
)
CHATML_TAGS_WITH_HEADER = CHATML_TAGS.replace(  # as some published training templates have it
    "{{ '<|im_start|>' + m['role'] + '\n' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m",
    "{{ '<|im_start|>' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['role'] + '\n' + m",
).replace("{% else %}{{ m['content']", "{% else %}{{ m['role'] + '\n' + m['content']")
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}"
    "{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token }}\n"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # what matters of it: reasoning is kept in the last turn only, and an empty block is added there
    "{% for m in messages %}{% set ns = namespace(c=m['content'], r='') %}"
    "{% if m['role'] == 'assistant' %}"
    "{% if '</think>' in ns.c %}"
    "{% set ns.r = ns.c.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
    "{% set ns.c = ns.c.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% if loop.last %}{{ '<think>\n' + ns.r + '\n</think>\n\n' + ns.c.lstrip('\n') }}"
    "{% else %}{{ ns.c }}{% endif %}"
    "{{ '<|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m['role'] + '\n' + ns.c + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHATML_TOKENS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]
LLAMA3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEXT = [
    "hello world, the answer is here\n\nassistant user system",
    "USER: ASSISTANT: [INST] [/INST] think\n\n",
] * 3


def make(template, special, eos, bos=None, plain=()):
    """A byte-level tokenizer with a few merges, as Llama 3 and Qwen have it."""
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(LLAMA3_WORDS), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=330, initial_alphabet=alphabet))
    backend.add_special_tokens(list(special))
    backend.add_tokens(list(plain))
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    made.chat_template = template
    return made


def make_sentencepiece(template):
    """A tokenizer that puts a space before its text, as Llama 2 and Mistral 7B have it."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")],
    )
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>"]
    byte_tokens = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=special + byte_tokens)
    backend.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    backend.train_from_iterator(TEXT, trainer)
    backend.pre_tokenizer = None
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>")
    made.chat_template = template
    return made


# name: tokenizer, what stands before a supervised answer, what closes it
TOKENIZERS = {
    "chatml": (make(CHATML, CHATML_TOKENS, "<|im_end|>"), "", "<|im_end|>"),
    "chatml_tags": (make(CHATML_TAGS, CHATML_TOKENS, "<|im_end|>"), "", "<|im_end|>"),
    "chatml_end_untagged": (make(CHATML_TAGS_WITHOUT_END, CHATML_TOKENS, "<|im_end|>"), "", "<|im_end|>"),
    "chatml_header_tagged": (make(CHATML_TAGS_WITH_HEADER, CHATML_TOKENS, "<|im_end|>"), "", "<|im_end|>"),
    "chatml_not_special": (make(CHATML, (), None, plain=CHATML_TOKENS), "", "<|im_end|>"),
    "llama3": (make(LLAMA3, LLAMA3_TOKENS, "<|eot_id|>", "<|begin_of_text|>"), "", "<|eot_id|>"),
    "zephyr": (make(ZEPHYR, ["<s>", "</s>"], "</s>", "<s>"), "", "</s>"),
    "mistral": (make(MISTRAL, ["<s>", "</s>"], "</s>", "<s>"), " ", "</s>"),
    "default": (make(None, ["</s>"], "</s>"), " ", "</s>"),
}
