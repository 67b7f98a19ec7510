"""Every stage's YAML through `run.py fit` on a tiny model: it goes on after a kill as if nothing had been, leaves a model that
plain transformers loads, and refuses what it cannot learn from."""

import json
import signal
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import run as cli
from mhc.checkpoints.training_file import CheckpointFiles
from mhc.lm.lora import LoRA
from mhc.lm.module import LMModule
from mhc.text.encoding import encode
from tests.helpers.killed_runs import COMPARED, differences, run, tiny_model

ROOT = Path(__file__).parents[2]
TINY = dict(model_type="llama", vocab_size=280, hidden_size=32, intermediate_size=48, num_hidden_layers=2)
STAGES = ("pretrain", "sft", "dpo", "lora", "distill", "reason")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model and data for each stage."""
    at = tmp_path_factory.mktemp("stages")
    tiny_model(at)
    chats = [(f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}.") for a in range(10) for b in range(4)]
    rows = {
        "pretrain": [{"text": f"{question} {answer}"} for question, answer in chats],
        "sft": [{"question": question, "answer": answer} for question, answer in chats],
        "dpo": [{"prompt": question, "chosen": answer, "rejected": f"{answer} {answer}"} for question, answer in chats],
        "reason": [
            {"question": question, "answer": f"<think>\n{answer}\n</think>\n<answer>\n{answer.split()[-1]}\n</answer>"}
            for question, answer in chats
        ],
    }
    rows |= {"lora": rows["sft"], "distill": rows["sft"]}
    for stage, lines in rows.items():
        (at / f"{stage}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return at


def command(folder: Path, stage: str, where: Path, *more: str) -> list[str]:
    """The arguments that train a stage in a few steps, with every step in the log."""
    backbone = str(folder / "backbone")
    model = {
        "pretrain": ["--model.tokenizer", backbone, "--model.model", json.dumps(TINY | {"num_attention_heads": 4})],
        "distill": [
            *("--model.tokenizer", backbone, "--model.model", json.dumps(TINY | {"num_attention_heads": 4})),
            *("--model.objective.init_args.teacher", backbone),
        ],
    }.get(stage, ["--model.model", backbone])
    return [
        *(
            "fit",
            "--config",
            str(ROOT / "configs/lm/training.yaml"),
            "--config",
            str(ROOT / f"configs/lm/{stage}.yaml"),
        ),
        *("--config", str(ROOT / "configs/trainer/cpu.yaml"), *model, "--data.path", str(folder / f"{stage}.jsonl")),
        *("--data.batch_size", "2", "--data.max_length", "96", "--trainer.log_every_n_steps", "1"),
        *(
            "--trainer.max_epochs",
            "2",
            "--trainer.callbacks+=tests.helpers.killed_runs.Watch",
            "--checkpoint.every_n_steps",
            "2",
        ),
        *("--trainer.default_root_dir", str(where), *more),
    ]


@pytest.fixture(scope="module")
def trained(folder):
    """Gives the folder in which a stage was trained undisturbed."""
    done = {}

    def get(stage: str) -> Path:
        if stage not in done:
            where = folder / f"{stage}-run"
            assert run(command(folder, stage, where), where, fresh=False) == 0, where.with_suffix(".txt").read_text()
            done[stage] = where
        return done[stage]

    return get


@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_goes_on(trained, folder, tmp_path, stage):
    where = tmp_path / "killed"
    assert run(command(folder, stage, where), where, 4, fresh=False) == -signal.SIGKILL
    references = list(where.glob("*-reference.safetensors"))
    assert len(references) == (2 if stage == "dpo" else 0)
    before = [path.stat().st_mtime_ns for path in references]
    last = command(folder, stage, where, "--ckpt_path", "last")
    assert run(last, where, fresh=False) == 0, where.with_suffix(".txt").read_text()
    assert differences(trained(stage), where) == dict.fromkeys(COMPARED, 0)
    assert before == [path.stat().st_mtime_ns for path in references]  # computed once


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_leaves_a_stock_model(trained, stage):
    where = trained(stage)
    model, tokenizer = (kind.from_pretrained(where / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is 1 plus 2?"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    said = model.generate(prompt, max_new_tokens=4, do_sample=False)
    assert said.shape[1] > prompt.shape[1] and type(model).__name__ == "LlamaForCausalLM"
    kept = CheckpointFiles().load_checkpoint(where / "last.ckpt")["state_dict"]
    assert all("lora_" in name for name in kept) == (stage == "lora")
    assert (where / "model-adapter" / "adapter_model.safetensors").exists() == (stage == "lora")
    assert (where / "report.html").exists()


def test_experts_are_balanced_and_told_of(folder):
    """The balancing loss counts in what is trained on alone; padding does not count in the load."""
    sizes = dict(num_attention_heads=4, num_key_value_heads=2, hidden_size=32, num_hidden_layers=2, vocab_size=280)
    experts = dict(model_type="qwen3_moe", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
    torch.manual_seed(0)
    module = LMModule(sizes | experts, str(folder / "backbone"))
    ids = torch.randint(3, 280, (3, 20))
    mask = torch.ones_like(ids, dtype=torch.bool)
    loss, figures = module.figures({"ids": ids, "mask": mask})
    assert set(figures) == {"loss", "top1", "balance", "expert_peak", "expert_starved", "expert_entropy"}
    assert loss.item() == pytest.approx(figures["loss"][0].item() + 0.001 * figures["balance"][0].item(), abs=1e-6)
    assert 1 <= figures["expert_peak"][0] <= 2 and figures["balance"][0] >= 1.9
    loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in module.named_parameters() if name.endswith("mlp.gate.weight"))
    padded = torch.cat([ids, torch.full((3, 30), module.tokenizer.pad_token_id)], dim=1)
    _, same = module.figures({"ids": padded, "mask": torch.cat([mask, torch.zeros(3, 30, dtype=torch.bool)], dim=1)})
    for name, (value, _) in figures.items():
        assert same[name][0].item() == pytest.approx(value.item(), abs=1e-5), name


def test_adapters_change_nothing_at_first_and_merge_without_a_trace(folder, tmp_path):
    ids = torch.arange(3, 40)[None]
    plain = LMModule(str(folder / "backbone")).eval()
    module = LMModule(str(folder / "backbone"), lora=LoRA(rank=4)).eval()
    with torch.no_grad():
        torch.testing.assert_close(module.model(ids).logits, plain.model(ids).logits, atol=0, rtol=0)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1)
        adapted = module.model(ids).logits
        assert (adapted - plain.model(ids).logits).abs().max() > 0.1
        module.adapter.merge_adapter()
        torch.testing.assert_close(module.model(ids).logits, adapted, atol=1e-5, rtol=0)
        module.adapter.unmerge_adapter()
        torch.testing.assert_close(module.model(ids).logits, adapted, atol=1e-5, rtol=0)
        module.save_pretrained(tmp_path / "model", torch.float32)
        merged = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        torch.testing.assert_close(merged(ids).logits, adapted, atol=1e-5, rtol=0)
        from peft import PeftModel

        apart = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(folder / "backbone"), tmp_path / "model-adapter"
        )
        torch.testing.assert_close(apart(ids).logits, adapted, atol=1e-5, rtol=0)


def test_only_the_answer_of_a_pair_is_learned_from(folder):
    from datamodules import PreferenceData

    data = PreferenceData(str(folder / "dpo.jsonl"))
    data.tokenizer = AutoTokenizer.from_pretrained(folder / "backbone")
    pairs, lengths = data.batches("train")
    batch = pairs[[0, 1]]
    assert batch["ids"].shape[0] == 4 and len(lengths) == len(pairs)
    for number in (0, 1):
        messages = data.conversations("train")[number].messages
        for side, text in enumerate(
            (messages[-1]["content"], data._rejected[data.conversations("train")[number].where][-1]["content"])
        ):
            row = 2 * number + side
            said = data.tokenizer.decode(batch["ids"][row][batch["mask"][row]])
            assert said == f"{text}<|im_end|>"
            ids, _ = encode(data.tokenizer, [*messages[:-1], {"role": "assistant", "content": text}])
            assert batch["ids"][row][: len(ids)].tolist() == ids


@pytest.mark.parametrize(
    "stage, flags, named",
    [
        ("dpo", ["--data.path", "{sft}"], "chosen"),
        ("dpo", ["--data.max_length", "8"], "max_length"),
        ("dpo", ["--data.class_path", "datamodules.ConversationData"], "PreferenceData"),
        ("dpo", ["--model.objective.init_args.beta", "0"], "beta"),
        ("sft", ["--model.model", "/nowhere/at/all"], "/nowhere/at/all"),
        ("pretrain", ["--model.model", '{"model_type": "lama", "vocab_size": 280}'], "lama"),
        ("pretrain", ["--model.model", '{"vocab_size": 280}'], "model_type"),
        ("pretrain", ["--model.model", '{"model_type": "llama", "vocab_size": 20, "hidden_size": 32}'], "vocab_size"),
        ("distill", ["--model.objective.init_args.teacher", "pocket"], "tokens"),
        ("lora", ["--model.lora.targets", "nothing"], "nothing"),
        ("reason", ["--model.objective.init_args.tag_weight", "-1"], "tag_weight"),
    ],
)
def test_what_cannot_be_trained_gets_one_line_and_status_2(folder, tmp_path, capsys, stage, flags, named):
    flags = [flag.format(sft=folder / "sft.jsonl") if flag.startswith("{sft") else flag for flag in flags]
    assert cli.main(command(folder, stage, tmp_path / "run", *flags)) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1 and told.strip().splitlines()[-1].startswith("error: ") and named in told


def test_lora_without_peft_says_what_to_install(monkeypatch, folder, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    assert cli.main(command(folder, "lora", tmp_path / "run")) == 2
    assert "[lora]" in capsys.readouterr().err


def test_a_loss_that_is_no_number_names_the_pairs(folder, tmp_path, capsys):
    flags = ["--model.learning_rate", "1e30", "--model.warmup", "0", "--trainer.gradient_clip_val", "null"]
    assert cli.main(command(folder, "dpo", tmp_path / "run", *flags)) == 2
    told = capsys.readouterr().err
    assert "step 1, epoch 0, batch 1: the loss is not finite" in told and "dpo.jsonl:" in told
    assert told.count("error: ") == 1
