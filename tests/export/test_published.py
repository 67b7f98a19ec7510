"""Published heads become ours: the same logits, whatever their names, and nothing executed."""

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from mhc.checkpoints.heads_folder import load_drafter, save_drafter
from mhc.commands.import_ import main
from mhc.drafters import Medusa
from mhc.errors import UserError
from mhc.export import export
from mhc.export.heads import heads_difference
from mhc.export.published import read_published
from mhc.trees.shapes import FixedTree


def medusa(backbone, heads: int = 3, blocks: int = 1, own: bool = True) -> Medusa:
    dice = torch.Generator().manual_seed(3)
    drafter = Medusa(backbone, heads=heads, blocks=blocks, own_lm_head=own).eval()
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=dice))
    return drafter


def published(folder, drafter: Medusa, suffix: str = ".pt", prefix: str = "", **config):
    """`drafter` as FasterDecoding's training leaves it: a Sequential of ResBlocks and a linear layer a head."""
    tensors = {}
    for head, stack in enumerate(drafter.stacks):
        for block, residual in enumerate(stack):
            tensors[f"{prefix}{head}.{block}.linear.weight"] = residual.linear.weight.detach().clone()
            tensors[f"{prefix}{head}.{block}.linear.bias"] = residual.linear.bias.detach().clone()
        tensors[f"{prefix}{head}.{len(stack)}.weight"] = drafter.unembeddings.weight(head).detach().clone()
    folder.mkdir(exist_ok=True)
    write = torch.save if suffix == ".pt" else save_file
    write(tensors, folder / f"medusa_lm_head{suffix}")
    described = {"medusa_num_heads": drafter.draft_length, "medusa_num_layers": len(drafter.stacks[0])}
    described |= {"base_model_name_or_path": "lmsys/vicuna-7b-v1.3", "transformers_version": "4.31.0"} | config
    (folder / "config.json").write_text(json.dumps(described))
    return folder


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "medusa_head."])
@pytest.mark.parametrize("blocks, own", [(1, True), (2, True), (1, False)])
def test_published_heads_say_the_same(backbones, tmp_path, suffix, prefix, blocks, own):
    backbone = backbones("llama")
    theirs = medusa(backbone, blocks=blocks, own=own)
    ours = read_published(published(tmp_path, theirs, suffix, prefix), backbone)
    assert ours.arguments == {"heads": 3, "own_lm_head": own, "blocks": blocks}
    assert heads_difference(theirs, ours) < 1e-6


@pytest.mark.parametrize("format", ["tgi-medusa", "vllm-medusa"])
@pytest.mark.parametrize("own", [True, False])
def test_an_export_comes_back(backbones, tmp_path, format, own):
    backbone = backbones("llama")
    drafter = medusa(backbone, own=own)
    save_drafter(tmp_path / "heads", drafter, FixedTree.chain(3))
    export(tmp_path / "heads", format, tmp_path / "out", backbone)
    ours = read_published(tmp_path / "out", backbone)
    assert ours.arguments["own_lm_head"] == own and heads_difference(drafter, ours) < 1e-6


def test_the_tensors_count_the_heads(backbones, tmp_path):
    """config.json of the published Vicuna heads says 2 and the file has 5."""
    ours = read_published(published(tmp_path, medusa(backbones("llama")), medusa_num_heads=2), backbones("llama"))
    assert ours.draft_length == 3


def test_half_precision_lm_heads_that_are_the_backbones_are_not_kept_twice(backbones, tmp_path):
    backbone = backbones("llama")
    folder = published(tmp_path, medusa(backbone, own=False), ".safetensors")
    path = folder / "medusa_lm_head.safetensors"
    tensors = load_file(path)
    tensors["2.1.weight"][5, 7] += 0.5
    save_file(tensors, path)
    assert read_published(folder, backbone).arguments["own_lm_head"], "one that differs makes all of them their own"


class Executed:
    def __reduce__(self):
        return exec, ("raise SystemExit('executed')",)


