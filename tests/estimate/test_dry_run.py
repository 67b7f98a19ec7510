"""The dry run: what is rehearsed without contents is what is really held, and what it says of a run is one clear
line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from jsonargparse import Namespace
from transformers import AutoConfig

import run
from mhc.backbone.loading import load_config, load_tokenizer
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade, Diffusion, Eagle3, Medusa
from mhc.estimate.fake_step import AllocationTracker, StepEstimate, has_experts
from mhc.estimate.heads import estimate_heads, run_heads
from mhc.estimate.memory import Decoding, Setting, Sharding, cache_bytes, memory, sharding
from mhc.training.draft_module import DraftModule
from tests.helpers.backbones import ARCHITECTURES, tiny_backbone
from tests.helpers.runs import CASCADE, COMMON, ROOT, small

GIB = 2**30
BACKBONES = sorted((ROOT / "tests/backbones").glob("*.json"))  # sizes of the published config.json files
PUBLISHED = {  # parameters, by the model cards' safetensors headers; MiniCPM4's is "8B"
    "vicuna-7b": 6_738_415_616,
    "llama-3.1-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "qwen3-8b": 8_190_735_360,
}
BF16 = {"dtype": torch.bfloat16, "autocast": torch.bfloat16}


def published(name: str):
    values = json.loads((ROOT / f"tests/backbones/{name}.json").read_text())
    return AutoConfig.for_model(values.pop("model_type"), **values)


def setting(rows: int, length: int, **changes) -> Setting:
    chosen = {
        "dtype": torch.float32,
        "autocast": None,
        "heads_dtype": torch.float32,
        "quantize": None,
        "on_gpu": False,
    }
    return Setting(rows, length, **(chosen | changes), anchors=rows * length)


def estimate(config, build, rows: int, length: int, anchors: int, objective: str = "ce", **dtypes) -> StepEstimate:
    """A step of heads on a backbone of this config, of which nothing is loaded."""
    module = DraftModule(build, "pocket", objective=objective, sharded=True)
    return estimate_heads(module, config, rows, length, anchors, **dtypes)


# ---- what is counted


def test_held_counts_what_lives():
    weight = torch.zeros(1000, requires_grad=True)
    with AllocationTracker([weight]) as held:
        loss = weight.exp().exp().sum()  # both kept for the backward
        assert held.now == 8004
        loss.backward()
        del loss
        assert (held.now, held.peak >= 8004) == (4000, True)  # the gradient
    assert weight.grad is not None


@pytest.mark.parametrize("family", [Medusa, Cascade, Diffusion, Eagle3])
def test_a_fake_step_counts_what_a_real_one_holds(family, monkeypatch):
    """The same step on real tensors of a tiny model: parameters equal, bytes alike (a few fused operations come
    apart)."""
    backbone = tiny_backbone("llama", hidden_size=64, num_attention_heads=4, head_dim=16)
    objective = "kl" if family is Eagle3 else "ce"
    expected = estimate(backbone.model.config, lambda b: family(b, 3), 4, 48, 150, objective)
    monkeypatch.setattr(Backbone, "load", classmethod(lambda cls, name, **_: backbone))
    real = run_heads(DraftModule(lambda b: family(b, 3), objective=objective), 4, 48, 150)
    assert (real.trained, real.frozen.total) == (expected.trained, backbone.parameter_count)
    assert real.forward_bytes == pytest.approx(expected.forward_bytes, rel=0.2)
    assert real.step_bytes == pytest.approx(expected.step_bytes, rel=0.2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_estimated(name):
    """In fp32; a forward computes at least two operations a position for each weight that it meets."""
    config = AutoConfig.for_model(name, **ARCHITECTURES[name])
    found = estimate(config, lambda b: Medusa(b, heads=2), 2, 40, 60)
    layers = found.frozen.parts["layers"]
    least = layers / 2 if has_experts(config) else 0.95 * layers  # half of the experts at a position
    assert 2 * least * 80 < found.forward_operations < 1.4 * 2 * layers * 80
    assert found.forward_bytes > 2 * 40 * config.hidden_size * 4


def test_the_frozen_forward_keeps_its_features_alone(backbones):
    """No graph, and of the tapped layers just these."""
    backbone, ids = backbones("llama"), torch.zeros(3, 50, dtype=torch.long)
    for taps in ((), (1,), (0, 1)):
        with AllocationTracker([*backbone.parameters(), *backbone.buffers(), ids]) as held:
            features = backbone.features(ids, taps)
            assert held.now == (1 + len(taps)) * 3 * 50 * backbone.width * 4
        assert not features.hidden.requires_grad


MEASURED = """
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade
from mhc.training.draft_module import DraftModule
torch.set_num_threads(1)
module = DraftModule(lambda b: Cascade(b, heads=5), "pocket")
def held():  # ru_maxrss would begin with what the process held that started this one
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = held()
model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **{sizes}), dtype=torch.float32)
module.backbone = Backbone(model)
module.drafter = Cascade(module.backbone, heads=5)
optimizer = torch.optim.AdamW(module.drafter.parameters())
ids = torch.randint(0, 8000, (1, 256))
for _ in range(2):
    loss, _ = module.losses(ids, torch.ones_like(ids, dtype=torch.bool))
    optimizer.zero_grad(); loss.backward(); optimizer.step()
