"""The dry run of a language model: what is estimated is what a real step holds, and every full-size recipe is told."""

import json
import re

import pytest
import torch
import yaml
from transformers import AutoConfig

import run
from datamodules import ConversationData, PreferenceData
from datamodules.survey import survey
from mhc.backbone.loading import load_tokenizer
from mhc.backbone.model import Backbone
from mhc.estimate.fake_step import StepEstimate
from mhc.estimate.lm import Batch, estimate_model, run_model
from mhc.lm.lora import LoRA
from mhc.lm.module import LMModule
from mhc.lm.objectives import Distillation, NextToken, Preference, Reasoning
from tests.helpers.backbones import ARCHITECTURES
from tests.helpers.language_models import a_module, sizes_of
from tests.helpers.runs import ROOT

RECIPES = {  # learning rate, rows, accumulation, length: all rates, and pretraining and tuning whole, are MiniMind's
    "pretrain": (5e-4, 32, 8, 512),
    "sft": (5e-5, 32, None, 512),
    "lora": (5e-5, 32, None, 512),
    "dpo": (4e-8, 4, None, 1024),
    "distill": (5e-6, 32, None, 512),
    "reason": (1e-6, 8, None, 1024),
}


def estimate(config, batch: Batch, tokens: str = "pocket", **dtypes) -> StepEstimate:
    """A step of a new model of this config, of which nothing is made."""
    with torch.device("meta"):
        module = LMModule(config.to_dict(), tokens)
    return estimate_model(module, batch, **dtypes)


# ---- what is counted


@pytest.mark.parametrize("objective", ["next token", "adapters", "preference", "distillation", "reasoning"])
def test_a_fake_step_counts_what_a_real_one_holds(tokenizer, tmp_path, objective):
    """LMModule's own step on real tensors: parameters equal, bytes alike."""
    lora, teacher, kind = None, None, {"preference": Preference, "reasoning": Reasoning}.get(objective, NextToken)
    if objective == "distillation":
        folder = str(tmp_path / "teacher")
        a_module(tokenizer, NextToken(), width=48).save_pretrained(tmp_path / "teacher", torch.float32)
        teacher = Backbone.load(folder, decoding=False)
    if objective == "adapters":
        pytest.importorskip("peft")
        lora = LoRA(rank=4)

    def module() -> LMModule:
        chosen = kind() if teacher is None else Distillation(folder)
        return a_module(tokenizer, chosen, width=64, lora=lora)

    batch, real = Batch(4, 60, 4 * 59), module()
    if teacher is not None:
        real.objective.teacher = teacher
    held = run_model(real, batch)
    with torch.device("meta"):
        unloaded = module()
    fake = estimate_model(unloaded, batch, teacher and teacher.model.config)
    assert (fake.trained, fake.frozen.total) == (held.trained, held.frozen.total)
    assert fake.trained.total == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert fake.frozen.total == {"adapters": real.model.num_parameters() - fake.trained.total}.get(
        objective, teacher.parameter_count if teacher else 0
    )
    assert fake.step_bytes == pytest.approx(held.step_bytes, rel=0.25)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_estimated(name):
    """Three times a forward's two operations a weight, of experts those that a token meets."""
    found = estimate(AutoConfig.for_model(name, **(ARCHITECTURES[name] | {"vocab_size": 3072})), Batch(2, 40, 78))
    layers, all_of = found.trained.parts["layers"], found.trained.total
    least = 0.4 * layers if "num_local_experts" in ARCHITECTURES[name] or name == "qwen3_moe" else 0.9 * layers
    assert 6 * least * 80 < found.step_operations < 1.6 * 6 * all_of * 80
    assert found.step_bytes > 4 * all_of  # the gradients alone


@pytest.mark.parametrize("name", ["dense-26m", "moe-198m"])
def test_operations_are_six_a_token_and_active_weight(name):
    found = estimate(AutoConfig.for_model(**sizes_of(name)), Batch(1, 256, 255), autocast=torch.bfloat16)
    active = {"dense-26m": 25_829_888, "moe-198m": 63_936_768}[name]
    assert found.step_operations / 256 == pytest.approx(6 * active, rel=0.05)


def test_what_waits_and_what_is_cast_is_counted(tokenizer):
    """Accumulated gradients stand beside the activations; autocast halves what is kept of these."""
    sizes = ARCHITECTURES["llama"] | {"hidden_size": 64, "intermediate_size": 192, "vocab_size": 300}
    config = AutoConfig.for_model("llama", **sizes)
    plain, waiting, half = (
        estimate(config, Batch(8, 100, 800, accumulated), tokenizer, autocast=autocast)
        for accumulated, autocast in ((False, None), (True, None), (False, torch.bfloat16))
    )
    assert 0 < waiting.step_bytes - plain.step_bytes <= 4 * plain.trained.total
    assert half.step_bytes < plain.step_bytes


