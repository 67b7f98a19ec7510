"""Cascades for vLLM come back logit by logit, and what the plugin cannot run is refused."""

import json
import shlex

import pytest

from mhc.drafters import Cascade, Medusa
from mhc.errors import UserError
from mhc.export import FORMATS, export
from tests.helpers.exports import assert_every_tensor_counts, checkpoint


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"condition_first": False},
        {"own_lm_head": True, "blocks": 2},
        {"tied": True},
        {"tied": True, "own_lm_head": True},
    ],
    ids=str,
)
def test_a_cascade_comes_back(backbones, tmp_path, arguments, architecture):
    backbone = backbones(architecture)
    heads = checkpoint(tmp_path, Cascade(backbone, heads=3, **arguments))
    written = export(heads, "vllm-cascade", tmp_path / "out", backbone)
    assert written.difference < 3e-6
    settings = json.loads(shlex.split(written.command, comments=True)[-1])
    assert settings == {"method": "medusa", "model": str(tmp_path / "out"), "num_speculative_tokens": 3}
    if arguments == {"tied": True}:
        written = export(heads, "vllm-tied-cascade", tmp_path / "tied", backbone)
        assert written.difference < 3e-6 and '"method": "eagle"' in written.command


@pytest.mark.parametrize("format", ["vllm-cascade", "vllm-tied-cascade"])
def test_every_tensor_counts_and_none_is_passed_over(backbones, tmp_path, format):
    backbone = backbones("llama")
    drafter = Cascade(backbone, heads=2, tied=format == "vllm-tied-cascade")
    assert_every_tensor_counts(backbone, drafter, format, tmp_path, lambda tensor: tensor.flip(0))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"architectures": ["MedusaModel"]}, "architectures is"),
        ({"vocab_size": 62}, "vocab_size is 62"),
        ({"num_heads": 3}, "num_heads is 3"),
        ({"cascade": None}, "nothing under 'cascade'"),
        ({"cascade": {"heads": 0}}, "cascade.heads is 0"),
        ({"cascade": {"heads": 2, "blocks": 1, "condition_first": 1}}, "cascade.condition_first is 1"),
    ],
)
def test_a_config_that_misleads_the_plugin_is_an_error(backbones, tmp_path, change, told):
    backbone = backbones("llama")
    export(checkpoint(tmp_path, Cascade(backbone, heads=2)), "vllm-cascade", tmp_path / "out", backbone)
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=told):
        FORMATS["vllm-cascade"].read(tmp_path / "out", backbone)


@pytest.mark.parametrize(
    "format, family, told",
    [
        ("vllm-cascade", Medusa, "Medusa heads: export vllm-medusa"),
        (
            "vllm-cascade",
            lambda b: Cascade(b, cell="speculator"),
            "run.py serve.*or train with cell: residual",
        ),
        ("vllm-cascade", lambda b: Cascade(b, cell="low_rank"), "run.py serve.*or train with cell: residual"),
        ("vllm-tied-cascade", Cascade, "heads of their own: export vllm-cascade, or train with tied: true"),
        ("vllm-tied-cascade", lambda b: Cascade(b, tied=True, own_lm_head=True), "lm_heads of their own"),
    ],
)
def test_what_the_plugin_cannot_run_is_refused_with_the_nearest_choice(backbones, tmp_path, format, family, told):
    backbone = backbones("llama")
    with pytest.raises(UserError, match=told):
        export(checkpoint(tmp_path, family(backbone)), format, tmp_path / "out", backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]


def test_a_path_that_vllm_takes_for_other_heads_is_refused(backbones, tmp_path):
    heads = checkpoint(tmp_path, Cascade(backbones("llama")))
    with pytest.raises(UserError, match="'eagle3' in it"):
        export(heads, "vllm-cascade", tmp_path / "eagle3-like", backbones("llama"))
