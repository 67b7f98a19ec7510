"""Training a small language model: what a step costs, and whether each stage does what it is for.

    python run.py lm                                   # first: it trains the models that are measured
    python benchmarks/lm.py [--run runs/lm] [--only speed|stages|reason] [--repeats 5] [--steps 200]

Writes benchmarks/results/lm.json (with --only, those cases of it; the others stay):

    speed/<model>[/compiled]  tokens_per_second, step_seconds; medians over steps taken in turn
                              model_flops_utilisation    operations of the model (6 a parameter in use and token, attention
                                                         besides) over what one large product of this machine does
    pretrain      loss, loss_vs_unigram, loss_vs_5gram    held-out texts; ratios
    sft           well_formed_share (of 100 held-out prompts), loss (of held-out answers), loss_vs_pretrained (a ratio)
    dpo           preference_accuracy, preference_accuracy_z (standard errors above a half), loss (0.693 at the start)
    distill       loss_vs_no_teacher     held-out cross-entropy of a student after as many steps, with over without teacher
    reason        well_formed_vs_unweighted    share of well-formed held-out answers, tag weight 10 over weight 1 (which
                                               counts at least one answer); both shares; right answers. One value a seed.
                  well_formed_gain             weight 10 minus weight 1, one value a seed; of its mean the standard errors by
                                               seeds (_error_seeds) and by prompts (_error_prompts), and how many of both
                                               together it is above 0 (_z)
    lora          merged_difference      largest difference of logits, adapters merged and apart, fp32
                  identity_loss_vs_before, other_loss_vs_before    held-out ratios
    heads         tokens_per_step, speedup

The stages' students and adapters are trained here, by `run.py fit` as a user would, in --steps steps with seed 0 (reason: in 150 with seeds 1 to 8).
"""

import argparse
import json
import math
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import yaml

from common import RESULTS, ROOT, result, timed, write
from datamodules import ConversationData
from mhc.backbone.loading import load_model, load_tokenizer
from mhc.commands.lm import lm_training
from mhc.commands.stages import best_trainer
from mhc.corpus.stages import reasoning
from mhc.lm.experts import routed_config
from mhc.lm.measures import Answers, answers
from mhc.lm.module import new_model
from mhc.reports.run_logs import read_logs
from mhc.text.encoding import prompt_ids
from mhc.text.splits import split_of
from mhc.training.losses import chunked_loss

MODELS = ("dense-26m", "moe-145m")
ROWS, LENGTH = 4, 256
STUDENT = dict(
    hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
)
SMALL = ("--data.batch_size", "4")  # packed rows
ADAPTING = 40  # steps
REASONING = 150  # steps; with 100 the weight harms, with 200 nearly all answers have the form whatever it is
SEEDS = range(1, 9)  # the setting was chosen by seed 0
PROBLEMS = 400  # held out
FORM = re.compile(r"\s*<think>\s*\S.*?\s*</think>\s*<answer>\s*(\S.*?)\s*</answer>\s*", re.DOTALL)
TAG = re.compile(r"</?(?:think|answer)>")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=ROOT / "runs/lm", help="the --out of `run.py lm` (default runs/lm)")
    parser.add_argument("--only", choices=("speed", "stages", "reason"))
    parser.add_argument("--repeats", type=int, default=5, help="steps of each model that are timed")
    parser.add_argument("--steps", type=int, default=200, help="steps of each short training")
    options = parser.parse_args()
    if options.only != "speed" and not (options.run / "report.json").is_file():
        raise SystemExit(f"'{options.run}' has no report.json: run `python run.py lm` first, or give --run")
    path = RESULTS / "lm.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() and options.only else {"results": []}
    results = []
    if options.only in (None, "speed"):
        results += speeds(options.repeats)
    if options.only in (None, "stages"):
        results += stages(options.run, options.steps)
    if options.only == "reason":
        with tempfile.TemporaryDirectory() as folder:
            results += reason(options.run, Path(folder), options.steps)
    fresh = {row["case"] for row in results}
    report = options.run / "report.json"
    figures = json.loads(report.read_text(encoding="utf-8")) if report.is_file() else {}
    about = {name: figures.get(name) for name in ("parameters", "vocabulary", "minutes", "seconds", "tokens")}
    unchanged = [row for row in before["results"] if row["case"] not in fresh]
    timed_here = not any(row["case"].startswith("speed/") for row in unchanged)
    machine = {} if timed_here else {"machine": before["machine"]}  # the one whose speeds these are
    write("lm", unchanged + results, steps=options.steps, road=about, **machine)