def test_targets_and_pairs_are_surveyed(tmp_path):
    """The model learns from every supervised token but a row's first, heads from those before two; of pairs both rows."""
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"document number {i} of some"}) + "\n" for i in range(30)))
    data = ConversationData(str(texts), supervise="all", batch_size=4)
    data.tokenizer = load_tokenizer("pocket")
    seen, heads = survey(data, 0, heads=False), survey(data, 0)
    assert (seen.anchors, heads.anchors) == (seen.tokens - seen.rows, seen.tokens - 2 * seen.rows)
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"What is {i}?", "chosen": "A number.", "rejected": "No, no, no."} for i in range(30)]
    pairs.write_text("".join(map(lambda row: json.dumps(row) + "\n", rows)))
    data = PreferenceData(str(pairs), batch_size=4)
    data.tokenizer = load_tokenizer("pocket")
    seen, (batches, _) = survey(data, 0, heads=False), data.batches("train")
    assert (seen.rows, seen.batches) == (len(batches), -(-len(batches) // 4))
    assert seen.tokens == sum(len(ids) for pair in batches.pairs for ids, _ in pair)


# ---- as a user meets it


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data of each kind, and a model of 5 M parameters of which there is nothing but config and tokenizer."""
    at = tmp_path_factory.mktemp("full")
    words = "some words to learn from, "
    rows = {
        "pretrain": [{"text": f"Document {i}: {words * 9}"} for i in range(40)],
        "dpo": [{"prompt": f"What is {i}?", "chosen": words, "rejected": words * 2} for i in range(40)],
        "chats": [{"question": f"What is {i}?", "answer": words * 9} for i in range(40)],
    }
    for name, lines in rows.items():
        (at / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    AutoConfig.for_model(**(sizes_of("dense-5m") | {"vocab_size": 3072})).save_pretrained(at / "model")
    load_tokenizer("pocket").save_pretrained(at / "model")
    return at


def recipe(stage: str, folder) -> list[str]:
    """The arguments of a stage at full size, as its file tells them, on this folder's model and data."""
    parts = ["training", stage, f"full/{stage}", *(["models/qwen3-64m"] if stage == "pretrain" else [])]
    files = [*(f"configs/lm/{part}.yaml" for part in parts), "configs/trainer/gpu.yaml"]
    data = folder / f"{stage}.jsonl"
    chosen = ["--data.path", str(data if data.exists() else folder / "chats.jsonl")]
    own = (
        ["--model.tokenizer", str(folder / "model")]
        if stage == "pretrain"
        else ["--model.model", str(folder / "model")]
    )
    if stage == "distill":
        own += ["--model.tokenizer", "null", "--model.objective.teacher", "pocket"]
    return ["fit", *(flag for file in files for flag in ("--config", str(ROOT / file))), *chosen, *own]


@pytest.mark.parametrize("stage", RECIPES)
def test_every_recipe_is_told(stage, folder, tmp_path, capsys):
    out = tmp_path / "run"
    assert run.main([*recipe(stage, folder), "--trainer.default_root_dir", str(out), "--dry_run", "24"]) == 0
    told = capsys.readouterr().out
    sizes = sizes_of("dense-5m")
    whole = 63_912_192 if stage == "pretrain" else 4_951_296 + (3072 - sizes["vocab_size"]) * sizes["hidden_size"]
    assert f"{whole:,}" in told and "of 24.00" in told and not out.exists()
    for word in ("memory", "optimizer's moments", "at its highest", "data", "steps of", "disk", "time", "a token"):
        assert word in told
    assert ("adapters of rank 16" in told, "the teacher" in told) == (stage == "lora", stage == "distill")


@pytest.mark.parametrize("stage", RECIPES)
def test_a_recipe_is_as_its_comment_says(stage):
    chosen = yaml.safe_load((ROOT / f"configs/lm/full/{stage}.yaml").read_text())
    data, rate = chosen["data"]["init_args"], chosen["model"]["init_args"]["learning_rate"]
    accumulated = chosen.get("trainer", {}).get("accumulate_grad_batches")
    assert (rate, data["batch_size"], accumulated, data["max_length"]) == RECIPES[stage]


def test_what_does_not_fit_is_one_line_and_advice_fits(folder, tmp_path, capsys):
    chosen = [*recipe("sft", folder), "--trainer.default_root_dir", str(tmp_path / "run")]
    assert run.main([*chosen, "--dry_run", "2"]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1
    rows, accumulated = map(int, re.search(r"batch_size (\d+) fits.*grad_batches (\d+)", told).groups())
    assert rows * accumulated == 32
    advised = ["--data.batch_size", str(rows), "--trainer.accumulate_grad_batches", str(accumulated)]
    assert run.main([*chosen, "--dry_run", "2", *advised]) == 0
    assert run.main([*chosen, "--dry_run", "1.01"]) == 2
    assert "lora.yaml" in capsys.readouterr().err
    assert run.main([*chosen, "--dry_run", "--model.model", str(tmp_path / "none")]) == 2
    assert str(tmp_path / "none") in capsys.readouterr().err
