"""`run.py lm` from end to end on a tiny model and corpus: every stage writes its result, the report has each, and a second call
repeats nothing."""

import json

import pytest
import yaml

import run as cli
from mhc.corpus.stages import write

COUNTS = {"pretrain": 300, "chats": 300, "preferences": 120, "reasoning": 10}


@pytest.fixture
def arguments(tmp_path):
    write(tmp_path / "data", COUNTS)
    sizes = dict(model_type="llama", vocab_size=400, hidden_size=32, intermediate_size=48, num_hidden_layers=4)
    model = {
        "class_path": "mhc.lm.module.LMModule",
        "init_args": {"model": sizes | {"num_attention_heads": 4, "tie_word_embeddings": True}},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"model": model}))
    return [
        *("lm", "--out", str(tmp_path / "out"), "--data", str(tmp_path / "data"), "--vocabulary", "400"),
        *("--model", str(tmp_path / "tiny.yaml"), "--answers", "120", "--trainer", "cpu"),
    ]


@pytest.mark.timeout(600)
def test_all_stages_and_a_second_call(arguments, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("mhc.commands.lm.shutil.which", lambda name: None)  # compiling takes longer than all the rest
    monkeypatch.setattr("mhc.commands.lm.LONGEST", 8)  # what knows nothing never stops by itself
    assert cli.main(arguments) == 0, capfd.readouterr().out[-3000:]
    out = tmp_path / "out"
    told = capfd.readouterr().out
    report = json.loads((out / "report.json").read_text())
    assert report["pretrain"]["5gram_loss"] < report["pretrain"]["unigram_loss"] < 6.5
    assert 0 <= report["sft"]["well_formed_share"] <= 1 and report["dpo"]["pairs"] > 0
    assert report["heads"]["identical"] == report["heads"]["prompts"]
    assert len(report["answers"]) > 2 and {"prompt", "pretrain", "sft", "dpo"} == set(report["answers"][0])
    assert (out / "losses.png").stat().st_size > 10_000 and "| dpo |" in (out / "report.md").read_text()
    assert "standard errors" in told and "tokens per step" in told
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/training.json")}
    assert len(stamps) == 4
    assert cli.main(arguments) == 0
    assert stamps == {path: path.stat().st_mtime_ns for path in out.glob("*/training.json")}
    assert "pretrain: the next token of plain texts: done" in " ".join(capfd.readouterr().out.split())
    assert cli.main([*arguments[:-2], "--vocabulary", "500"]) == 2
    assert "vocabulary" in capfd.readouterr().err


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--data", "{there}"], "pretrain.jsonl"),
        (["--model", "no.yaml"], "no.yaml"),
        (["--answers", "0"], "--answers"),
        (["--trainer", "tpu"], "tpu"),
    ],
)
def test_bad_input_gets_one_line_and_status_2(tmp_path, capsys, flags, named):
    flags = [flag.format(there=tmp_path) for flag in flags]
    assert cli.main(["lm", "--out", str(tmp_path / "out"), *flags]) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ") and told.count("\n") == 1 and named in told
    assert not (tmp_path / "out").exists()