# ---- what a step costs


def speeds(repeats: int) -> list[dict]:
    """Every model, compiled or not, step by step in turn."""
    dtype = torch.bfloat16 if best_trainer() == "cpu-bf16" else torch.float32
    peak = peak_operations(dtype)
    steps, uses = {}, {}
    for name in MODELS:
        sizes = yaml.safe_load((ROOT / f"configs/lm/models/{name}.yaml").read_text(encoding="utf-8"))["model"][
            "init_args"
        ]["model"]
        model = new_model(sizes, load_tokenizer("pocket")).train()
        uses[name] = operations_per_token(model)
        for compiled in (False, True):
            if compiled and name.startswith("moe"):
                continue  # which tokens an expert gets is decided by the data: nothing to fuse beforehand
            case = f"speed/{name}" + ("/compiled" if compiled else "")
            steps[case] = stepper(model, torch.compile(model.base_model) if compiled else model.base_model, dtype)
            steps[case]()  # compiles, and warms up
    seconds: dict[str, list[float]] = {case: [] for case in steps}
    for _ in range(repeats):
        for case, step in steps.items():
            seconds[case].append(timed(step)[0])
    results = []
    for case, times in seconds.items():
        rates = [ROWS * LENGTH / took for took in times]
        use = uses[case.split("/")[1]]
        results += [
            result(case, "tokens_per_second", rates),
            result(case, "step_seconds", times),
            result(case, "model_flops_utilisation", [rate * use / peak for rate in rates]),
        ]
    return results


def stepper(model, forward, dtype: torch.dtype):
    """One training step: forward, loss, backward, AdamW, on random tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(0, model.config.vocab_size, (ROWS, LENGTH))

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            hidden = forward(input_ids=ids, use_cache=False).last_hidden_state
            weight = model.get_output_embeddings().weight
            loss = chunked_loss(hidden[:, :-1].flatten(0, 1), (weight,), ids[:, 1:].flatten()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def operations_per_token(model) -> float:
    """6 for every parameter that a token meets (experts it is not sent to apart), and attention's 6 L T D for causal rows."""
    config, counted, routing = model.config, 0, routed_config(model)
    for name, parameter in model.named_parameters():
        share = routing.top_k / routing.experts if routing and ".experts." in name and "shared" not in name else 1
        counted += parameter.numel() * share  # tied embeddings count once: they are the lm_head's
    return 6 * counted + 6 * config.num_hidden_layers * LENGTH * config.hidden_size


