"""configs/lm/models: stock architectures with the published numbers of parameters, which reload, generate and take heads."""

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoModelForCausalLM

from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Medusa
from mhc.engine import Engine
from mhc.trees.shapes import DynamicTree, FixedTree
from tests.helpers.drafters import randomised
from tests.helpers.engines import NEW, PROMPTS, answers, reference
from tests.helpers.language_models import FILES, shrunk, sizes_of

PARAMETERS = {
    "dense-5m": 4_951_296,
    "dense-26m": 25_829_888,
    "dense-104m": 104_030_976,
    "qwen3-64m": 63_912_192,
    "moe-145m": 145_029_760,
    "moe-198m": 198_416_640,
}
CORRECTION = {"moe-145m": 8 * 4}  # ERNIE's bias of each of 4 experts in 8 layers
ACTIVE = {"moe-145m": 91_945_600, "moe-198m": 63_936_768}


def yarn() -> dict:
    """What dense-26m.yaml offers in a comment."""
    (line,) = (line for line in FILES["dense-26m"].read_text().splitlines() if "# rope_parameters:" in line)
    return yaml.safe_load(line.replace("#", "", 1))


@pytest.mark.parametrize("name", FILES)
def test_parameters_are_the_published_ones(name):
    """Whole, on the meta device; a token meets 2 of 4 experts and the shared one in moe-145m, 1 of 4 in moe-198m."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**sizes_of(name)))
    counts = {part: parameter.numel() for part, parameter in model.named_parameters()}
    correction = sum(count for part, count in counts.items() if part.endswith("e_score_correction_bias"))
    assert correction == CORRECTION.get(name, 0)
    total = sum(counts.values()) - correction
    assert total == PARAMETERS[name]
    told = FILES[name].read_text().split("\nmodel:")[0]
    assert f"{total:,} parameters" in told
    if name in ACTIVE:
        config = model.config
        routed = sum(count for part, count in counts.items() if ".mlp.experts." in part)
        active = total - routed + routed * config.num_experts_per_tok // config.num_experts
        assert active == ACTIVE[name] and f"{active:,} are active" in told


@pytest.mark.parametrize("name", FILES)
def test_what_the_sizes_say_holds(name):
    """Grouped keys and values, tied embeddings, RoPE's base."""
    sizes = sizes_of(name)
    config = AutoConfig.for_model(**sizes)
    assert config.num_key_value_heads < config.num_attention_heads and config.tie_word_embeddings
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1e6}
    unknown = [key for key, value in sizes.items() if key != "rope_theta" and getattr(config, key) != value]
    assert not unknown


@pytest.mark.parametrize("name", FILES)
def test_reloaded_by_transformers_it_says_the_same(name, tmp_path):
    model = shrunk(name)
    expected = [reference(Backbone(model), prompt) for prompt in PROMPTS]
    assert len({token for text in expected for token in text}) > 12
    model.save_pretrained(tmp_path)
    again = Backbone(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    assert [reference(again, prompt) for prompt in PROMPTS] == expected


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("family", [Cascade, Medusa])
@pytest.mark.parametrize("name", FILES)
def test_it_takes_heads_and_its_text_stays(name, family, batch_size):
    model = shrunk(name)
    expected = [reference(Backbone(model), prompt) for prompt in PROMPTS]
    backbone = Backbone(model)
    for tree in (FixedTree([[0], [1], [0, 0], [0, 1], [0, 0, 0]]), DynamicTree(width=3, depth=4, budget=14)):
        engine = Engine(backbone, randomised(family(backbone, 4)), tree)
        assert answers(engine, batch_size) == expected


@pytest.mark.parametrize("name", ["dense-26m", "qwen3-64m", "moe-145m"])
def test_yarn_reaches_beyond_the_length_trained_for(name, tmp_path):
    """By the comment's line, with a length small enough to pass: it generates, reloads, and heads change nothing."""
    scaled = yarn()
    scaled["rope_parameters"] |= {"original_max_position_embeddings": 8, "factor": 4.0}
    sizes = {**scaled, "rope_theta": None, "max_position_embeddings": 64}
    model = shrunk(name, **sizes)
    assert model.config.rope_parameters["rope_type"] == "yarn" and model.config.rope_parameters["rope_theta"] == 1e6
    expected = [reference(Backbone(model), prompt) for prompt in PROMPTS]
    plain = shrunk(name, max_position_embeddings=64)
    assert expected != [reference(Backbone(plain), prompt) for prompt in PROMPTS]
    model.save_pretrained(tmp_path)
    again = Backbone(AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32))
    engine = Engine(again, randomised(Cascade(again, heads=4)), FixedTree.chain(4))
    assert answers(engine, 1) == expected and all(len(text) == NEW for text in expected)
