"""A resumed run that is told something else: each setting is used and said, or refused."""

import json
from pathlib import Path

import pytest
import yaml

import run
from mhc.checkpoints.settings import CALL, DECIDED, compare, flat, named
from mhc.cli import PARSING, ParsedCLI
from mhc.errors import UserError
from tests.helpers.runs import CASCADE, COMMON, small, sums

SAME = "--trainer.max_epochs=1"
STOPPING = {
    "class_path": "lightning.pytorch.callbacks.EarlyStopping",
    "init_args": {"monitor": "val/loss", "patience": 3},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, and the flags that made it."""
    folder = tmp_path_factory.mktemp("resumed")
    flags = [
        "fit",
        *COMMON,
        *CASCADE,
        *small(folder / "run", sums(folder)),
        "--trainer.callbacks+",
        json.dumps(STOPPING),
    ]
    assert run.main(flags) == 0
    return flags, (folder / "run" / "last.ckpt").read_bytes()


@pytest.mark.parametrize(
    "flag",
    ["--trainer.accumulate_grad_batches=2", "--model.learning_rate=0.5", "--model.weight_decay=0.7", "--model.warmup=0.5",
     "--seed_everything=5"],
)  # fmt: skip
def test_what_the_checkpoint_decides_is_refused(trained, flag, capsys):
    flags, checkpoint = trained
    capsys.readouterr()
    assert run.main([*flags, "--ckpt_path", "last", SAME, flag]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    name, value = flag.removeprefix("--").split("=")
    assert name.rpartition(".")[2] in told and value in told and "start over" in told
    assert checkpoint == _last(flags).read_bytes(), "nothing was lost"


@pytest.mark.parametrize(
    "flag",
    [
        "--model.objective=kl",
        "--trainer.gradient_clip_val=0.3",
        "--trainer.log_every_n_steps=3",
        "--model.head_weight=0.5",
    ],
)
def test_what_is_used_is_said(trained, flag, capsys):
    flags, checkpoint = trained
    _last(flags).write_bytes(checkpoint)
    capsys.readouterr()
    assert run.main([*flags, "--ckpt_path", "last", "--trainer.max_epochs=2", flag]) == 0
    name, value = flag.removeprefix("--").split("=")
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("resuming with other settings")]
    assert f"{name.rpartition('.')[2]} " in told and value in told and "trainer.max_epochs 2 (was 1)" in told


def test_the_same_settings_say_nothing(trained, capsys):
    flags, checkpoint = trained
    _last(flags).write_bytes(checkpoint)
    capsys.readouterr()
    assert run.main([*flags, "--ckpt_path", "last"]) == 0
    assert "resuming" not in capsys.readouterr().err


def _last(flags):
    return Path(flags[flags.index("--trainer.default_root_dir") + 1]) / "last.ckpt"


def test_no_setting_is_silent():
    """Of every setting that `fit` has, another value is refused or said, unless it is about the call alone."""
    cli = ParsedCLI([flag for flag in [*COMMON, *CASCADE] if flag != "fit"], {})
    settings = flat(yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)))
    assert len(settings) > 60 and PARSING
    for name in settings:
        other = settings | {name: "something else"}
        if named(name, DECIDED):
            with pytest.raises(UserError, match="other settings, which it brings back"):
                compare(settings, other, {})
        elif name == "trainer.callbacks":
            assert name in compare(settings, settings | {name: [STOPPING]}, {})
        else:
            assert name in compare(settings, other, {})
    silent = {name for name in vars(cli.config.as_flat()) if not any(name.startswith(known) for known in settings)}
    assert all(named(name, CALL) for name in silent), silent
    assert compare(settings, dict(settings), {}) is None


def test_another_figure_to_choose_the_best_by_is_refused():
    kind = "callbacks.DrafterCheckpoint"
    before, now = (
        {"trainer.callbacks": [{"class_path": kind, "init_args": {"monitor": figure}}]}
        for figure in ("val/loss", "val/top1")
    )
    with pytest.raises(UserError, match=r"DrafterCheckpoint\.monitor was val/loss and is val/top1"):
        compare(before, now, {"DrafterCheckpoint": {"best": 1.0}})


def test_an_argument_that_a_callbacks_own_state_overrules_is_refused():
    before, now = ({"trainer.callbacks": [STOPPING | {"init_args": {"patience": count}}]} for count in (3, 5))
    with pytest.raises(UserError, match=r"EarlyStopping\.patience was 3 and is 5"):
        compare(before, now, {"EarlyStopping": {"patience": 3, "wait_count": 0}})
    assert "trainer.callbacks" in compare(before, {"trainer.callbacks": None}, {"EarlyStopping": {"patience": 3}})
