"""Sweeps: six trials of which one diverges, killed at any moment, and the same file in wandb's own hands.

Most trials are a small program of the test's own, which takes the flags that run.py takes and logs as CSVLogger does.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from matplotlib.colors import to_hex

import run
from mhc.errors import UserError
from mhc.sweeps.parallel_coordinates import FAILED_AT, RED, parallel_figure, spread
from mhc.sweeps.schema import Parameter, read_sweep, short_names
from mhc.sweeps.trials import only_runner, read_logged, run_trial
from tests.helpers.runs import sums

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "configs/sweeps").glob("*.yaml"))
PROGRAM = """
import os, sys, time
from pathlib import Path

flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word)
folder, rate, depth = Path(flags["trainer.default_root_dir"]), float(flags["rate"]), int(flags["depth"])
with open(folder.parent / f"{folder.name}.starts", "a") as starts:
    starts.write(str(os.getpid()) + chr(10))
if depth == int(flags.get("refused", -1)):
    sys.exit("error: no such depth")
if depth == int(flags.get("dying", -1)):
    os.kill(os.getpid(), 9)
version = len(list(folder.glob("logs/*")))
checkpoint = folder / "last.ckpt"
done = int(checkpoint.read_text()) if flags.get("ckpt_path") == "last" else 0
log = folder / "logs" / f"version_{version}" / "metrics.csv"
log.parent.mkdir(parents=True)
log.write_text("epoch,step,loss,val/score" + chr(10))
for step in range(done, 5):
    time.sleep(float(flags.get("pause", 0)))
    score = depth + rate * (10 - (step - 3) ** 2) / 100  # best at step 3, not at the end
    loss = float("nan") if rate * depth > 100 and step > 1 else 1 / (1 + step)
    with open(log, "a") as file:
        file.write(f"0,{step},{loss}," + chr(10) + f"0,{step},,{score}" + chr(10))
    if depth < 3:  # the deep ones cannot go on
        checkpoint.write_text(str(step + 1))
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with the program, which trials are started from."""
    (tmp_path / "train.py").write_text(PROGRAM)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sweep_file(folder: Path, *more: str, **changes) -> Path:
    """Six trials: 3 depths with 2 rates, of which one diverges."""
    told = {
        "program": "train.py",
        "name": "six",
        "method": "grid",
        "metric": {"name": "val/score", "goal": "maximize"},
        "parameters": {"rate": {"values": [1, 40.0]}, "depth": {"values": [1, 2, 3]}},
        "command": ["${env}", "${interpreter}", "${program}", *more, "${args}"],
    } | changes
    path = folder / "six.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in told.items() if value is not None}))
    return path


def results(out: Path) -> dict:
    """results.json without the times."""
    found = json.loads((out / "results.json").read_text())
    for record in found["results"]:
        assert record.pop("seconds") >= 0
    return found


def assert_six(found: dict) -> None:
    """The six trials, in the order of the grid: depth before rate, for names are sorted."""
    wanted = [{"depth": depth, "rate": rate} for depth in (1, 2, 3) for rate in (1, 40.0)]
    assert [record["parameters"] for record in found["results"]] == wanted
    assert [record["trial"] for record in found["results"]] == [1, 2, 3, 4, 5, 6]
    assert [record["state"] for record in found["results"]] == ["finished"] * 5 + ["failed"]
    values = [record["value"] for record in found["results"]]
    assert values[:5] == pytest.approx([1.1, 5, 2.1, 6, 3.1]) and values[5] is None
    assert found["results"][5]["reason"] == "diverged: loss is nan at step 4"
    assert (found["best"], found["trials"], found["goal"]) == (4, 6, "maximize")


def test_six_trials_of_which_one_diverges(here, capsys):
    out = here / "out"
    path = sweep_file(here)
    assert run.main(["sweep", str(path), "--out", str(out)]) == 0
    told = capsys.readouterr().out
    assert "trial 6 of 6" in told and "\ndepth 3, rate 40\n" in told and "best so far 6 (trial 4), about " in told
    assert "trial 6 failed: diverged: loss is nan at step 4" in told
    rows = [line.split() for line in told[told.rindex("best of each run") :].splitlines() if "s   " in line]
    assert [(row[0], row[3]) for row in rows] == [
        ("4", "6"), ("2", "5"), ("5", "3.1"), ("3", "2.1"), ("1", "1.1"), ("6", "failed"),
    ]  # fmt: skip
    assert [row[-1] == "<-" for row in rows] == [True] + 5 * [False]
    found = results(out)
    assert_six(found)
    table = (out / "results.md").read_text()
    assert (
        "| **4** | **2** | **40** | **6** |" in table
        and "| 6 | 3 | 40 | failed: diverged: loss is nan at step 4 |" in table
    )
    numbers = [line.split("|")[1].strip(" *") for line in table.splitlines() if line.startswith("|")][2:]
    assert numbers == ["4", "2", "5", "3", "1", "6"]
    assert (out / "parallel.png").read_bytes().startswith(b"\x89PNG") and (out / "parallel.png").stat().st_size > 30_000
    assert sorted(folder.name for folder in out.glob("trial-*/")) == [f"trial-00{n}" for n in range(1, 7)]
    # once more: nothing runs, everything is said again
    starts = {path: path.read_text() for path in out.glob("*.starts")}
    assert run.main(["sweep", str(path), "--out", str(out)]) == 0
    assert results(out) == found and {path: path.read_text() for path in out.glob("*.starts")} == starts
    assert all(len(text.splitlines()) == 1 for text in starts.values()) and len(starts) == 6


def test_the_picture_shows_every_trial(here):
    sweep = read_sweep(sweep_file(here))
    records = [
        {"trial": n, "parameters": settings, "value": None if n == 6 else float(n), "reason": None}
        for n, settings in enumerate(sweep.trials(None, 0), 1)
    ]
    axis = parallel_figure(sweep, records, 5).axes[0]
    lines = {line.get_label(): line for line in axis.patches if str(line.get_label()).startswith("trial")}
    assert sorted(lines) == [f"trial {n}" for n in range(1, 7)]
    heights = {label: line.get_path().vertices[::3, 1] for label, line in lines.items()}
    assert all(len(height) == 3 for height in heights.values())  # depth, rate, score
    assert [heights[f"trial {n}"][2] for n in (1, 2, 3, 4, 5)] == pytest.approx(
        [0.04 / 1.08 + k / 4 / 1.08 for k in range(5)]
    )
    for n, record in enumerate(records, 1):  # lines at one value stand side by side, around it
        assert heights[f"trial {n}"][0] == pytest.approx(
            {1: 1 / 6, 2: 1 / 2, 3: 5 / 6}[record["parameters"]["depth"]], abs=0.1
        )
        assert heights[f"trial {n}"][1] == pytest.approx({1: 1 / 4, 40.0: 3 / 4}[record["parameters"]["rate"]], abs=0.1)
    assert len({round(float(height[0]), 6) for height in heights.values()}) == 6
    failed = lines["trial 6"]
    assert (
        heights["trial 6"][2] == FAILED_AT
        and to_hex(failed.get_edgecolor()) == RED
        and failed.get_linestyle() != "solid"
    )
    colours = [to_hex(lines[f"trial {n}"].get_edgecolor()) for n in (1, 2, 3, 4, 5)]
    assert len(set(colours)) == 5 and RED not in colours
    widths = {label: line.get_linewidth() for label, line in lines.items()}
    assert max(widths, key=widths.get) == "trial 5"
    texts = [text.get_text() for text in axis.texts]
    assert {"depth", "rate", "val/score", "1", "2", "3", "40", "trial 5: 5", "failed: trial 6"} <= set(texts)
    for none in ([], records[5:]):  # nothing has finished yet
        assert len(parallel_figure(sweep, none, None).axes[0].patches) == len(none)


def test_logarithmic_axes_and_labels():
    from mhc.sweeps.parallel_coordinates import Scale

    scale = Scale(Parameter("rate", "log_uniform_values", low=1e-4, high=1e-2))
    assert [(round(height, 3), label) for height, label in scale.ticks()] == [
        (0, "0.0001"), (0.151, "0.0002"), (0.349, "0.0005"), (0.5, "0.001"), (0.651, "0.002"), (0.849, "0.005"), (1, "0.01"),
    ]  # fmt: skip
    assert spread([0.0, 0.5, 0.51, 0.52, 1.0], 0.1) == pytest.approx([0.0, 0.41, 0.51, 0.61, 1.0])
    assert short_names(["a.lr", "b.lr", "a.size"]) == {"a.lr": "a.lr", "b.lr": "b.lr", "a.size": "size"}


def start(path: Path, out: Path, here: Path) -> subprocess.Popen:
    """`run.py sweep` in a process group of its own."""
    (here / "told.txt").touch()
    with open(here / "told.txt", "ab") as told:
        command = [sys.executable, str(ROOT / "run.py"), "sweep", str(path), "--out", str(out)]
        return subprocess.Popen(command, cwd=here, stdout=told, stderr=told, start_new_session=True)


def recorded(out: Path) -> list[int]:
    path = out / "trials.jsonl"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line)["trial"] for line in text.splitlines(keepends=True) if line.endswith("\n")]


def started(out: Path) -> int:
    """How often a trial was started."""
    return sum(len(path.read_text().splitlines()) for path in out.glob("*.starts"))


def test_killed_at_any_moment_it_goes_on(here):
    """SIGKILL to the sweep alone (its trial lives on), to both, and Ctrl-C, until it is through."""
    out, path, chance = here / "out", sweep_file(here, "--pause=0.25"), random.Random(0)
    for way in 2 * ["sweep", "both", "interrupt"]:
        before, deadline = started(out), time.monotonic() + 60
        process = start(path, out, here)
        while started(out) == before:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        time.sleep(chance.random())  # a trial takes 1.25 s
        done = {n: (out / f"trial-00{n}.starts").read_text() for n in recorded(out)}
        if way == "both":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.send_signal(signal.SIGKILL if way == "sweep" else signal.SIGINT)
        assert process.wait(30) == (130 if way == "interrupt" else -signal.SIGKILL)
        assert all((out / f"trial-00{n}.starts").read_text() == text for n, text in done.items())
    assert start(path, out, here).wait(60) == 0
    told = (here / "told.txt").read_text()
    assert_six(results(out))
    assert sorted(recorded(out)) == [1, 2, 3, 4, 5, 6]
    assert "resuming" in told and "interrupted" in told and "still running: waiting for its end" in told
    assert "Traceback" not in told
    for n in (5, 6):  # without checkpoints: started anew in a clean folder
        assert [step for step, _ in read_logged(out / f"trial-00{n}")["val/score"]] == [0, 1, 2, 3, 4]


def test_a_torn_line_of_a_log_is_not_a_figure(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/metrics.csv").write_text("epoch,loss,step,val/score\n0,0.5,3,\n0,,3,2.75\n0,,4,0.0")
    assert read_logged(tmp_path) == {"loss": [(3, 0.5)], "val/score": [(3, 2.75)]}


def test_a_trial_whose_last_checkpoint_was_being_replaced_goes_on(tmp_path):
    """Killed between the two renames it has last.previous.ckpt alone."""
    folder = tmp_path / "trial-001"
    folder.mkdir()
    (folder / "last.previous.ckpt").write_text("of an hour of work")
    with only_runner(tmp_path, print) as lock:
        assert run_trial([sys.executable, "-c", "import sys; print(sys.argv[1:])"], folder, lock) == 0
    assert (folder / "last.previous.ckpt").exists() and "['--ckpt_path=last']" in (folder / "log.txt").read_text()


def test_failures_are_marked_and_the_sweep_goes_on(here, capsys):
    out, path = here / "out", sweep_file(here, "--refused=1", "--dying=3", metric={"name": "val/score"})
    assert run.main(["sweep", str(path), "--out", str(out)]) == 0
    found = results(out)
    assert [record["reason"] for record in found["results"]] == [
        "exit status 1: error: no such depth", "exit status 1: error: no such depth", None, None,
        "killed by SIGKILL", "killed by SIGKILL",
    ]  # fmt: skip
    assert (found["goal"], found["best"]) == ("minimize", 3)  # wandb's goal where none is given
    assert found["results"][2]["value"] == pytest.approx(2 + 0.01)  # at step 0, the lowest
    nothing = sweep_file(here, "--refused=1", parameters={"rate": {"value": 1}, "depth": {"values": [1]}})
    assert run.main(["sweep", str(nothing), "--out", str(here / "nothing")]) == 1
    assert "error: no such depth" in capsys.readouterr().out and results(here / "nothing")["best"] is None


def test_random_trials_hang_on_seed_and_number_alone(here):
    drawn = {
        "rate": {"distribution": "log_uniform_values", "min": 1.0e-4, "max": 1.0e-1},
        "depth": {"min": 1, "max": 3},
        "kind": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
        "share": {"min": 0.0, "max": 1.0},
        "size": {"distribution": "q_log_uniform_values", "min": 8, "max": 256, "q": 8},
        "still": {"value": True},
    }
    sweep = read_sweep(sweep_file(here, method="random", parameters=drawn, run_cap=4))
    many = sweep.trials(1000, 0)
    assert many[:4] == sweep.trials(None, 0) == sweep.trials(4, 0) != sweep.trials(4, 1)
    fewer = sweep_file(here, method="random", parameters={name: drawn[name] for name in ("size", "rate")}, run_cap=4)
    assert [trial["rate"] for trial in read_sweep(fewer).trials(None, 0)] == [trial["rate"] for trial in many[:4]]
    rates = sorted(trial["rate"] for trial in many)
    assert (
        1e-4 <= rates[0] < 1.1e-4 and 0.09 < rates[-1] < 0.1 and math.log10(rates[500]) == pytest.approx(-2.5, abs=0.15)
    )
    assert all(250 < sum(trial["depth"] == depth for trial in many) < 420 for depth in (1, 2, 3))
    assert 850 < sum(trial["kind"] == "a" for trial in many) < 950 and {trial["still"] for trial in many} == {True}
    assert {trial["size"] % 8 for trial in many} == {0} and all(type(trial["size"]) is int for trial in many)
    assert sum(trial["share"] for trial in many) / 1000 == pytest.approx(0.5, abs=0.03)
    path = sweep_file(here, method="random", parameters={name: drawn[name] for name in ("rate", "depth")})
    command = ["sweep", str(path), "--out", str(here / "out"), "--seed", "7"]
    assert run.main([*command, "--trials", "2"]) == 0
    first = results(here / "out")["results"]
    assert run.main([*command, "--trials", "3"]) == 0  # more of the same
    assert results(here / "out")["results"][:2] == first and results(here / "out")["trials"] == 3


MISTAKES = {
    "no such file": (None, "absent.yaml"),
    "no YAML": ("method: [grid", "not valid YAML"),
    "no mapping": ("- grid", "not a mapping"),
    "bayes": ({"method": "bayes"}, "`wandb agent` runs bayes"),
    "early_terminate": ({"early_terminate": {"type": "hyperband", "min_iter": 3}}, "early_terminate"),
    "no metric": ({"metric": None}, "metric must have a name"),
    "goal": ({"metric": {"name": "val/score", "goal": "more"}}, "maximize"),
    "no parameters": ({"parameters": {}}, "parameters"),
    "distribution": ({"parameters": {"rate": {"distribution": "beta", "a": 1}}}, "log_uniform_values"),
    "grid of a range": ({"parameters": {"rate": {"min": 0.0, "max": 1.0}}}, "`values`"),
    "text for a number": ({"parameters": {"rate": {"min": "1e-3", "max": 1}}, "method": "random"}, "1.0e-3"),
    "null": ({"parameters": {"rate": {"values": [None, 1]}}}, "null"),
    "upside down": ({"parameters": {"rate": {"min": 2, "max": 1}}}, "below max"),
    "nested": ({"parameters": {"model": {"parameters": {"rate": {"value": 1}}}}}, "dots"),
    "no args": ({"command": ["${program}"]}, "${args}"),
    "macro": ({"command": ["${program}", "${args_json}", "${args}"]}, "${args_json}"),
    "half heads": ({"parameters": {"rate": {"min": 1.5, "max": 2, "distribution": "int_uniform"}}}, "whole"),
    "interpreter": ({"command": ["no-such-python", "${program}", "${args}"]}, "no-such-python"),
    "program": ({"program": "absent.py"}, "absent.py"),
    "endless": ({"method": "random"}, "--trials"),
    "run_cap": ({"run_cap": 0}, "run_cap"),
    "never logged": ({"metric": {"name": "val/scores"}}, "it logged loss, val/score"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_get_one_line_and_status_2(here, capsys, mistake):
    given, named = MISTAKES[mistake]
    path = here / "absent.yaml"
    if isinstance(given, dict):
        path = sweep_file(here, **given)
    elif given:
        path = here / "given.yaml"
        path.write_text(given)
    assert run.main(["sweep", str(path), "--out", str(here / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and named in told, told


def test_a_folder_belongs_to_one_sweep(here, capsys):
    out = here / "out"
    values = {"rate": {"values": [1]}, "depth": {"values": [1, 2]}}
    assert run.main(["sweep", str(sweep_file(here, parameters=values)), "--out", str(out)]) == 0
    before = (out / "results.json").read_text()
    capsys.readouterr()
    others = {"rate": values["rate"], "depth": {"values": [1, 3]}}
    for changes, named in (
        ({"command": ["${interpreter}", "${program}", "${args}"]}, "command"),
        ({"parameters": others}, "depth: {'distribution': 'categorical', 'values': [1, 2]}"),
        ({"parameters": {"depth": values["depth"]}}, "rate"),
        ({"metric": {"name": "loss"}}, "metric"),
    ):
        path = sweep_file(here, **({"parameters": values} | changes))
        assert run.main(["sweep", str(path), "--out", str(out)]) == 2
        told = capsys.readouterr().err
        assert "other settings" in told and named in told and told.count("\n") == 1
    assert (out / "results.json").read_text() == before
    for asked in (["--out", str(here)], ["--trials", "0"]):
        assert run.main(["sweep", str(sweep_file(here)), *asked]) == 2
        assert capsys.readouterr().err.count("\n") == 1


# -- run.py's own training ---------------------------------------------------------------------------------------------


def real_sweep(folder: Path, **parameters) -> Path:
    """One of our sweep files, made small and given other parameters."""
    told = yaml.safe_load((ROOT / "configs/sweeps/optimizer.yaml").read_text())
    command = [part for part in told["command"] if not part.startswith("--data.limit")]
    small = [f"--data.path={sums(folder)}", "--data.batch_size=16", "--trainer.log_every_n_steps=2"]
    small += ["--trainer.callbacks.prompts=2", "--trainer.callbacks.max_new_tokens=8"]
    small += ["--config=configs/trainer/cpu.yaml"]
    told |= {"method": "grid", "command": [*command[:-1], *small, command[-1]]}
    told["parameters"] = {f"model.init_args.{name}": {"values": values} for name, values in parameters.items()}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump(told))
    return path


@pytest.mark.timeout(600)  # three processes that import torch, on a busy machine
def test_a_sweep_of_run_py_fit(tmp_path, monkeypatch):
    """Two trainings of the pocket's heads, of which one diverges."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path, out = real_sweep(tmp_path, learning_rate=[0.005, 1e30]), tmp_path / "out"
    assert run.main(["sweep", str(path), "--out", str(out)]) == 0
    found = results(out)
    assert found["best"] == 1 and found["results"][0]["value"] > 1
    assert "diverged: " in found["results"][1]["reason"] or "exit status" in found["results"][1]["reason"]
    kept = json.loads((out / "trial-001/drafter.json").read_text())["metrics"]
    assert found["results"][0]["value"] == pytest.approx(kept["val/tokens_per_step"])
    assert not (out / "trial-001/wandb").exists()


