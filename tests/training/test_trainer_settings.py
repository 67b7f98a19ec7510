"""Settings of the trainer that cannot be: one clear line before anything is loaded, the same from `fit` and the dry run."""

import pytest
import torch

import run
from mhc.backbone.model import Backbone
from mhc.errors import UserError
from mhc.training.trainer_settings import Precision, precision_of, require_precision
from tests.helpers.runs import CASCADE, COMMON, ROOT, small

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
GPU = ["--config", str(ROOT / "configs/trainer/gpu.yaml")]
ZERO2 = ["--config", str(ROOT / "configs/trainer/zero2.yaml")]
CLASS = "--trainer.strategy.class_path"


def test_precisions_are_lightnings():
    for on_gpu in (False, True):
        assert {precision_of(told, on_gpu) for told in (None, 32, "32", "32-true")} == {Precision(None, F32)}
        assert {precision_of(told, on_gpu) for told in ("bf16", "bf16-mixed")} == {Precision(BF16, F32)}
        assert precision_of("bf16-true", on_gpu) == Precision(None, BF16)
        assert precision_of("16-true", on_gpu) == Precision(None, F16)
        assert precision_of("64-true", on_gpu) == Precision(None, torch.float64)
        assert {precision_of(told, on_gpu) for told in (16, "16-mixed")} == {Precision(F16 if on_gpu else BF16, F32)}


def test_a_backbone_goes_with_what_reads_it():
    """On a CPU every pair that passes was seen to train, and every other to end in a traceback."""
    passing = {
        (held, precision) for held in ("float32", "bfloat16", "float16") for precision in ("bf16-true", "64-true")
    }
    passing |= {("float32", precision) for precision in (None, "bf16-mixed", "16-mixed")}
    for held in ("float32", "bfloat16", "float16"):
        for precision in (None, "bf16-mixed", "16-mixed", "bf16-true", "64-true"):
            for on_gpu, low in ((False, "bf16-mixed 16-mixed"), (True, "bf16-mixed")):
                fits = (held, precision) in passing or (held == "bfloat16" and str(precision) in low.split())
                fits |= on_gpu and (held, precision) == ("float16", "16-mixed")
                if fits:
                    require_precision(held, precision, on_gpu)
                else:
                    with pytest.raises(UserError, match=held):
                        require_precision(held, precision, on_gpu)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--model.dtype", "bfloat16"], "--trainer.precision bf16-mixed"),
        (["--model.dtype", "float16", "--trainer.precision", "16-mixed"], "--model.dtype bfloat16"),
        (["--model.dtype", "bf16"], "Literal['float32', 'bfloat16', 'float16']. Got value: bf16"),
        (["--model.quantize", "int3"], "int3"),
        (ZERO2, "--dry_run 24"),
        ([CLASS, "lightning.pytorch.strategies.FSDPStrategy"], "fsdp.yaml"),
        ([CLASS, "lightning.pytorch.strategies.DeepSpeedStrategy"], "zero2.yaml"),
        (["--trainer.strategy", "deepspeed_stage_2"], "zero2.yaml"),
    ],
    ids=lambda value: value[-1].rpartition("/")[2] if isinstance(value, list) else None,
)
@pytest.mark.parametrize("more", [[], ["--dry_run"]], ids=["fit", "dry run"])
def test_what_cannot_be_is_one_line_before_anything_is_loaded(
    conversations,
    tmp_path,
    capsys,
    monkeypatch,
    flags,
    named,
    more,
):
    monkeypatch.setattr(Backbone, "load", lambda *_, **__: pytest.fail("loaded"))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run.main(["fit", *COMMON, *CASCADE, *small(tmp_path / "run", conversations), *flags, *more]) == 2
    told = capsys.readouterr().err.splitlines()[-1]  # DeepSpeed, imported, says a line of its own
    assert told.startswith("error: ") and named in told and len(told) < 400
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "flags, named",
    [
        (GPU, "cpu.yaml"),
        (["--trainer.devices", "0"], "devices"),
        (["--trainer.accelerator", "quux"], "quux"),
        (["--trainer.gradient_clip_algorithm", "x"], "norm"),
        (["--trainer.val_check_interval", "1000"], "val_check_interval"),
    ],
)
def test_what_lightning_refuses_is_one_line(conversations, tmp_path, capsys, monkeypatch, flags, named):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert run.main(["fit", *COMMON, *CASCADE, *small(tmp_path / "run", conversations), *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and named in told
    assert not list(tmp_path.rglob("*.ckpt"))


def test_lightnings_strategies_of_one_whole_backbone_are_taken(conversations, tmp_path, capsys):
    chosen = ["fit", *COMMON, *CASCADE, *small(tmp_path / "run", conversations), "--dry_run"]
    assert run.main([*chosen, CLASS, "lightning.pytorch.strategies.DDPStrategy", "--trainer.devices", "2"]) == 0
    assert "on each of 2 cpu (ddp)" in capsys.readouterr().out


def test_untrained_weights_are_told(conversations, tmp_path, capsys):
    assert run.main(["validate", *COMMON, *CASCADE, *small(tmp_path / "run", conversations)]) == 0
    told = capsys.readouterr().err
    assert told.startswith("warning: ") and told.count("\n") == 1 and "untrained" in told
