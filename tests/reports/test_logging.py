"""What a run logs, and what it keeps to itself: secrets, and the network."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch

import run
from callbacks.training_cost import real_tokens
from datamodules import ConversationData
from mhc.backbone.model import Backbone
from mhc.backbone.packing import PADDING
from tests.helpers.runs import CASCADE, COMMON, ROOT, small, sums

KEY, OTHER = "planted1" * 6, "planted2" * 6  # of 48 characters; wandb wants 40 or more
WANDB = ["--config", str(ROOT / "configs/logger/wandb.yaml")]

# In every Python process of the run: whoever looks up a name or connects to anything but this machine is told on.
SPY = """
import os, sys
def spy(event, arguments):
    if event == "socket.connect":
        told = arguments[1]
        if isinstance(told, (str, bytes)) or told[0] in ("127.0.0.1", "::1", "localhost"):
            return
    elif event == "socket.getaddrinfo":
        told = arguments[0]
        if told in ("127.0.0.1", "::1", "localhost", None):
            return
    else:
        return
    with open(os.environ["SPY_REPORT"], "a") as file:
        print(event, told, file=file)
    raise OSError("the network is off limits")
sys.addaudithook(spy)
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run with Weights & Biases as the config group leaves it, one key in the environment and one read in the
    configuration: its folder and all it said."""
    folder = tmp_path_factory.mktemp("logging")
    (folder / "sitecustomize.py").write_text(SPY)
    secret = ["--trainer.logger.settings", '{"api_key": "${oc.env:MADE_UP}"}']
    flags = [
        *COMMON,
        *CASCADE,
        *WANDB,
        *small(folder / "run", sums(folder)),
        *secret,
        "--trainer.log_every_n_steps",
        "2",
    ]
    told = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), "fit", *flags],
        cwd=ROOT,
        env=os.environ
        | {"WANDB_API_KEY": KEY, "MADE_UP": OTHER, "SPY_REPORT": str(folder / "spied"), "HOME": str(folder)}
        | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stderr
    return folder, told.stdout + told.stderr


def test_secrets_are_neither_saved_nor_printed(ran):
    folder, told = ran
    files = [path for path in (folder / "run").rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.csv", "last.ckpt", "report.html"} <= {path.name for path in files}
    for secret in (KEY, OTHER):
        assert secret not in told
        assert not [path for path in files if secret.encode() in path.read_bytes()]
    (config,) = folder.glob("run/logs/*/config.yaml")
    assert "api_key: ${oc.env:MADE_UP}" in config.read_text()


def test_nothing_leaves_the_machine(ran):
    folder, _ = ran
    assert not (folder / "spied").exists(), (folder / "spied").read_text()
    (offline,) = folder.glob("run/wandb/offline-run-*/run-*.wandb")  # though `settings` alone would say online
    assert b"val/tokens_per_step" in offline.read_bytes()


def test_the_spy_sees_what_it_should(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(SPY)
    code = "import socket\ntry:\n socket.create_connection(('192.0.2.1', 80), 1)\nexcept OSError:\n pass"
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SPY_REPORT": str(tmp_path / "spied")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert "192.0.2.1" in (tmp_path / "spied").read_text()


def test_everything_is_logged(ran):
    folder, _ = ran
    (path,) = folder.glob("run/logs/*/metrics.csv")
    with path.open() as file:
        rows = list(csv.DictReader(file))
    trained, validated = ([row for row in rows if row[name]] for name in ("train/loss", "val/loss"))
    wanted = ["learning_rate", "gradient_norm", "tokens_per_second", "memory_mib"]
    wanted += [f"head{head}_{kind}" for head in range(5) for kind in ("loss", "top1")]
    assert len(trained) >= 2 and all(float(row[f"train/{name}"]) >= 0 for row in trained for name in wanted)
    assert validated[-1]["val/tokens_per_step"] and validated[-1]["val/head4_top1"]
    assert max(float(row["train/gradient_norm"]) for row in trained) > 1.0  # more than what it is clipped to
    cost = json.loads((folder / "run/training.json").read_text())
    data = ConversationData(str(folder / "sums.jsonl"), batch_size=16)
    data.tokenizer = Backbone.load("pocket").tokenizer
    assert cost["tokens"] == int(data.rows("train").lengths.sum())  # one epoch, no padding
    assert {"processor", "cores"} <= set(cost["machine"]) and {"torch", "mhc"} <= set(cost["versions"])


def test_padding_is_not_counted():
    ids = torch.tensor([[5, 0, 7, 0, 0], [1, 2, 3, 4, 0]])  # 0 is padding and a token
    mask = torch.tensor([[0, 0, 1, 1, 0], [0, 0, 1, 1, 1]], dtype=torch.bool)
    assert int(real_tokens({"ids": ids, "mask": mask}, pad_id=0)) == 4 + 5
    segments = torch.tensor([[0, 0, 1, PADDING, PADDING], [0, 1, 1, 2, 2]])
    assert int(real_tokens({"ids": ids, "mask": mask, "segments": segments}, pad_id=0)) == 3 + 5


@pytest.mark.parametrize("key, named", [(None, "nobody is logged in"), ("short", "refuses the login")])
def test_wandb_online_wants_a_login_before_anything_is_loaded(tmp_path, monkeypatch, capsys, key, named):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", key) if key else monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(Backbone, "load", lambda *_, **__: pytest.fail("the backbone was loaded"))
    flags = [*COMMON, *CASCADE, *WANDB, *small(tmp_path / "run", sums(tmp_path)), "--trainer.logger.offline", "false"]
    status = run.main(["fit", *flags])
    told = capsys.readouterr().err
    assert status == 2 and told.startswith("error: ") and told.count("\n") == 1 and named in told
    assert not (tmp_path / "run").exists()


def test_a_variable_that_is_not_set_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("NOT_THERE", raising=False)
    flags = [*COMMON, *CASCADE, "--trainer.default_root_dir", str(tmp_path / "run")]
    assert run.main(["fit", *flags, "--data.path", "${oc.env:NOT_THERE}"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "export NOT_THERE" in told


def test_print_config_and_errors_show_what_was_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MADE_UP", OTHER)
    flags = [*COMMON, *CASCADE, "--trainer.default_root_dir", str(tmp_path / "run"), "--data.path", "${oc.env:MADE_UP}"]
    with pytest.raises(SystemExit):
        run.main(["fit", *flags, "--print_config"])
    told = capsys.readouterr()
    assert "path: ${oc.env:MADE_UP}" in told.out and OTHER not in told.out + told.err
    assert run.main(["fit", *flags, "--trainer.max_epochs", "${oc.env:MADE_UP}"]) == 2
    told = capsys.readouterr()
    assert "max_epochs" in told.err and OTHER not in told.out + told.err


def test_wandb_composes_with_the_other_files_and_comes_second(tmp_path, monkeypatch, capsys):
    for files in (["quickstart.yaml", "drafter/medusa.yaml"], ["lm/pocket.yaml"]):
        chosen = [part for file in files for part in ("--config", str(ROOT / "configs" / file))]
        with pytest.raises(SystemExit):
            run.main(["fit", *chosen, *WANDB, "--print_config"])
        told = capsys.readouterr().out
        assert 0 < told.index("CSVLogger") < told.index("WandbLogger") and "offline: true" in told
