"""Exports are there whole and right, or not at all; each format is read back by its engine's rules."""

import json
import shlex

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import mhc.export
from mhc.commands.export import FORMATS as TOLD
from mhc.commands.export import main
from mhc.drafters import Cascade, Diffusion, Eagle3, Medusa
from mhc.errors import UserError
from mhc.export import FORMATS, export
from tests.helpers.exports import assert_every_tensor_counts, checkpoint

MEDUSA = [(1, False), (1, True), (2, False), (2, True)]  # blocks, lm_heads of their own


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt_neox"])
@pytest.mark.parametrize("blocks, own", MEDUSA)
@pytest.mark.parametrize("format", ["tgi-medusa", "vllm-medusa", "hf"])
def test_medusa_comes_back(backbones, tmp_path, format, blocks, own, architecture):
    backbone = backbones(architecture)
    heads = checkpoint(tmp_path, Medusa(backbone, heads=3, blocks=blocks, own_lm_head=own))
    written = export(heads, format, tmp_path / "out", backbone)
    assert written.difference < 1e-6
    assert set(written.files) == {file.name for file in (tmp_path / "out").iterdir()} and "README.md" in written.files
    assert {path.name for path in tmp_path.iterdir()} == {"heads", "out"}
    assert str(tmp_path / "out") in written.command and "exporting" not in written.command


def biased(backbone):
    """The backbone with an lm_head that adds something of its own."""
    from copy import deepcopy

    from mhc.backbone.model import Backbone

    model = deepcopy(backbone.model)
    weight = model.get_output_embeddings().weight
    model.lm_head = nn.Linear(weight.shape[1], weight.shape[0]).requires_grad_(False)
    model.lm_head.weight.copy_(weight)
    return Backbone(model)


@pytest.mark.parametrize(
    "family",
    [Medusa, Cascade, lambda b: Diffusion(b, draft_length=3), lambda b: Eagle3(b, draft_length=2)],
    ids=["medusa", "cascade", "diffusion", "eagle3"],
)
def test_hf_takes_every_family(tiny, tmp_path, family):
    heads = checkpoint(tmp_path, family(tiny))
    written = export(heads, "hf", tmp_path / "out", tiny)
    assert written.difference < 1e-6
    for name in ("drafter.json", "drafter.safetensors"):
        assert (tmp_path / "out" / name).read_bytes() == (heads / name).read_bytes()


def test_hf_names_the_backbone_as_it_was_given(backbones, tmp_path, monkeypatch):
    backbone = backbones("llama")
    monkeypatch.setattr(backbone, "name", "/home/me/model")
    heads = checkpoint(tmp_path, Medusa(backbone))
    monkeypatch.setattr(backbone, "name", "some-lab/model")
    written = export(heads, "hf", tmp_path / "out", backbone)
    assert "/home" not in (tmp_path / "out" / "drafter.json").read_text() + written.command


@pytest.mark.parametrize("format", ["tgi-medusa", "vllm-medusa"])
def test_every_tensor_counts_and_none_is_passed_over(backbones, tmp_path, format):
    backbone = backbones("llama")
    drafter = Medusa(backbone, heads=2, own_lm_head=True)
    assert_every_tensor_counts(backbone, drafter, format, tmp_path, lambda tensor: tensor * 1.1)


@pytest.mark.parametrize(
    "format, change, told",
    [
        ("vllm-medusa", {"medusa_fc_bias": None}, "medusa_fc_bias is None"),
        ("vllm-medusa", {"vocab_size": 62}, "vocab_size is 62"),
        ("vllm-medusa", {"original_lm_head": False}, "lacks lm_heads.1.weight"),
        ("vllm-medusa", {"logit_scale": 2.0}, "logit_scale is 2.0"),
        ("vllm-medusa", {"num_heads": 3}, "lacks blocks.2"),
        ("tgi-medusa", {"architectures": ["MedusaModel"]}, "names architectures"),
        ("tgi-medusa", {"medusa_num_heads": 0}, "medusa_num_heads 0"),
    ],
)
def test_a_config_that_misleads_the_engine_is_an_error(backbones, tmp_path, format, change, told):
    backbone = backbones("llama")
    drafter = Medusa(backbone, heads=2)
    export(checkpoint(tmp_path, drafter), format, tmp_path / "out", backbone)
    config = tmp_path / "out" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(UserError, match=told):
        FORMATS[format].read(tmp_path / "out", backbone)