def peak_operations(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of one large product, the best of five."""
    one, two = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
    return 2 * size**3 / min(timed(lambda: one @ two)[0] for _ in range(6))


# ---- whether each stage does what it is for


def stages(run: Path, steps: int) -> list[dict]:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    pretrain, sft, dpo = report["pretrain"], report["sft"], report["dpo"]
    results = [
        result("pretrain", "loss", [pretrain["loss"]]),
        result("pretrain", "loss_vs_unigram", [pretrain["loss"] / pretrain["unigram_loss"]]),
        result("pretrain", "loss_vs_5gram", [pretrain["loss"] / pretrain["5gram_loss"]]),
        result("sft", "well_formed_share", [sft["well_formed_share"]]),
        result("sft", "loss", [sft["loss"]]),
        result("sft", "loss_vs_pretrained", [sft["loss"] / sft["loss_before"]]),
        result("dpo", "preference_accuracy", [dpo["preference_accuracy"]]),
        result("dpo", "preference_accuracy_z", [dpo["preference_accuracy_z"]]),
        result("dpo", "loss", [dpo["loss"]]),
        result("heads", "tokens_per_step", [report["heads"]["tokens_per_step"]]),
        result("heads", "speedup", [report["heads"]["speedup"]]),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for stage in (distill, reason, lora):
            results += stage(run, Path(folder), steps)
    return results


def fit(stage: str, run: Path, data: str, folder: Path, steps: int, *more: str) -> Path:
    """Train a stage by the command line in so many steps; its folder."""
    arguments = lm_training(stage, best_trainer(), str(run / f"data/{data}.jsonl"), folder, *more)
    budget = [
        "--trainer.max_steps",
        str(steps),
        "--trainer.max_epochs",
        "-1",
        "--trainer.val_check_interval",
        str(steps),
    ]
    budget += ["--trainer.check_val_every_n_epoch", "null"]
    subprocess.run([sys.executable, str(ROOT / "run.py"), "fit", *arguments, *budget], check=True)
    return folder


def distill(run: Path, folder: Path, steps: int) -> list[dict]:
    """A student of a fifth of the teacher's size that has few texts of its own, which it sees many times: there it
    gains most from a teacher that has seen all. (With all texts and as few steps it gained nothing, see docs/log.md.)"""
    tokenizer = run / "tokenizer"
    sizes = {"model_type": "llama", "vocab_size": len(load_tokenizer(str(tokenizer))), "tie_word_embeddings": True}
    student = ["--model.tokenizer", str(tokenizer), "--model.model", json.dumps(sizes | STUDENT)]
    student += ["--model.learning_rate", "4e-3", "--data.limit", "200", *SMALL]
    teacher = ["--model.objective.init_args.teacher", str(run / "sft/model")]
    taught = fit("distill", run, "chats", folder / "taught", steps, *student, *teacher)
    alone = fit(
        "distill", run, "chats", folder / "alone", steps, *student, *teacher, "--model.objective.init_args.alpha", "1"
    )
    losses = [last(read_logs(folder)[0]["val/cross_entropy"]) for folder in (taught, alone)]
    return [
        result("distill", "loss_vs_no_teacher", [losses[0] / losses[1]]),
        result("distill", "loss", [losses[0]]),
        result("distill", "loss_no_teacher", [losses[1]]),
    ]


def reason(run: Path, folder: Path, _: int) -> list[dict]:
    """Reasoning as a minority among chats, as instruction data have it, and training that ends before the form is learned
    whatever the weight. (Of reasoning alone the tags are a third of the tokens, and are learned at once; weighing them then,
    or for few steps, only makes too many of them, see docs/log.md.)"""
    base = str(run / "sft/model")
    lines = [(run / f"data/{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in ("reasoning", "chats")]
    mixed = folder / "mixed.jsonl"
    mixed.write_text("\n".join([*lines[0][:600], *lines[1][:4000]]) + "\n", encoding="utf-8")  # batches are shuffled
    problems = [row["messages"] for row in reasoning(40 * PROBLEMS, seed=1)]  # `fit` holds out the same prompts
    problems = [turns for turns in problems if split_of(turns[0]["content"]) == "test"][:PROBLEMS]
    tokenizer, expected = load_tokenizer(base), [turns[1]["content"] for turns in problems]
    prompts = [prompt_ids(tokenizer, turns[:1]) for turns in problems]
    formed: dict[int, list[list[bool]]] = {10: [], 1: []}
    right: dict[int, list[float]] = {10: [], 1: []}
    for seed in SEEDS:
        for weight in formed:
            more = ["--model.model", base, "--model.objective.init_args.tag_weight", str(weight), *SMALL]
            more += ["--data.path", str(mixed), "--data.seed", str(seed), "--seed_everything", str(seed)]
            trained = fit("reason", run, "reasoning", folder / f"weight-{weight}-seed-{seed}", REASONING, *more)
            given = answers(str(trained / "model"), prompts, 128)
            formed[weight].append(reasoned(given))
            right[weight].append(right_share(given, expected))
    shares = {weight: [sum(answer) / len(answer) for answer in rows] for weight, rows in formed.items()}
    gain, by_seed, by_prompt = paired_gain(formed[10], formed[1])
    pairs = list(zip(shares[10], shares[1]))
    return [
        result("reason", "well_formed_vs_unweighted", [one / max(other, 1 / len(prompts)) for one, other in pairs]),
        result("reason", "well_formed_share", shares[10]),
        result("reason", "well_formed_share_unweighted", shares[1]),
        result("reason", "well_formed_gain", [one - other for one, other in pairs]),
        result("reason", "well_formed_gain_error_seeds", [by_seed]),
        result("reason", "well_formed_gain_error_prompts", [by_prompt]),
        result("reason", "well_formed_gain_z", [gain / math.hypot(by_seed, by_prompt)]),
        result("reason", "right_share", right[10]),
        result("reason", "right_share_unweighted", right[1]),
    ]


def reasoned(given: Answers) -> list[bool]:
    """Of each answer whether it ends and is a thought and an answer, in their tags and nothing besides."""
    return [
        bool(ended and FORM.fullmatch(text) and len(TAG.findall(text)) == 4)
        for text, ended in zip(given.texts, given.ended)
    ]


def right_share(given: Answers, expected: Sequence[str]) -> float:
    """The share of answers whose <answer> is that of the expected text."""
    pairs = ((FORM.fullmatch(text), FORM.fullmatch(wanted)) for text, wanted in zip(given.texts, expected))
    return sum(bool(one and two and one[1] == two[1]) for one, two in pairs) / len(given.texts)


def paired_gain(better: Sequence[Sequence[bool]], worse: Sequence[Sequence[bool]]) -> tuple[float, float, float]:
    """How much larger the share of True is in `better` than in `worse`, each a row of answers to the same prompts for each
    of two or more seeds; the standard error of this by seeds, and by prompts. Each sees chance that the other does not:
    together, as if they were independent, they make the error larger rather than smaller."""
    gains = np.asarray(better, float) - np.asarray(worse, float)
    by_seed, by_prompt = (
        float(means.std(ddof=1)) / math.sqrt(len(means)) for means in (gains.mean(axis=1), gains.mean(axis=0))
    )
    return float(gains.mean()), by_seed, by_prompt


def lora(run: Path, folder: Path, _: int) -> list[dict]:
    from peft import PeftModel

    base = str(run / "sft/model")
    trained = fit("lora", run, "identity", folder / "lora", ADAPTING, "--model.model", base)
    identity, others = held_out(run, "identity", base), held_out(run, "chats", base)
    before = load_model(base, torch.float32).eval()
    losses = [loss_of(before, data) for data in (identity, others)]
    model = PeftModel.from_pretrained(load_model(base, torch.float32), trained / "model-adapter").eval()
    now = [loss_of(model.base_model.model, data) for data in (identity, others)]
    ids = torch.from_numpy(others.rows("test")[0][0]).long()[None]
    with torch.no_grad():
        apart = model(ids).logits
        merged = model.merge_and_unload()(ids).logits
    return [
        result("lora", "merged_difference", [(merged - apart).abs().max().item()]),
        result("lora", "identity_loss_vs_before", [now[0] / losses[0]]),
        result("lora", "other_loss_vs_before", [now[1] / losses[1]]),
    ]


def held_out(run: Path, name: str, tokenizer: Path | str) -> ConversationData:
    data = ConversationData(str(run / f"data/{name}.jsonl"), max_length=256)
    data.tokenizer = load_tokenizer(str(tokenizer))
    return data


@torch.no_grad()
def loss_of(model, data: ConversationData) -> float:
    """Mean cross-entropy of the held-out answers, token by token."""
    total, count = 0.0, 0
    for ids, mask in data.rows("test"):
        ids, valid = torch.from_numpy(ids).long()[None], torch.from_numpy(mask)[1:]
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1][valid]
        loss = chunked_loss(hidden, (model.get_output_embeddings().weight,), ids[0, 1:][valid]).loss
        total, count = total + loss.item() * int(valid.sum()), count + int(valid.sum())
    return total / count


def last(curve: dict[int, float]) -> float:
    return curve[max(curve)]


if __name__ == "__main__":
    main()
