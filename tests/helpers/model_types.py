"""A tiny random model of every type that AutoModelForCausalLM builds."""

import copy
import warnings
from contextlib import suppress
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import Sampling
from tests.helpers.backbones import SIZES, VOCABULARY
from tests.helpers.drafters import randomised
from tests.helpers.engines import PROMPTS, TREES, answers, reference

NEW = 12
EXPERTS = dict(
    num_experts=4,
    num_local_experts=4,
    n_routed_experts=4,
    num_experts_per_tok=2,
    moe_topk=2,
    moe_top_k=2,
    moe_k=2,
    moe_num_experts=4,
    moe_intermediate_size=16,
    expert_ffn_hidden_size=16,
    shared_expert_intermediate_size=16,
    n_group=1,
    topk_group=1,
    first_k_dense_replace=1,
    moe_layer_start_index=1,
)
LATENT = dict(  # multi-head latent attention: values narrower than keys
    num_key_value_heads=4,
    kv_lora_rank=8,
    q_lora_rank=16,
    qk_rope_head_dim=4,
    qk_nope_head_dim=8,
    qk_head_dim=12,
    v_head_dim=6,
    head_dim=4,
)
GEMMA3N = dict(
    num_kv_shared_layers=0,
    vocab_size_per_layer_input=VOCABULARY,
    hidden_size_per_layer_input=8,
    laurel_rank=4,
    altup_num_inputs=2,
)
TOKENS = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)  # types that cannot do without
EXTRA: dict[str, dict[str, Any]] = {
    "codegen": dict(rotary_dim=4),
    "dots1": dict(n_shared_experts=1, norm_topk_prob=True, n_routed_experts=4),
    "gemma2": dict(head_dim=8),
    "gemma3_text": dict(head_dim=8),
    "blt": dict(encoder_hash_byte_group_vocab=61),
    "gemma3n_text": GEMMA3N | dict(intermediate_size=[48] * 2, activation_sparsity_pattern=[0.5, 0.0]),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]], attention_layers=["global", "local"], window_size=6),
    "gptj": dict(rotary_dim=4),
    "granite": dict(logits_scaling=8.0),
    "granitemoe": dict(logits_scaling=8.0),
    "helium": dict(head_dim=8),
    "hrm_text": dict(num_layers_per_stack=1, H_cycles=1, L_cycles=1),
    "hunyuan_v1_dense": dict(head_dim=8),
    "hunyuan_v1_moe": dict(head_dim=8),
    "lfm2": dict(layer_types=["conv", "full_attention"]),
    "lfm2_moe": dict(layer_types=["conv", "full_attention"]),
    "ministral": dict(head_dim=8),
    "reformer": dict(is_decoder=True, axial_pos_embds=False),
}
for some, sizes in {
    "axk1 deepseek_v2 deepseek_v3 glm4_moe_lite longcat_flash minicpm3 youtu": LATENT,
    "camembert data2vec-text roberta roberta-prelayernorm xlm-roberta xlm-roberta-xl cwm mllama": TOKENS,
    "emu3 modernbert-decoder": TOKENS | dict(sep_token_id=2, cls_token_id=1),
    "gemma4 gemma4_text": dict(vocab_size_per_layer_input=VOCABULARY, hidden_size_per_layer_input=8),
    "plbart whisper": dict(decoder_attention_heads=4, encoder_attention_heads=4, decoder_layers=2),
    "xmod": TOKENS | dict(default_language="en_XX"),
}.items():
    EXTRA |= {name: sizes for name in some.split()}


def names() -> list[str]:
    """Every model type of AutoModelForCausalLM."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(name: str, **changes: Any) -> PreTrainedConfig:
    """The default config of this model type, cut to a tiny size by whatever of SIZES and EXPERTS it has."""
    config = type(AutoConfig.for_model(name))()
    _cut(config, EXPERTS | SIZES)
    _cut(config, EXTRA.get(name, {}) | changes)
    return config


def _cut(config: PreTrainedConfig, sizes: dict[str, Any]) -> None:
    for part in config.sub_configs or {}:
        if isinstance(getattr(config, part, None), PreTrainedConfig):
            _cut(getattr(config, part), sizes)
    window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
    if "num_hidden_layers" in sizes:
        sizes = sizes | ({"sliding_window": 6} if window else {})
        if types:  # two layers, of two kinds where there are some
            kinds = list(dict.fromkeys(types))
            sizes = {"layer_types": [kinds[0], *[kinds[-1]] * (sizes["num_hidden_layers"] - 1)]} | sizes
    for key, value in sizes.items():
        if hasattr(config, key):
            with suppress(AttributeError, NotImplementedError, StrictDataclassFieldValidationError):  # it has its own
                setattr(config, key, value)


def tiny_model(name: str, **changes: Any) -> PreTrainedModel:
    """A random model of this type, its weights scaled up so that its choices are not ties."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(name, **changes), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def verdict(name: str, **changes: Any) -> tuple[str, str]:
    """What becomes of a model of this type: "works"; "refused" and the reason; "not built", where transformers makes none of
    this size. Raises AssertionError for any other outcome: a model that is accepted and decodes another text."""
    try:
        model = tiny_model(name, **changes)
    except Exception as error:  # whatever a config may raise
        return "not built", f"({type(error).__name__} at a tiny size)"
    kind, whole = model.config.model_type, copy.deepcopy(model)
    with warnings.catch_warnings(), mock.patch("mhc.backbone.model.HELD", frozenset()):
        warnings.simplefilter("ignore")
        try:
            backbone = Backbone.checked(model)
        except UserError as error:
            return "refused", str(error).removeprefix(f"models of type {kind} are not supported: ").split(" (")[0]
        decodes_as(whole, backbone)
    return "works", ""


def decodes_as(model: PreTrainedModel, backbone: Backbone) -> None:
    """Assert that decoding on `backbone` gives what `model`, a copy that this project never touched, gives."""
    ids = torch.tensor([PROMPTS[1]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        ours = backbone.unembed(backbone.features(ids).hidden)
    assert float((ours - logits).abs().max()) <= 1e-4 * max(1.0, float(logits.abs().max()))
    own = [reference(SimpleNamespace(model=model), prompt, NEW) for prompt in PROMPTS]
    plain, heads = Engine(backbone), Engine(backbone, randomised(Cascade(backbone, 4)), TREES["tree"])
    for engine in (plain, heads):
        assert answers(engine, 1, NEW) == own
        assert answers(engine, 3, NEW) == own
    drawn = Sampling(temperature=0.9, top_p=0.9, seed=5)
    assert answers(heads, 3, NEW, sampling=drawn) == answers(plain, 1, NEW, sampling=drawn)
