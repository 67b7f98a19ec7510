"""Every causal model type of transformers: the text is the model's own, or one line says why it is refused."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Eagle3, Medusa
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.training.losses import Teacher, chunked_loss
from tests.helpers.drafters import randomised
from tests.helpers.engines import TREES
from tests.helpers.model_types import NEW, names, tiny_model, verdict

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
WRITTEN = dict(re.findall(r"^\| (\S+) \| ([a-z ]+) \|", PAGE, re.MULTILINE))
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [2.0, 3.0, 4.0, 5.0],
    "original_max_position_embeddings": 32,
    "factor": 4.0,
}
VARIANTS = {
    "falcon with ALiBi": ("falcon", {"alibi": True}, "refused"),
    "OPT whose embeddings are narrower": ("opt", {"word_embed_proj_dim": 16, "do_layer_norm_before": False}, "works"),
    "Phi-3 with LongRoPE": (
        "phi3",
        {"rope_parameters": LONGROPE | {"partial_rotary_factor": 1.0}, "original_max_position_embeddings": 32},
        "works",
    ),
    "Llama with LongRoPE, as MiniCPM4's": ("llama", {"rope_parameters": LONGROPE, "head_dim": 8}, "works"),
    "Llama with dynamic RoPE": (
        "llama",
        {
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0},
            "max_position_embeddings": 32,
        },
        "works",
    ),
    "GPT-BigCode with a key for every head": ("gpt_bigcode", {"multi_query": False}, "works"),
    "GPT-NeoX without parallel layers": ("gpt_neox", {"use_parallel_residual": False}, "works"),
    "BERT that sees the past alone": ("bert", {"is_decoder": True}, "works"),
    "GPT-Neo without local layers": ("gpt_neo", {"attention_layers": ["global", "global"]}, "works"),
}


def test_the_page_names_every_type():
    assert sorted(WRITTEN) == names() and len(names()) >= 75
    assert list(WRITTEN.values()).count("works") >= 75


@pytest.mark.parametrize("name", names())
def test_a_type_is_exact_or_refused(name):
    """`verdict` asserts logits, greedy and drawn text, alone, in a ragged batch and with a branching tree."""
    assert verdict(name)[0] == WRITTEN[name]


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_is_exact_or_refused(variant):
    name, changes, outcome = VARIANTS[variant]
    assert verdict(name, **changes)[0] == outcome


def biased(name: str) -> Backbone:
    model = tiny_model(name)
    with torch.no_grad():
        model.get_output_embeddings().bias.normal_(std=2.0)
    return Backbone(model)


@pytest.mark.parametrize("name", ["granite", "cohere", "gemma2", "minicpm3", "phi", "gptj", "nanochat"])
def test_losses_are_of_the_models_own_distribution(name):
    """Heads that do nothing predict what the backbone does, so their loss and the teacher's are the model's own."""
    backbone = biased(name) if name in ("phi", "gptj") else Backbone(tiny_model(name))
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        logits = backbone.model(input_ids=ids, use_cache=False).logits[0].float()
    hidden, labels = backbone.features(ids).hidden[0], torch.arange(20) % 7
    medusa = Medusa(backbone, 2)
    loss = chunked_loss(hidden, medusa.unembedding(0), labels, finish=medusa.finisher).loss
    expected = -log_softmax(logits, dim=-1)[torch.arange(20), labels].mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    teacher = Teacher(hidden, backbone.unembedding, finish=backbone.finisher)
    same = chunked_loss(hidden, medusa.unembedding(0), labels, "kl", teacher=teacher, finish=medusa.finisher)
    assert float(same.loss) == pytest.approx(0, abs=1e-4) and bool((same.overlap > 0.9999).all())
    assert torch.allclose(medusa.unembed(0, hidden).float(), logits, atol=1e-4 * float(logits.abs().max()))


def test_a_row_is_the_same_whatever_stands_beside_it_and_ends_where_that_ceases():
    """LongRoPE: its context is the length within which factors never change; longer training rows are refused by name."""
    name, changes, _ = VARIANTS["Phi-3 with LongRoPE"]
    backbone = Backbone.checked(tiny_model(name, **changes))
    assert backbone.context == 32 and "end at 32 tokens" in backbone.limit_said
    engine = Engine(backbone, randomised(Cascade(backbone, 4)), TREES["tree"])
    short, long = [5, 9, 3], list(range(1, 28))
    alone = engine.generate(short, 20).token_ids
    beside = dict(engine.generate_ids([short, long], 20, 2))
    assert beside[0].token_ids == alone and len(alone) == 20
    assert len(beside[1].token_ids) == 32 - len(long)
    with pytest.raises(UserError, match=r"a row of 33 tokens.*--data\.max_length"):
        backbone.features(torch.ones(1, 33, dtype=torch.long))


@pytest.mark.parametrize("name", ["deepseek_v3", "gemma4_text", "opt"])
def test_eagle3_on_backbones_of_uncommon_shapes(name):
    """Keys and values of two widths, layers of several head widths, an lm_head narrower than the layers."""
    changes = {
        "deepseek_v3": {},
        "gemma4_text": {"layer_types": ["sliding_attention", "full_attention"] * 2},
        "opt": {"word_embed_proj_dim": 16, "do_layer_norm_before": False},
    }[name]
    backbone = Backbone.checked(tiny_model(name, num_hidden_layers=4, **changes))
    heads = randomised(Eagle3(backbone, 4))
    prompt = [5, 9, 3, 8, 4, 4]
    plain = Engine(backbone).generate(prompt, NEW).token_ids
    assert Engine(backbone, heads, TREES["tree"]).generate(prompt, NEW).token_ids == plain


def test_layers_that_hand_on_several_states_have_no_taps():
    changes = {"intermediate_size": [48] * 4, "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0]}
    backbone = Backbone.checked(tiny_model("gemma3n_text", num_hidden_layers=4, **changes))
    heads = Eagle3(backbone, 4)  # its intermediate_size is a list, one a layer
    with pytest.raises(UserError, match="gemma3n_text hand on several states"):
        Engine(backbone, heads, TREES["tree"]).generate([5, 9, 3], NEW)


def test_end_tokens_are_a_list():
    model = tiny_model("glm4", eos_token_id=[2, 7])
    assert Engine(Backbone.checked(model)).end_ids == {2, 7}


def test_a_window_that_counts_slots_is_found_at_any_size():
    """The tests hold no such type, and its window is far longer than the probe's prompts: the small copy shows it."""
    model = tiny_model("moshi", sliding_window=3000)
    with pytest.raises(UserError, match="models of type moshi are not supported"):
        Backbone.checked(model)