def test_an_unknown_flag_is_told_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    path = real_sweep(tmp_path, learning_rat=[1, 2])
    assert run.main(["sweep", str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "learning_rat" in said and not (tmp_path / "out").exists()


# -- wandb ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_run_py_takes_what_a_wandb_agent_passes(path, monkeypatch, capsys):
    """wandb's own code spells the command; run.py reads it, and our trials are started with the same words."""
    from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("WANDB_RUN_ID", "abc123")
    sweep = read_sweep(path)
    assert (sweep.metric, sweep.maximise) == ("val/tokens_per_step", True)
    for settings in sweep.trials(None, 0)[:: 1 if sweep.method == "grid" else 7]:
        words = create_sweep_command_args({"args": {name: {"value": value} for name, value in settings.items()}})
        filled = words | {"env": ["/usr/bin/env"], "interpreter": [sys.executable], "program": ["run.py"]}
        spelled = []  # as in wandb.wandb_agent.Agent._command_run
        for part in create_sweep_command(yaml.safe_load(path.read_text())["command"]):
            spelled += filled[part[2:-1]] if part.startswith("${") else [part]
        ours = sweep.arguments(settings, Path("folder"))
        assert ours == [w for w in spelled if "WandbLogger" not in w] + ["--trainer.default_root_dir=folder"]
    with pytest.raises(SystemExit) as end:
        run.main([*spelled[3:], "--print_config"])
    assert not end.value.code
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["trainer"]["default_root_dir"] == "runs/wandb/abc123"
    assert [logger["class_path"].split(".")[-1] for logger in config["trainer"]["logger"]] == [
        "CSVLogger",
        "WandbLogger",
    ]
    for name, value in settings.items():
        at = config
        parts = name.replace("data.batch_size", "data.init_args.batch_size").split(".")
        for part in parts:
            at = at[part]
        assert at == value


def test_a_wandb_agent_runs_the_file(here, monkeypatch):
    """The agent itself, told by a server to run a trial, starts the program with the trial's flags."""
    from wandb.wandb_agent import Agent

    monkeypatch.setenv("WANDB_DIR", str(here))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    path = sweep_file(here, "--trainer.default_root_dir=out/one")
    (here / "out").mkdir()
    agent = Agent(api=None, queue=None)
    agent._sweep_command = yaml.safe_load(path.read_text())["command"]
    (settings, *_) = read_sweep(path).trials(None, 0)
    arguments = {name: {"value": value} for name, value in settings.items()}
    agent._command_run({"type": "run", "run_id": "one", "program": "train.py", "args": arguments})
    monkeypatch.delenv("WANDB_RUN_ID")
    assert agent._run_processes["one"].wait() == 0
    assert max(score for _, score in read_logged(here / "out/one")["val/score"]) == pytest.approx(1.1)


@pytest.mark.filterwarnings("ignore")
def test_schema_of_wandb_itself(here):
    """`make test-extras`: wandb's own check has nothing against our files, refuses what we refuse, and draws alike."""
    sweeps = pytest.importorskip("sweeps", reason="wandb's schema is in its package `sweeps`: make test-extras")
    from sweeps.params import HyperParameter

    assert len(FILES) >= 3
    for path in [*FILES, sweep_file(here)]:
        assert sweeps.schema_violations_from_proposed_config(yaml.safe_load(path.read_text())) == []
    for mistake in ("run_cap", "upside down", "no parameters"):
        wrong = yaml.safe_load(sweep_file(here, **MISTAKES[mistake][0]).read_text())
        assert sweeps.schema_violations_from_proposed_config(wrong)
    for parameter, described in (
        (Parameter("x", "int_uniform", low=1, high=9), {"min": 1, "max": 9}),
        (Parameter("x", "uniform", low=0.0, high=0.5), {"min": 0.0, "max": 0.5}),
        (Parameter("x", "log_uniform_values", low=1e-4, high=0.1), {"min": 1e-4, "max": 0.1}),
        (Parameter("x", "q_uniform", low=0, high=0.2, step=0.05), {"min": 0, "max": 0.2, "q": 0.05}),
        (Parameter("x", "q_log_uniform_values", low=8, high=256, step=8), {"min": 8, "max": 256, "q": 8}),
        (Parameter("x", "categorical", ["a", "b", "c"]), {"values": ["a", "b", "c"]}),
    ):
        theirs = HyperParameter("x", described | {"distribution": parameter.distribution})
        for share in (0.013, 0.21, 0.5001, 0.777, 0.991):
            drawn = parameter.quantile(share)
            assert theirs.ppf(share) == (drawn if isinstance(drawn, str) else pytest.approx(drawn))


def test_the_file_is_refused_from_python_as_well(here):
    with pytest.raises(UserError, match="bayes"):
        read_sweep(sweep_file(here, method="bayes"))