@pytest.mark.parametrize(
    "format, family, told",
    [
        ("vllm-medusa", Cascade, "do not see each other|see the hidden state alone.*run.py serve"),
        ("tgi-medusa", lambda b: Eagle3(b, draft_length=2), "export eagle3-vllm"),
    ],
)
def test_what_an_engine_cannot_serve_is_refused_with_the_nearest_choice(tiny, tmp_path, format, family, told):
    with pytest.raises(UserError, match=told):
        export(checkpoint(tmp_path, family(tiny)), format, tmp_path / "out", tiny)
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]


def test_logits_that_are_more_than_a_matrix_are_refused(backbones, tmp_path):
    squashed = backbones("gemma2")
    with pytest.raises(UserError, match="scales or caps what its lm_head gives"):
        export(checkpoint(tmp_path / "a", Medusa(squashed)), "vllm-medusa", tmp_path / "out", squashed)
    uneven = biased(backbones("llama"))
    with pytest.raises(UserError, match=r"lm_head has a bias.*own_lm_head: true"):
        export(checkpoint(tmp_path / "b", Medusa(uneven)), "tgi-medusa", tmp_path / "out", uneven)
    own = checkpoint(tmp_path / "c", Medusa(uneven, own_lm_head=True))
    assert export(own, "tgi-medusa", tmp_path / "out", uneven).difference < 1e-6


def test_a_path_that_vllm_takes_for_other_heads_is_refused(backbones, tmp_path):
    heads = checkpoint(tmp_path, Medusa(backbones("llama")))
    with pytest.raises(UserError, match="'eagle-' in it"):
        export(heads, "vllm-medusa", tmp_path / "bald-eagle-heads", backbones("llama"))


def test_nothing_is_there_unless_it_compares(backbones, tmp_path, monkeypatch):
    backbone = backbones("llama")
    heads = checkpoint(tmp_path, Medusa(backbone))

    def forgetful(drafter, folder):
        command = FORMATS["vllm-medusa"].write(drafter, folder)
        tensors = load_file(folder / "model.safetensors")
        save_file(tensors | {"blocks.1.layers.0.bias": torch.zeros(32)}, folder / "model.safetensors")
        return command

    monkeypatch.setitem(mhc.export.FORMATS, "forgetful", FORMATS["vllm-medusa"]._replace(write=forgetful))
    with pytest.raises(UserError, match=r"differs from the heads by .*nothing was written"):
        export(heads, "forgetful", tmp_path / "out", backbone)
    assert [path.name for path in tmp_path.iterdir()] == ["heads"]


def test_what_exists_is_left_alone(backbones, tmp_path):
    heads = checkpoint(tmp_path, Medusa(backbones("llama")))
    for name in ("out", "dangling"):
        place = tmp_path / name
        place.mkdir() if name == "out" else place.symlink_to(tmp_path / "nowhere")
        with pytest.raises(UserError, match="exists and is left alone"):
            export(heads, "hf", place, backbones("llama"))
    with pytest.raises(UserError, match="unknown format 'ggml': choose from tgi-medusa"):
        export(heads, "ggml", tmp_path / "new", backbones("llama"))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write"):
        export(heads, "hf", tmp_path / "file" / "new", backbones("llama"))


def test_the_command_prints_files_comparison_and_how_to_serve(tmp_path, capsys):
    from mhc.backbone.model import Backbone

    pocket = Backbone.load("pocket")
    heads = checkpoint(tmp_path, Medusa(pocket, heads=2))
    out = tmp_path / "some heads"  # with a space, as folders have
    arguments = ["--checkpoint", str(heads), "--format", "vllm-medusa", "--out", str(out), "--dtype", "bfloat16"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed and "largest difference" in printed
    command = shlex.split(printed.strip().splitlines()[-1], comments=True)
    assert command[:2] == ["vllm", "serve"] and "pocket" in command[2]
    assert json.loads(command[4]) == {"method": "medusa", "model": str(out), "num_speculative_tokens": 2}
    assert {tensor.dtype for tensor in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


def test_help_names_the_formats_that_there_are():
    assert set(TOLD) == set(FORMATS)
