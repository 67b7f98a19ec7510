"""Fingerprints: another for every change of a model, the same in every process, layout and, as far as can be, precision."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mhc.backbone.weight_layout
import run
from mhc.backbone.fingerprint import fingerprint
from mhc.backbone.loading import POCKET, load_model, load_tokenizer
from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import DESCRIPTION, load_drafter
from mhc.distill.shards import collection_of
from mhc.errors import UserError
from mhc.text.chat_template import template_fingerprint, tokenizer_fingerprint
from mhc.util.files import write_json
from tests.helpers.backbones import tiny_backbone
from tests.helpers.runs import CASCADE, COMMON, ROOT, small, sums

OLD = "feb5b840b75a3e9f"  # the pocket's, as versions until 2 wrote it


def changed(tensor: torch.Tensor) -> None:
    """Change the last value by as little as there is."""
    flat = tensor.view(-1)
    flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))


def test_a_change_of_any_tensor_is_another_model():
    model = tiny_backbone("gpt_neox", tie_word_embeddings=False).model
    model.register_buffer("kept", torch.ones(3))
    prints = {fingerprint(model)}
    tensors = {**dict(model.named_parameters()), "kept": model.kept}
    assert len(tensors) > 25
    for tensor in tensors.values():
        changed(tensor.data)
        prints.add(fingerprint(model))
    assert len(prints) == len(tensors) + 1
    model.register_buffer("computed", torch.ones(3), persistent=False)
    model.config._name_or_path, model.config.architectures = "elsewhere", ["Other"]
    assert fingerprint(model) in prints
    model.config.rope_parameters["rope_theta"] = 10_001.0
    assert fingerprint(model) not in prints


def test_a_row_two_swapped_ones_and_a_small_merged_lora():
    """In weights that bfloat16 holds exactly, where little of such changes would be left."""
    model = load_model("pocket", torch.float32)
    assert fingerprint(model) == fingerprint(model.bfloat16().float())
    weight = model.model.layers[3].mlp.down_proj.weight.data
    embedding = model.get_input_embeddings().weight.data
    prints, before = {fingerprint(model)}, weight.clone()
    weight[7] *= 1.0001
    prints.add(fingerprint(model))
    weight.copy_(before)
    embedding[[5, 2000]] = embedding[[2000, 5]]
    prints.add(fingerprint(model))
    dice = torch.Generator().manual_seed(0)
    up, down = torch.randn(len(weight), 1, generator=dice), torch.randn(1, weight.shape[1], generator=dice)
    weight += 1e-6 * up @ down
    assert (weight.bfloat16() == before.bfloat16()).float().mean() > 0.99
    prints.add(fingerprint(model))
    assert len(prints) == 4


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_layouts_do_not_change_it(monkeypatch, packed, tied):
    if packed and not torch.backends.mkldnn.is_available():
        pytest.skip("torch without oneDNN")
    monkeypatch.setattr(mhc.backbone.weight_layout, "packs", lambda: packed)
    backbone = tiny_backbone("qwen2", tie_word_embeddings=tied)
    before = fingerprint(backbone.model)
    backbone.lay_out()
    assert fingerprint(backbone.model) == before == backbone.fingerprint()
    mhc.backbone.weight_layout.unpack(backbone.model)
    assert fingerprint(backbone.model) == before


def test_precisions(tmp_path):
    """A model that was stored in bfloat16 keeps its fingerprint in float32; of one stored in float32 it is known that the same
    one may be held in fewer bits, but not the other way round in one precision."""
    stored = {dtype: Backbone.load("pocket", dtype) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    full, brief, half = stored.values()
    assert full.fingerprint() == brief.fingerprint() != half.fingerprint()
    assert half.is_model(full.fingerprint(), "float32") and full.is_model(half.fingerprint(), "float16")
    model = load_model("pocket", torch.float32)
    model.model.layers[0].self_attn.q_proj.weight.data *= 1 + 2**-12
    model.save_pretrained(tmp_path)
    load_tokenizer("pocket").save_pretrained(tmp_path)
    tuned, cut = (Backbone.load(str(tmp_path), dtype) for dtype in (torch.float32, torch.bfloat16))
    assert cut.is_model(tuned.fingerprint(), "float32") and tuned.is_model(cut.fingerprint(), "bfloat16")
    assert not cut.is_model(tuned.fingerprint()) and not tuned.is_model(full.fingerprint(), "float32")
    assert not brief.is_model(half.fingerprint()) and not full.is_model(OLD[::-1])


def test_it_is_cheap():
    model = load_model("pocket", torch.float32)
    fingerprint(model)
    started = time.process_time()
    fingerprint(model)
    assert time.process_time() - started < 0.5  # 8.6 M parameters: some 0.05


PRINT = """
from mhc.backbone.model import Backbone
from mhc.text.chat_template import template_fingerprint, tokenizer_fingerprint
backbone = Backbone.load("pocket")
backbone.tokenizer(["some words", "more"], padding=True, truncation=True, max_length=3)
print(backbone.fingerprint(), template_fingerprint(backbone.tokenizer), tokenizer_fingerprint(backbone.tokenizer))
"""


def test_every_process_says_the_same():
    told = []
    for seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", PRINT]
        told.append(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    backbone = Backbone.load("pocket")
    prints = backbone.fingerprint(), template_fingerprint(backbone.tokenizer), tokenizer_fingerprint(backbone.tokenizer)
    assert told == [" ".join(prints) + "\n"] * 2


def test_control_tokens_of_one_length_have_an_order():
    """In a set they have none, and this one has many."""
    prints = set()
    for names in (["<|b|>", "<|a|>", "<|c|>"], ["<|c|>", "<|b|>", "<|a|>"]):
        tokenizer = AutoTokenizer.from_pretrained(POCKET)
        tokenizer.add_special_tokens({"additional_special_tokens": names})
        prints.add(template_fingerprint(tokenizer))
    assert len(prints) == 1


def test_a_tokenizer_is_more_than_its_vocabulary():
    tokenizer, other = (AutoTokenizer.from_pretrained(POCKET) for _ in range(2))
    state = json.loads(other.backend_tokenizer.to_str())
    state["model"]["merges"].reverse()
    other._tokenizer = type(other.backend_tokenizer).from_str(json.dumps(state))
    assert other.get_vocab() == tokenizer.get_vocab()
    assert tokenizer_fingerprint(other) != tokenizer_fingerprint(tokenizer)


# ---- where fingerprints are compared


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """The pocket with one tensor of another value, by less than bfloat16 sees: not one that earlier versions looked at."""
    folder = tmp_path_factory.mktemp("tuned")
    model = AutoModelForCausalLM.from_pretrained(POCKET, dtype=torch.float32)
    model.model.layers[2].self_attn.v_proj.weight.data *= 1 + 2**-12
    model.save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
    return str(folder)


def test_heads_of_another_fine_tune(heads, tuned, tmp_path):
    assert load_drafter(heads)[0].backbone.is_model(OLD)
    with pytest.raises(UserError, match="belongs to backbone 'pocket'"):
        load_drafter(heads, tuned)
    copy = shutil.copytree(heads, tmp_path / "heads")
    description = json.loads((copy / DESCRIPTION).read_text())
    del description["dtype"]
    (copy / DESCRIPTION).write_text(json.dumps(description | {"fingerprint": OLD}))
    load_drafter(copy)  # heads that an earlier version trained
    (copy / DESCRIPTION).write_text(json.dumps(description | {"fingerprint": OLD[::-1]}))
    with pytest.raises(UserError, match="belongs to backbone 'pocket'"):
        load_drafter(copy)


@pytest.mark.slow
def test_features_of_another_fine_tune(tuned, tmp_path, capsys):
    out, data = tmp_path / "features", sums(tmp_path)
    collect = ["collect", "--data", str(data), "--out", str(out), "--store", "float32"]
    assert run.main(collect) == 0
    assert run.main([*collect, "--backbone", tuned]) == 2
    assert "was made with other settings (backbone: pocket, not" in capsys.readouterr().err
    fit = [
        "fit",
        *COMMON,
        *CASCADE,
        "--config",
        str(ROOT / "configs/data/features.yaml"),
        *small(tmp_path / "run", out),
    ]
    assert run.main([*fit, "--model.backbone", tuned]) == 2
    assert "was collected from backbone 'pocket'" in capsys.readouterr().err
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["settings"] |= {"fingerprint": OLD}
    del manifest["settings"]["tokenizer"]
    of_old = {"collection": collection_of(manifest["settings"])}
    write_json(out / "manifest.json", manifest | of_old)
    for path in out.glob("*-0*.json"):
        write_json(path, json.loads(path.read_text()) | of_old)
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert run.main(collect) == 0  # nothing of what an earlier version collected is made again
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*.safetensors")}
    assert run.main(fit) == 0


@pytest.mark.slow
def test_answers_of_another_fine_tune(tuned, tmp_path, capsys):
    """Under one name, where the name tells nothing."""
    model, out = tmp_path / "model", tmp_path / "answers.jsonl"
    distill = ["distill", "--data", str(sums(tmp_path)), "--out", str(out), "--limit", "2", "--max_new_tokens", "4"]
    distill += ["--backbone", str(model)]
    shutil.copytree(POCKET, model)
    assert run.main(distill) == 0
    first, manifest = out.read_text(), json.loads((tmp_path / "answers.manifest.json").read_text())
    shutil.rmtree(model)
    shutil.copytree(tuned, model)
    assert run.main(distill) == 2
    assert "was made with other settings (fingerprint: " in capsys.readouterr().err
    shutil.rmtree(model)
    shutil.copytree(POCKET, model)
    del manifest["settings"]["tokenizer"]
    manifest["settings"]["fingerprint"] = OLD
    (tmp_path / "answers.manifest.json").write_text(json.dumps(manifest))
    assert run.main(distill) == 0 and out.read_text() == first  # answers that an earlier version distilled
    assert json.loads((tmp_path / "answers.manifest.json").read_text())["settings"] == manifest["settings"]
