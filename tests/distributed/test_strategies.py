"""Two processes under every strategy: one process's losses, one checkpoint format, a backbone that nothing touches.

The processes run tests/helpers/strategy_runs.py; what they left is looked at here. Tolerances: losses of about 20 within 1e-5
(sums over processes are taken in another order), whatever is read from a checkpoint bit for bit.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import run as cli
from mhc.checkpoints.training_file import CheckpointFiles
from tests.helpers.backbones import save_tiny_backbone
from tests.helpers.strategy_runs import ACCUMULATED, HALF, hash_of, run

ROOT = Path(__file__).parents[2]
STRATEGIES = ("ddp", "fsdp", "zero2", "zero3")
SHARDED = ("fsdp", "zero3")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder in which one process has trained, then two under each strategy, and one process's losses and figures."""
    folder = tmp_path_factory.mktemp("runs")
    save_tiny_backbone(folder / "backbone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one = {"second": run(folder, "whole", "auto"), "first": run(folder, "single", "auto", until=HALF)}
    command = [sys.executable, str(ROOT / "tests/helpers/strategy_runs.py"), str(folder), *STRATEGIES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, env=os.environ | THREADS)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder, one


THREADS = {"OMP_NUM_THREADS": "1"}


def read(folder: Path, name: str) -> dict:
    return CheckpointFiles().load_checkpoint(folder / f"{name}.ckpt")


def assert_same(one: dict, two: dict) -> None:
    """The same tensors and numbers under the same names."""
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, two[name])
        elif isinstance(value, torch.Tensor):
            assert value.dtype == two[name].dtype and torch.equal(value, two[name]), name
        else:
            assert value == two[name], name


@pytest.mark.parametrize("name", STRATEGIES)
def test_losses_and_validation_are_those_of_one_process(runs, name):
    """From the start and from one process's checkpoint; in one of the steps a process has nothing to learn from."""
    folder, one = runs
    two = json.loads((folder / f"{name}.json").read_text())
    assert two["first"]["losses"] == pytest.approx(one["first"]["losses"], abs=1e-5)
    assert two["second"]["losses"] == pytest.approx(one["second"]["losses"][HALF * ACCUMULATED :], abs=1e-5)
    assert two["first"]["val"] == pytest.approx(one["first"]["val"], abs=1e-5)
    assert two["second"]["val"] == pytest.approx(one["second"]["val"], abs=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_checkpoints_are_alike_whatever_the_strategy_and_the_number_of_processes(runs, name):
    """One process to two: what goes on is what was saved, and saved again it is the same file but for the callbacks'."""
    folder, _ = runs
    one, two = read(folder, "single-end"), read(folder, f"{name}-resumed-start")
    for part in ("state_dict", "lr_schedulers"):
        assert_same(dict(enumerate(one[part])) if isinstance(one[part], list) else one[part], _as_dict(two[part]))
    assert_same(one["optimizer_states"][0]["state"], two["optimizer_states"][0]["state"])
    assert one["optimizer_states"][0]["param_groups"] == two["optimizer_states"][0]["param_groups"]
    assert one.keys() == two.keys()
    assert set(two["optimizer_states"][0]["state"]) == set(two["state_dict"])


def _as_dict(part):
    return dict(enumerate(part)) if isinstance(part, list) else part


@pytest.mark.parametrize("name", STRATEGIES)
def test_one_process_goes_on_where_two_stopped(runs, name):
    """Two processes to one: the same heads and moments, and the losses of a run that was always one process's."""
    folder, one = runs
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = run(folder, f"{name}-alone", "auto", start=str(folder / f"{name}-end.ckpt"))
    two, alone = read(folder, f"{name}-end"), read(folder, f"{name}-alone-start")
    assert_same(two["state_dict"], alone["state_dict"])
    assert_same(two["optimizer_states"][0]["state"], alone["optimizer_states"][0]["state"])
    assert found["losses"] == pytest.approx(one["second"]["losses"][HALF * ACCUMULATED :], abs=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_only_heads_are_saved_and_only_heads_learn(runs, name):
    folder, one = runs
    two, saved = json.loads((folder / f"{name}.json").read_text()), read(folder, f"{name}-end")
    assert all(key.startswith("drafter.") for key in saved["state_dict"])
    heads = torch.load(folder / f"{name}-heads.pt", weights_only=True)  # as decoding gets them
    assert_same(heads, {key.removeprefix("drafter."): value for key, value in saved["state_dict"].items()})
    backbone = AutoModelForCausalLM.from_pretrained(folder / "backbone").state_dict()
    assert hash_of(backbone) == one["first"]["backbone"] == two["first"]["backbone"] == two["second"]["backbone"]
    written = (folder / f"{name}-end.ckpt").read_bytes()
    first = saved["state_dict"]["drafter.cells.0.squeeze.weight"]
    assert first.numpy().tobytes() in written
    assert not [key for key, tensor in backbone.items() if tensor.ndim > 1 and tensor[0].numpy().tobytes() in written]


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_backbone_is_split_where_it_shall_be(runs, name):
    folder, one = runs
    held = json.loads((folder / f"{name}.json").read_text())["first"]["held"]
    whole = one["first"]["held"]
    assert held == whole if name not in SHARDED else whole / 2 <= held < 0.51 * whole


@pytest.mark.parametrize(
    "file, absent, named",
    [("zero2", "deepspeed", "[deepspeed]"), ("zero3", "accelerate", "[deepspeed]"), ("fsdp", "accelerate", "[fsdp]")],
)
def test_a_missing_package_gets_one_line_and_status_2(monkeypatch, tmp_path, capsys, file, absent, named):
    monkeypatch.setattr("mhc.distributed.strategies.find_spec", lambda package: None if package == absent else object())
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # else a missing GPU comes first
    assert main_fit(tmp_path, "--config", str(ROOT / f"configs/trainer/{file}.yaml")) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and absent in told and named in told
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--trainer.strategy", "zeor3"], "fsdp.yaml"),
        (["--config", str(ROOT / "configs/trainer/zero3.yaml"), "--trainer.strategy.init_args.stage", "4"], "stage"),
        (["--trainer.strategy.class_path", "mhc.distributed.strategies.ZeROO"], "ZeROO"),
    ],
)
def test_an_unknown_strategy_gets_one_line_and_status_2(tmp_path, capsys, flags, named):
    assert main_fit(tmp_path, *flags) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and named in told
    assert not list(tmp_path.iterdir())


def main_fit(folder: Path, *flags: str) -> int:
    configs = (f"configs/{name}.yaml" for name in ("quickstart", "drafter/cascade", "trainer/cpu"))
    known = [part for config in configs for part in ("--config", str(ROOT / config))]
    return cli.main(["fit", *known, "--trainer.default_root_dir", str(folder), *flags])
