"""`run.py inspect` on a file and on a config."""

import json
import subprocess
import sys

import pytest

from mhc.commands.inspect import main
from mhc.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    made = tmp_path_factory.mktemp("inspect")
    tokenizer.save_pretrained(made / "backbone")
    rows = [{"question": f"how [b]many {i}", "answer": "four <|im_end|>"} for i in range(200)] + [{"question": "?"}]
    (made / "data.json").write_text(json.dumps(rows))
    (made / "model.yaml").write_text(f"model:\n  init_args:\n    backbone: {made / 'backbone'}\n")
    (made / "data.yaml").write_text(f"data:\n  path: {made / 'data.json'}\n  max_length: 300\n")
    return made


def test_a_file(folder, capsys):
    assert main(["--data", str(folder / "data.json"), "--backbone", str(folder / "backbone")]) == 0
    shown = capsys.readouterr().out
    assert "splits: train 18" in shown and "0 conversations (0%) cut at 512 tokens" in shown
    assert "question (200)" in shown and "201 rows read, 200 kept" in shown and "data.json:201" in shown
    assert "<|im_start|>assistant\n[[four <|im_end|><|im_end|>]]\n" in shown
    assert "how [b]many" in shown and "[[brackets]]: learned" in shown


def test_configs_are_merged(folder, capsys):
    over = folder / "over.yaml"
    over.write_text("data:\n  class_path: datamodules.ConversationData\n  init_args:\n    path: DATA\n")
    over.write_text(over.read_text().replace("DATA", str(folder / "data.json")))
    arguments = ["--config", str(folder / "model.yaml"), "--split", "test", "--index", "1"]
    assert main([*arguments, "--config", str(folder / "data.yaml")]) == 0
    first = capsys.readouterr().out
    assert "cut at 300" in first and "test row 1" in first
    assert main([*arguments, "--config", str(folder / "data.yaml"), "--max_length", "40"]) == 0
    assert "cut at 40" in capsys.readouterr().out
    assert main([*arguments, "--config", str(over)]) == 0
    assert "cut at 512" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, message",
    [
        ("data: {path: x, batchsize: 3}", r"'batchsize': did you mean batch_size"),
        ("data: {path: nowhere.json}", "nowhere.json does not exist"),
        ("data: [1]", "data.*class_path"),
        ("data: {path: '${nothing.here}'}", "nothing.here"),
        ("data: {class_path: datamodules.Text}", "datamodules has no 'Text'"),
        ("trainer: {}", "no data section"),
        ("data: {path: [", "is not valid YAML"),
    ],
)
def test_bad_configs(folder, tmp_path, text, message):
    bad = tmp_path / "bad.yaml"
    bad.write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        main(["--config", str(folder / "model.yaml"), "--config", str(bad)])
    assert "\n" not in str(caught.value)


def test_bad_arguments(folder):
    data = ["--data", str(folder / "data.json")]
    for arguments, message in [
        ([], "either --config"),
        (data, "no backbone"),
        ([*data, "--backbone", str(folder / "backbone"), "--index", "999"], "no row 999"),
        (["--config", "nowhere.yaml"], "nowhere.yaml' cannot be read"),
    ]:
        with pytest.raises(UserError, match=message):
            main(arguments)


def test_prompts_alone_are_counted_before_the_error(folder, tmp_path, capsys):
    (tmp_path / "x.jsonl").write_text('{"turns": ["a?", "b?"]}\n' * 3)
    with pytest.raises(UserError, match="distill"):
        main(["--data", str(tmp_path), "--backbone", str(folder / "backbone")])
    assert "3 rows read, 0 kept\n  dropped 3: no answer" in capsys.readouterr().out


def test_help_needs_no_torch():
    code = (
        "import sys, mhc.commands.inspect as c\n"
        "try: c.main(['--help'])\nexcept SystemExit: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--backbone" in shown and shown.endswith("False\n")