print(before, held())
"""


def test_the_estimate_is_near_what_a_process_really_holds():
    """A Llama of 83 M parameters and 5 MHC heads, two whole steps in a process of their own: within a third."""
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 12}
    sizes |= {"num_key_value_heads": 12, "vocab_size": 8000}
    code = MEASURED.replace("{sizes}", repr(sizes))
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    before, held = map(int, told.stdout.split()[-2:])
    config = AutoConfig.for_model("llama", **sizes)
    found = estimate(config, lambda b: Cascade(b, heads=5), 1, 256, 254)
    standing, turns = memory(found, setting(1, 256), Sharding("single"), config, None, before)
    assert 0.75 < (sum(standing.values()) + max(turns.values())) / held < 1.33


# ---- published models


@pytest.mark.parametrize("path", BACKBONES, ids=lambda path: path.stem)
def test_models_of_8b_fit_24_gb_in_8_bits(path):
    """As configs/trainer/one-24gb.yaml sets it, and as configs/backbone tells: rows of 2,048 tokens, prompts of 512."""
    config = published(path.stem)
    found = estimate(config, lambda b: Cascade(b, heads=5), 1, 2048, 1536, "ce", **BF16)
    if path.stem in PUBLISHED:
        assert found.frozen.total == PUBLISHED[path.stem]
    chosen = setting(1, 2048, **BF16, quantize="int8", on_gpu=True)
    standing, turns = memory(found, chosen, Sharding("single"), config, Decoding(16, 512 + 64, 8192), GIB)
    needed = sum(standing.values()) + max(turns.values())
    assert needed < 24e9 and standing["backbone's weights"] < 0.62 * 2 * found.frozen.total
    told = (ROOT / f"configs/backbone/{path.stem}.yaml").read_text()
    (row,) = (line for line in told.splitlines() if "MHC (cascade)" in line)
    assert float(row.split()[5]) == pytest.approx(needed / GIB, abs=0.1)


def test_eagle3_fits_24_gb_with_checkpointing():
    config = published("llama-3.1-8b")
    needed = []
    for checkpointing in (False, True):

        def build(backbone, checkpointing=checkpointing):
            return Eagle3(backbone, draft_vocabulary=32_000, checkpointing=checkpointing)

        found = estimate(config, build, 1, 2048, 1536, "kl", **BF16)
        chosen = setting(1, 2048, **BF16, quantize="int8", on_gpu=True)
        standing, turns = memory(found, chosen, Sharding("single"), config, Decoding(16, 512 + 64, 8192), GIB)
        needed.append(sum(standing.values()) + max(turns.values()))
    assert needed[1] < 24e9 < needed[0]


def test_strategies_shard_what_they_say():
    def parsed(strategy, devices=4, num_nodes=2):
        return sharding(Namespace(strategy=strategy, devices=devices, num_nodes=num_nodes))

    def zero(stage, offload=False):
        return Namespace(
            class_path="mhc.distributed.strategies.ZeRO", init_args=Namespace(stage=stage, offload=offload)
        )

    assert parsed("auto", 1, 1) == Sharding("single")
    assert parsed("ddp") == Sharding("ddp", 8, bucketed=True)
    assert parsed(zero(2)) == Sharding("zero2", 8, 1, 8, 8, bucketed=True)
    full = zero(3)
    assert parsed(full) == Sharding("zero3", 8, 8, 8, 8, bucketed=True)
    assert parsed(Namespace(class_path="mhc.distributed.strategies.FSDP")) == Sharding("fsdp", 8, 8, 8, 8)
    config = published("llama-3.1-8b")
    found = estimate(config, lambda b: Medusa(b, heads=5), 1, 64, 60, "ce", **BF16)
    one, eight, two_away, three_away = (
        memory(found, setting(1, 64, **BF16, on_gpu=True), shards, config, None, GIB)[0]
        for shards in (parsed("auto", 1, 1), parsed(full), parsed(zero(2, True)), parsed(zero(3, True)))
    )
    assert one["backbone's weights"] > 4 * eight["backbone's weights"]
    assert two_away["optimizer's moments"] == three_away["optimizer's moments"] == 0 < eight["optimizer's moments"]
    assert two_away["backbone's weights"] == one["backbone's weights"]
    assert three_away["backbone's weights"] == found.frozen.largest_layer * 2  # what is gathered


def test_the_cache_is_as_large_as_the_real_one():
    backbone = tiny_backbone("llama")
    cache = backbone.cache(3, 40)
    assert cache_bytes(backbone.model.config, 3, 40, torch.float32) == sum(buffer.nbytes for buffer in cache.buffers)


# ---- as a user meets it


def test_fit_tells_and_trains_nothing(conversations, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main(["fit", *COMMON, *CASCADE, *small(out, conversations), "--dry_run"]) == 0
    told = capsys.readouterr().out
    drafter = Cascade(Backbone.load("pocket"), heads=5)
    assert (
        f"{sum(p.numel() for p in drafter.parameters()):,}" in told and f"{drafter.backbone.parameter_count:,}" in told
    )
    for word in ("memory", "at its highest", "data", "steps of 16 rows", "disk", "time", "counted"):
        assert word in told
    assert not out.exists()


@pytest.mark.parametrize(
    "more, named",
    [
        (["--dry_run", "0.2"], "GiB"),
        (["--dry_run", "--model.backbone", "nobody/has-this-model"], "nobody/has-this-model"),
        (["--dry_run", "--model.dtype", "bfloat16"], "bf16-mixed"),
    ],
)
def test_what_cannot_be_is_one_line(conversations, tmp_path, capsys, monkeypatch, more, named):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert run.main(["fit", *COMMON, *CASCADE, *small(tmp_path / "run", conversations), *more]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and named in told
    assert not (tmp_path / "run").exists()


@pytest.fixture
def large(tmp_path):
    """A backbone of 8 B parameters of which there is nothing but config and tokenizer."""
    folder = tmp_path / "large"
    published("llama-3.1-8b").save_pretrained(folder)
    load_tokenizer("pocket").save_pretrained(folder)
    return folder


def test_advice_where_memory_or_disk_is_short(large, conversations, tmp_path, capsys):
    card = ["--config", str(ROOT / "configs/trainer/one-24gb.yaml"), "--model.backbone", str(large)]
    chosen = ["fit", *COMMON, *CASCADE, *card, *small(tmp_path / "run", conversations)]
    assert run.main([*chosen, "--dry_run", "24"]) == 0
    assert "8,030,261,248" in capsys.readouterr().out
    assert run.main([*chosen, "--dry_run", "4"]) == 2
    assert "zero3" in capsys.readouterr().err
    heads = ["--model.drafter.heads", "60", "--model.drafter.own_lm_head", "true"]
    assert run.main([*chosen, "--dry_run", "1e6", *heads]) == 2
    assert "default_root_dir" in capsys.readouterr().err


def test_a_batch_size_is_found_kept_and_taken_again(conversations, tmp_path, capsys):
    out = tmp_path / "run"
    chosen = ["fit", *COMMON, *CASCADE, *small(out, conversations), "--auto_batch_size"]
    assert run.main(chosen) == 0
    rows = json.loads((out / "batch_size.json").read_text())["batch_size"]
    assert rows >= 32 and f"batch size {rows}" in capsys.readouterr().out
    (saved,) = out.glob("logs/*/config.yaml")
    assert f"batch_size: {rows}" in saved.read_text()
    (out / "batch_size.json").write_text('{"batch_size": 8}')
    assert run.main([*chosen, "--ckpt_path", "last", "--trainer.max_epochs", "2"]) == 0
    assert "batch size 8" in capsys.readouterr().out


def test_a_run_for_another_machine_is_told_here(conversations, tmp_path, capsys, monkeypatch):
    """It has GPUs and DeepSpeed, this one has neither; no host holds the whole of a backbone that is read in parts."""
    monkeypatch.setattr("mhc.distributed.strategies.find_spec", lambda package: None)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    quick = ["--config", str(ROOT / "configs/quickstart.yaml"), *CASCADE, *small(tmp_path / "run", conversations)]
    for trainer, loaded_whole in (("zero2", True), ("zero3-offload", False)):
        chosen = ["--config", str(ROOT / f"configs/trainer/{trainer}.yaml"), "--trainer.devices", "4"]
        assert run.main(["fit", *quick, *chosen, "--dry_run", "24"]) == 0
        told = capsys.readouterr().out
        assert f"on each of 4 gpu (zero{trainer[4]})" in told and "of 24.00" in told
        assert ("the host while loading" in told) == loaded_whole


def test_only_this_projects_modules_have_a_dry_run(conversations, capsys):
    other = ["--model", "lightning.pytorch.demos.boring_classes.BoringModel", "--data", "datamodules.ConversationData"]
    assert run.main(["fit", *other, "--data.path", str(conversations), "--dry_run"]) == 2
    assert "DraftModule and LMModule" in capsys.readouterr().err


def test_no_code_of_a_model_is_run(tmp_path):
    """A config.json that brings classes of its own, as MiniCPM4's does, is refused."""
    written = {"model_type": "minicpm", "auto_map": {"AutoConfig": "configuration.C"}}
    (tmp_path / "config.json").write_text(json.dumps(written))
    (tmp_path / "configuration.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass C: pass\n")
    from mhc.errors import UserError

    with pytest.raises(UserError, match="config"):
        load_config(str(tmp_path))
    assert not Path(tmp_path / "ran").exists()
