"""A run that is killed and goes on ends with the log, the rows and the heads of one that was not."""

import json
import random

import pytest

from tests.killed_runs import COMPARED, differences, fitting, run, tiny_model, trained_rows

CASES = {
    "epochs": [],
    # a validation while gradients are accumulated, workers that read ahead, epochs whose end is not validated
    "accumulation": [
        *("--trainer.accumulate_grad_batches", "3", "--trainer.val_check_interval", "4", "--data.workers", "2"),
        *("--trainer.max_epochs", "4", "--checkpoint.every_n_steps", "2", "--data.pack", "true"),
        *("--data.max_length", "48", "--data.batch_size", "2"),
    ],
    "steps": [
        *("--trainer.max_epochs", "-1", "--trainer.max_steps", "31", "--trainer.check_val_every_n_epoch", "null"),
        *(
            "--trainer.val_check_interval",
            "7",
            "--trainer.limit_train_batches",
            "11",
            "--checkpoint.every_n_steps",
            "1",
        ),
        *("--config", "configs/drafter/diffusion.yaml"),
    ],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize("case", CASES)
def test_killed_runs_end_like_undisturbed_ones(model, tmp_path, case):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert run(fitting(*model, whole, *CASES[case]), whole, fresh=False) == 0
    steps = json.loads((whole / "training.json").read_text())["steps"]
    assert sum(trained_rows(whole).values()) > steps > 12
    resume: list[str] = []
    for step in sorted(random.sample(range(5, steps - 1), 2)):
        run(fitting(*model, killed, *CASES[case], *resume), killed, kill_at=step, fresh=False)
        assert (killed / "last.ckpt").exists()
        resume = ["--ckpt_path", "last"]
    assert run(fitting(*model, killed, *CASES[case], *resume), killed, fresh=False) == 0
    assert differences(whole, killed) == dict.fromkeys(COMPARED, 0)
