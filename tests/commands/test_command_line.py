"""The command line as a user meets it: config files, help, and one clear line for every mistake."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import run
from tests.helpers.runs import CASCADE, COMMON, ROOT, small


@pytest.mark.parametrize("drafter", ["medusa", "cascade", "diffusion", "eagle3"])
def test_fit_validate_test_generate(conversations, tmp_path, capsys, drafter):
    out = tmp_path / "run"
    chosen = [*COMMON, "--config", str(ROOT / f"configs/drafter/{drafter}.yaml"), *small(out, conversations)]
    assert run.main(["fit", *chosen]) == 0
    assert {"drafter.json", "drafter.safetensors", "last.ckpt", "best.ckpt"} <= {p.name for p in out.iterdir()}
    assert list(out.glob("logs/*/metrics.csv"))
    assert run.main(["validate", *chosen]) == 0
    assert (out / "drafter.safetensors").stat().st_mode == (out / "drafter.json").stat().st_mode
    (out / "best.ckpt").rename(out / "best.previous.ckpt")  # as a kill between the two renames leaves it
    assert run.main(["test", *chosen]) == 0
    assert "going on from the one before it" in capsys.readouterr().err
    (out / "best.previous.ckpt").rename(out / "best.ckpt")
    figures = json.loads((out / "decode_benchmark.json").read_text())
    assert figures["identical"] == figures["prompts"] == 2
    assert figures["tokens_per_step"] >= 1 and len(figures["head_accuracy"]) == (7 if drafter == "eagle3" else 5)
    capsys.readouterr()
    told = {}
    for plain in ([], ["--plain"]):
        asked = ["--checkpoint", str(out), "--prompt", "What is 3 plus 4?", "--max_new_tokens", "20", "--json"]
        assert run.main(["generate", *asked, *plain]) == 0
        told[bool(plain)] = json.loads(capsys.readouterr().out)
    assert told[True]["token_ids"] == told[False]["token_ids"] and told[True]["text"] == told[False]["text"]
    assert told[True]["tokens_per_step"] == 1.0 and told[True]["steps"] == len(told[True]["token_ids"])
    assert set(told[False]) == {"text", "token_ids", "steps", "tokens_per_step", "seconds", "finish_reason"}
    # a second fit must not write over these heads, and a resumed one goes on
    before = (out / "drafter.safetensors").read_bytes()
    assert run.main(["fit", *chosen]) == 2
    assert "already holds trained heads" in capsys.readouterr().err
    assert (out / "drafter.safetensors").read_bytes() == before
    assert run.main(["fit", *chosen, "--trainer.max_epochs", "2", "--ckpt_path", "last"]) == 0


def test_a_second_quickstart_trains_anew(conversations, tmp_path):
    """Its own commands for collect and fit, made small: once more in the folder of a whole run."""
    from mhc.commands.quickstart import _stages

    out, features = tmp_path / "medusa", tmp_path / "features"
    commands = {command[0]: command for _, command in reversed([*_stages(tmp_path, 64, "cpu")])}
    written = []
    for _ in range(2):
        assert run.main([*commands["collect"], "--data", str(conversations), "--out", str(features)]) == 0
        assert run.main([*commands["fit"], *small(out, features)]) == 0
        written.append((out / "drafter.json").stat().st_mtime_ns)
    assert written[0] < written[1]


def test_a_comparison_goes_on_where_its_trial_was_interrupted(conversations, tmp_path, monkeypatch):
    """In this process: what a stage would run in one of its own."""
    from rich.console import Console

    from mhc.commands import compare

    trial = tmp_path / "medusa/trial"
    trial.mkdir(parents=True)
    (trial / "last.ckpt").write_bytes(b"of a trial that was stopped")
    monkeypatch.setattr(compare, "TRIAL", 2)
    monkeypatch.setattr(compare, "run_stage", lambda console, what, command: run.main(command))
    common = small(trial, conversations)
    assert compare._steps_in(Console(), "medusa", "cpu", str(conversations), trial.parent, common, 0.1) > 0


def test_distill_resumes_and_refuses_other_settings(conversations, tmp_path, capsys):
    out = tmp_path / "answers.jsonl"
    command = ["distill", "--data", str(conversations), "--out", str(out), "--max_new_tokens", "12"]
    assert run.main(command) == 0
    whole = out.read_text()
    rows = [json.loads(line) for line in whole.splitlines()]
    assert len({row["id"] for row in rows}) == len(rows) == 64
    assert all([m["role"] for m in row["messages"]] == ["user", "assistant"] for row in rows)
    out.write_text("".join(line + "\n" for line in whole.splitlines()[:50]) + '{"id": "torn')
    assert run.main(command) == 0
    assert sorted(out.read_text().splitlines()) == sorted(whole.splitlines())
    assert run.main([*command, "--max_new_tokens", "13"]) == 2
    assert "other settings" in capsys.readouterr().err


def mistakes(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """What a user does wrong, and what the line must name."""
    broken = tmp_path / "broken.json"
    broken.write_text('[{"conversations": [{"from": "human", "value": "hi"}')
    unanswered = tmp_path / "unanswered.jsonl"
    unanswered.write_text('{"messages": [{"role": "user", "content": "hello?"}]}\n' * 3)
    no_yaml = tmp_path / "no.yaml"
    no_yaml.write_text("trainer: [1, 2\n")
    fit = ["fit", *COMMON, *CASCADE, "--trainer.default_root_dir", str(tmp_path / "out")]
    return {
        "missing data": ([*fit, "--data.path", str(tmp_path / "absent.json")], "absent.json"),
        "malformed JSON": ([*fit, "--data.path", str(broken)], "broken.json"),
        "no assistant turn": ([*fit, "--data.path", str(unanswered)], "assistant"),
        "unknown key": ([*fit, "--data.paht", "x"], "paht"),
        "unknown key in a file": ([*fit, "--trainer.max_epohcs", "3"], "max_epohcs"),
        "missing config": (["fit", "--config", str(tmp_path / "absent.yaml")], "absent.yaml"),
        "malformed config": (["fit", "--config", str(no_yaml)], "no.yaml"),
        "unknown backbone": ([*fit, "--model.backbone", str(tmp_path / "nowhere")], "nowhere"),
        "no such checkpoint": ([*fit, "--ckpt_path", "last"], "last.ckpt"),
        "damaged checkpoint": ([*fit, "--ckpt_path", str(broken)], "broken.json"),
        "unknown flag": (["generate", "--checkpont", "x"], "--checkpoint"),
        "a word for a number": ([*fit, "--data.limit", "many"], "limit"),
        "no such GPU": (["distill", "--out", str(tmp_path / "o"), "--device", "cuda:99"], "cuda:99"),
        "no heads": (["generate", "--checkpoint", str(tmp_path), "--prompt", "hi"], "drafter.json"),
        "unknown verb": (["fti"], "fti"),
        "tune without heads": (["tune", "--checkpoint", str(tmp_path)], "drafter.json"),
        "temperature below 0": (["tune", "--checkpoint", str(tmp_path), "--temperature", "-1"], "temperature"),
        "top_p above 1": (["generate", "--checkpoint", "x", "--prompt", "hi", "--top_p", "1.5"], "top_p"),
        "compare nothing": (["compare", "--data", str(tmp_path / "absent.jsonl")], "absent.jsonl"),
        "compare for no steps": (["compare", "--steps", "0"], "--steps"),
        "compare another backbone without its answers": (["compare", "--backbone", "somewhere/else"], "--data"),
        "unknown family": (["compare", "--families", "hydra"], "hydra"),
        "unknown objective": ([*fit, "--model.init_args.objective", "mse"], "objective"),
        "unknown cell": ([*fit, "--model.init_args.drafter.init_args.cell", "lstm"], "residual"),
        "no rows": (["generate", "--checkpoint", "x", "--prompt", "hi", "--batch_size", "0"], "batch_size"),
        "distill without data": (
            ["distill", "--data", str(tmp_path / "x.json"), "--out", str(tmp_path / "o")],
            "x.json",
        ),
        "inspect nothing": (["inspect"], "--config"),
    }


def ask(heads, capsys, *flags: str) -> tuple[int, str, str]:
    status = run.main(["generate", "--checkpoint", str(heads), "--max_new_tokens", "12", "--prompt", "Hello!", *flags])
    told = capsys.readouterr()
    return status, told.out, told.err


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--tree", "mc_sim_7b_64"], "mc_sim_7b_63"),
        (["--tree", "[[0], [0"], "JSON"),
        (["--tree", "[[1, 0]]"], "parent"),
        (["--tree", '{"width": 2, "depth": 3, "budget": 99}'], "budget"),
        (["--tree", "[[0],[0,0],[0,0,0],[0,0,0,0],[0,0,0,0,0]]"], "4 heads"),
        (["--prompt", "many words " * 2000], "context"),
        (["--temperature", "-0.5"], "temperature"),
        (["--posterior_threshold", "0.1"], "temperature"),
        (["--top_k", "-3"], "top_k"),
    ],
)
def test_bad_decoding_settings_get_one_line(heads, capsys, flags, named):
    status, out, told = ask(heads, capsys, *flags)
    assert (status, out) == (2, "") and told.startswith("error: ") and told.count("\n") == 1 and named in told


def test_generate_draws_by_seed_whatever_the_tree(heads, capsys):
    def text(*flags: str) -> list[int]:
        status, out, _ = ask(heads, capsys, "--json", "--temperature", "0.9", "--top_p", "0.95", *flags)
        assert status == 0
        return json.loads(out)["token_ids"]

    plain = text("--plain")
    assert plain == text() == text("--tree", "mc_sim_7b_63") == text("--tree", '{"width": 3, "depth": 4, "budget": 12}')
    assert text("--seed", "1") != plain
    status, out, _ = ask(heads, capsys, "--json", "--prompt", "Hello!", "What is 3 plus 4?", "Hello!")
    answers = [json.loads(line)["token_ids"] for line in out.splitlines()]
    assert status == 0 and len(answers) == 3 and answers[0] == answers[2] != answers[1]


def test_tune_is_found_by_every_command_and_goes_with_new_heads(heads, capsys):
    from mhc.checkpoints.heads_folder import load_drafter, save_drafter
    from mhc.trees.shapes import FixedTree

    assert run.main(["tune", "--checkpoint", str(heads), "--prompts", "3", "--max_new_tokens", "16"]) == 0
    assert "plain decoding" in capsys.readouterr().out
    found = json.loads((heads / "tree.json").read_text())
    assert (heads / "tree.png").stat().st_size > 10_000
    drafter, tree = load_drafter(heads)
    assert tree.describe() == found["tree"] and {"machine", "versions", "points", "speedup"} <= set(found)
    plain = ask(heads, capsys, "--json", "--plain")[1], ask(heads, capsys, "--json")[1]
    assert len({str(json.loads(out)["token_ids"]) for out in plain}) == 1
    (heads / "tree.json").write_text('{"tree": ')
    assert ask(heads, capsys)[0] == 2
    save_drafter(heads, drafter, FixedTree.chain(4))
    assert not (heads / "tree.json").exists()


@pytest.mark.parametrize("mistake", mistakes(Path("/tmp")))
def test_mistakes_get_one_line_and_status_2(tmp_path, capsys, mistake):
    arguments, named = mistakes(tmp_path)[mistake]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    status = run.main(arguments)
    told = capsys.readouterr().err
    assert status == 2, told
    assert told.startswith("error: ") and told.count("\n") == 1 and named in told and "Traceback" not in told
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert before == after


def test_help_is_quick_and_imports_nothing_heavy():
    code = "import run, sys; run.main(['--help']); assert 'torch' not in sys.modules and 'lightning' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(verb in told.stdout for verb in run.LIGHTNING + run.COMMANDS)


@pytest.mark.parametrize("verb", run.COMMANDS)
def test_every_command_explains_itself_without_torch(verb):
    code = f"import run, sys\ntry:\n run.main(['{verb}', '--help'])\nfinally:\n assert 'torch' not in sys.modules"
    told = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0 and f"run.py {verb}" in told.stdout


CONFIGS = [path for path in sorted(ROOT.glob("configs/**/*.yaml")) if path.parent.name != "sweeps"]  # see test_sweep.py


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_config_is_yaml_with_known_sections(path):
    assert set(yaml.safe_load(path.read_text())) <= {"trainer", "model", "data", "seed_everything"}


def composed(*files: str) -> dict:
    """quickstart.yaml and these files of configs/, as `fit` reads them."""
    chosen = [part for file in files for part in ("--config", str(ROOT / "configs" / f"{file}.yaml"))]
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit):
        run.main(["fit", "--config", str(ROOT / "configs/quickstart.yaml"), *chosen, "--print_config"])
    return yaml.safe_load(told.getvalue())


def names_of(group: str) -> list[str]:
    return sorted(f"{group}/{path.stem}" for path in (ROOT / "configs" / group).glob("*.yaml"))


@pytest.mark.parametrize("number", range(5))
def test_backbones_compose_with_drafters_and_trainers(number):
    """Each backbone, each drafter and each trainer at least once; what the files say holds together."""
    backbone, drafters, trainers = names_of("backbone")[number], names_of("drafter"), names_of("trainer")
    for trainer in trainers[number::5]:
        drafter = drafters[number % len(drafters)]
        found = composed(backbone, drafter, trainer)
        model = found["model"]["init_args"]
        expected = yaml.safe_load((ROOT / f"configs/{backbone}.yaml").read_text())["model"]["init_args"]["backbone"]
        assert model["backbone"] == expected and model["dtype"] == "bfloat16"
        assert model["drafter"]["class_path"].rpartition(".")[2].lower() == drafter.partition("/")[2]
        assert found["data"]["init_args"]["max_length"] == 2048
        card = trainer == "trainer/one-24gb"
        assert (model["quantize"], found["data"]["init_args"]["batch_size"]) == (("int8", 1) if card else (None, 8))
