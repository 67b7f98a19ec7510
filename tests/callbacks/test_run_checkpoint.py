"""A run that is stopped and goes on ends with the log, the rows and the heads of one that was not."""

import json
import random
import resource
import shutil
import signal
from functools import cache
from hashlib import sha256

import pytest
import torch
from safetensors.torch import load_file

from mhc.checkpoints.training_file import CheckpointFiles, newest_whole, previous
from tests.helpers.killed_runs import (
    COMPARED,
    differences,
    fitting,
    language_modelling,
    log_lines,
    run,
    tiny_model,
    trained_rows,
)

CASES = {
    "epochs": (fitting, []),
    # validated while gradients are accumulated, workers that read ahead, packed rows, epochs whose end is not validated
    "accumulation": (
        fitting,
        [
            *("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "7", "--data.workers", "2"),
            *("--trainer.max_epochs", "2"),
            *("--checkpoint.every_n_steps", "2", "--data.pack", "true", "--data.max_length", "48"),
            *("--data.batch_size", "2"),
        ],
    ),
    "steps": (
        fitting,
        [
            *("--trainer.max_epochs", "-1", "--trainer.max_steps", "19", "--trainer.check_val_every_n_epoch", "null"),
            *("--trainer.val_check_interval", "7", "--trainer.limit_train_batches", "6"),
            *("--checkpoint.every_n_steps", "1", "--config", "configs/drafter/diffusion.yaml"),
        ],
    ),
    "language model": (language_modelling, []),
}
LAST = ["--ckpt_path", "last"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def command(folder):
    """Gives the arguments of a case in a folder."""
    model = tiny_model(folder)
    hashes = {path.name: sha256(path.read_bytes()).hexdigest() for path in model[0].iterdir()}
    (folder / "hashes.json").write_text(json.dumps(hashes))
    return lambda case, where, *more: CASES[case][0](*model, where, *CASES[case][1], *more)


@pytest.fixture(scope="module")
def undisturbed(folder, command):
    """Gives the folder of a case's run that nobody stopped."""

    @cache
    def get(case):
        where = folder / case.replace(" ", "_")
        assert run(command(case, where), where, fresh=False) == 0, where.with_suffix(".txt").read_text()
        return where

    return get


def steps_of(where) -> int:
    """The optimizer steps that a resumed run would go on behind; 0 where nothing is kept."""
    if not list(where.glob("last*.ckpt")):
        return 0
    return CheckpointFiles().load_checkpoint(newest_whole(where / "last.ckpt"))["global_step"]


@pytest.mark.parametrize("case", CASES)
def test_killed_runs_end_like_undisturbed_ones(undisturbed, command, tmp_path, case):
    where, resume, steps = tmp_path / "killed", [], steps_of(undisturbed(case))
    assert sum(trained_rows(undisturbed(case)).values()) > steps > 8
    for step in sorted(random.sample(range(4, 2 * steps // 3), 2)):
        assert run(command(case, where, *resume), where, step, fresh=False) == -signal.SIGKILL
        assert steps_of(where) >= step - 8  # an interval, or two where it was killed while writing
        resume = LAST
    assert run(command(case, where, *resume), where, fresh=False) == 0, where.with_suffix(".txt").read_text()
    assert differences(undisturbed(case), where) == dict.fromkeys(COMPARED, 0)
    assert len(list(where.glob("*.ckpt"))) >= 2 and len(list(where.glob("logs/version_*"))) == 3


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_runs_save_where_they_stand(undisturbed, command, tmp_path, how):
    where, rarely = tmp_path / "interrupted", ["--checkpoint.every_n_steps", "1000"]
    assert run(command("epochs", where, *rarely), where, 5, fresh=False, how=how) not in (0, -signal.SIGKILL)
    if how == signal.SIGTERM:  # an interrupt between two batches finds nothing to save
        assert steps_of(where) > 4
    assert run(command("epochs", where, *LAST), where, fresh=False) == 0, where.with_suffix(".txt").read_text()
    assert differences(undisturbed("epochs"), where) == dict.fromkeys(COMPARED, 0)


def test_a_damaged_checkpoint_costs_an_interval(undisturbed, command, tmp_path):
    where, resume = tmp_path / "damaged", []
    last = where / "last.ckpt"
    while not (last.exists() and previous(last).exists()):  # a kill may come between the two renames of a save
        run(command("epochs", where, *resume), where, 12, fresh=False)
        resume = LAST
    before = CheckpointFiles().load_checkpoint(previous(last))["global_step"]
    data = bytearray(last.read_bytes())
    data[len(data) // 2] ^= 4
    last.write_bytes(data)
    assert run(command("epochs", where, "--ckpt_path", str(last)), where, fresh=False) == 2  # asked for this one
    told = where.with_suffix(".txt")
    assert "error: " in told.read_text() and "damaged" in told.read_text()
    told.unlink()
    assert run(command("epochs", where, *LAST), where, fresh=False) == 0
    assert "warning: " in told.read_text() and "last.previous.ckpt" in told.read_text() and before > 0
    assert differences(undisturbed("epochs"), where) == dict.fromkeys(COMPARED, 0)


def test_a_full_disk_leaves_the_checkpoint_before(command, tmp_path):
    where = tmp_path / "full"
    run(command("epochs", where), where, 7, fresh=False)
    kept = {path.name: path.read_bytes() for path in where.glob("*.ckpt")}
    limit = len(kept["last.ckpt"]) // 2
    full = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))  # noqa: E731
    where.with_suffix(".txt").unlink()
    assert run(command("epochs", where, *LAST), where, fresh=False, before=full) == 2
    errors = [line for line in where.with_suffix(".txt").read_text().splitlines() if "error" in line.lower()]
    assert len(errors) == 1 and "last.ckpt" in errors[0] and errors[0].startswith("error: cannot write")
    assert {path.name: path.read_bytes() for path in where.glob("*.ckpt")} == kept


def test_stopped_before_the_first_checkpoint_it_starts_again(command, tmp_path):
    where, rarely = tmp_path / "early", ["--checkpoint.every_n_steps", "1000"]
    run(command("epochs", where, *rarely), where, 2, fresh=False)
    assert not list(where.glob("*.ckpt"))
    assert run(command("epochs", where, *LAST, "--trainer.max_steps", "1"), where, fresh=False) == 0
    assert "starting from the beginning" in where.with_suffix(".txt").read_text() and steps_of(where) == 1


def test_mistakes_get_one_line_and_lose_nothing(undisturbed, command, tmp_path):
    where = tmp_path / "run"
    shutil.copytree(undisturbed("epochs"), where)
    previous(where / "last.ckpt").rename(where / "last.ckpt")  # the last one stands at the end of an epoch
    kept = {path: path.read_bytes() for path in where.glob("*.ckpt")}
    told = where.with_suffix(".txt")
    more = [*LAST, "--trainer.max_epochs", "4"]
    for wrong, named in (
        ([], "--checkpoint.overwrite"),
        (["--ckpt_path", str(undisturbed("epochs") / "last.ckpt")], "--checkpoint.overwrite"),  # another run's
        ([*more, "--data.batch_size", "8"], "rows of a global batch: 4, now 8"),
        ([*more, "--data.seed", "8"], "data.seed: 0, now 8"),
        ([*more, "--data.max_length", "40"], "their lengths"),
        (["--checkpoint.every_n_steps", "0"], "every_n_steps"),
    ):
        assert run(command("epochs", where, *wrong), where, fresh=False) == 2
        (error,) = [line for line in told.read_text().splitlines() if line.startswith("error")]
        assert named in error
        told.unlink()
        assert {path: path.read_bytes() for path in where.glob("*.ckpt")} == kept
    (where / "last.ckpt").rename(tmp_path / "elsewhere.ckpt")
    (where / "last.ckpt").symlink_to(tmp_path / "elsewhere.ckpt")
    assert run(command("epochs", where, *LAST), where, fresh=False) == 2
    assert "out of its folder" in told.read_text()


def test_a_checkpoint_from_elsewhere_goes_on_with_a_log_of_its_own(undisturbed, command, tmp_path):
    where, other = tmp_path / "branched", ["--ckpt_path", str(undisturbed("epochs") / "last.ckpt")]
    shutil.copytree(undisturbed("epochs") / "logs", where / "logs")  # where the other run's would be
    more = ["--trainer.max_epochs", "4", "--checkpoint.overwrite", "true"]
    assert run(command("epochs", where, *other, *more), where, fresh=False) == 0, where.with_suffix(".txt").read_text()
    before = steps_of(undisturbed("epochs"))
    assert steps_of(where) > before and int(log_lines(where)[0]["step"]) == before


def test_checkpoints_hold_no_backbone_and_leave_it_alone(undisturbed, folder):
    weights = load_file(folder / "backbone" / "model.safetensors")
    pieces = [tensor.flatten()[:16].numpy().tobytes() for tensor in weights.values() if tensor.ndim > 1]
    before = json.loads((folder / "hashes.json").read_text())
    assert {p.name: sha256(p.read_bytes()).hexdigest() for p in (folder / "backbone").iterdir()} == before
    for path in undisturbed("epochs").glob("*.ckpt"):
        names = CheckpointFiles().load_checkpoint(path)["state_dict"]
        assert names and all(name.startswith("drafter.") for name in names)
        assert not any(piece in path.read_bytes() for piece in pieces)
    heads = load_file(undisturbed("epochs") / "drafter.safetensors")
    assert not any(torch.equal(head, tensor) for head in heads.values() for tensor in weights.values())