@pytest.mark.parametrize(
    "content, told",
    [
        (
            pickle.dumps({"0.0.linear.weight": Executed()}, protocol=4),
            "holds more than tensors, and nothing in it is executed",
        ),
        (b"", "cannot read|holds more than tensors"),
        (b"PK\x03\x04 cut off", "cannot read|holds more than tensors"),
    ],
)
def test_a_file_that_is_no_tensors_is_refused(backbones, tmp_path, content, told):
    folder = published(tmp_path, medusa(backbones("llama")))
    (folder / "medusa_lm_head.pt").write_bytes(content)
    with pytest.raises(UserError, match=told):
        read_published(folder, backbones("llama"))


def test_a_torch_file_of_something_else_is_refused(backbones, tmp_path):
    folder = published(tmp_path, medusa(backbones("llama")))
    torch.save([1, 2], folder / "medusa_lm_head.pt")
    with pytest.raises(UserError, match="no dictionary of tensors"):
        read_published(folder, backbones("llama"))


@pytest.mark.parametrize(
    "drop, add, told",
    [
        ("0.0.linear.bias", None, r"lacks stacks.0.0.linear.bias"),
        ("1.1.weight", None, r"lacks unembeddings.own.1"),
        (None, "optimizer.step", "has optimizer.step, which is not a tensor of Medusa heads"),
        (None, "0.5.bias", "has 0.5.bias"),
        (None, "1.7.weight", "has 1.(1|7).weight"),
    ],
)
def test_a_missing_or_unknown_tensor_is_an_error(backbones, tmp_path, drop, add, told):
    folder = published(tmp_path, medusa(backbones("llama")), ".safetensors")
    path = folder / "medusa_lm_head.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if name != drop}
    save_file(tensors | ({add: torch.zeros(3)} if add else {}), path)
    with pytest.raises(UserError, match=told):
        read_published(folder, backbones("llama"))


def test_heads_of_another_model_or_kind_are_refused(backbones, tmp_path):
    folder = published(tmp_path / "wide", medusa(backbones("llama")), medusa_num_layers=4)
    with pytest.raises(UserError, match="says 4 blocks a head, the tensors have 1"):
        read_published(folder, backbones("llama"))
    other = type("Wider", (), {"width": 16, "vocabulary_size": 61, "name": "wider"})()
    with pytest.raises(UserError, match=r"for backbone 'wider': .* is \(32, 32\), the config wants \(16, 16\)"):
        read_published(published(tmp_path / "narrow", medusa(backbones("llama"))), other)
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UserError, match=r"neither of Medusa heads .* nor of EAGLE-3"):
        read_published(folder, backbones("llama"))


def test_eagle_heads_are_known_by_their_config(backbones, tmp_path, monkeypatch):
    monkeypatch.setattr("mhc.export.published.import_eagle3", lambda folder, backbone: (folder, backbone))
    for config in ({"architectures": ["LlamaForCausalLMEagle3"]}, {"speculators_model_type": "eagle3"}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert read_published(tmp_path, backbones("llama")) == (tmp_path, backbones("llama"))


def test_the_command_leaves_heads_that_every_command_takes(tmp_path, capsys):
    from mhc.backbone.model import Backbone

    pocket = Backbone.load("pocket")
    theirs = medusa(pocket, heads=2)
    published(tmp_path / "theirs", theirs)
    arguments = [str(tmp_path / "theirs"), "--backbone", "pocket", "--out", str(tmp_path / "ours")]
    assert main(arguments) == 0
    assert "run.py tune" in capsys.readouterr().out
    drafter, tree = load_drafter(tmp_path / "ours")
    assert heads_difference(theirs, drafter) < 1e-6 and tree.nodes == 3
    with pytest.raises(UserError, match="exists and is left alone"):
        main(arguments)
    with pytest.raises(UserError, match="no folder"):
        main([str(tmp_path / "nowhere"), *arguments[1:-1], str(tmp_path / "new")])
