"""callbacks.Samples: tables that hold whatever a model says, one a validation, and a training that does not notice."""

import json

import pytest
from markdown_it import MarkdownIt

import run as cli
from callbacks import Samples
from callbacks.samples import as_markdown
from mhc.checkpoint_io import CheckpointFiles
from mhc.errors import UserError
from tests.killed_runs import language_modelling, log_lines, tensors, tiny_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("samples"))


def test_a_table_a_validation_and_the_same_training(model, tmp_path):
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    assert cli.main(language_modelling(*model, alone)) == 0
    more = ["--trainer.callbacks+=callbacks.Samples", "--trainer.callbacks.prompts", "2"]
    assert cli.main(language_modelling(*model, watched, *more, "--trainer.callbacks.max_new_tokens", "5")) == 0
    assert log_lines(alone) == log_lines(watched)
    one, two = (tensors(CheckpointFiles().load_checkpoint(at / "last.ckpt")) for at in (alone, watched))
    assert all(one[name].equal(two[name]) for name in one)
    told = json.loads((watched / "samples.json").read_text())
    assert list(told) == ["5", "10", "15"] and all(len(rows) == 2 for rows in told.values())
    assert told["5"][0][0] == told["15"][0][0] and "What is" in told["5"][0][0]
    page = (watched / "samples.md").read_text()
    assert page.index("## Step 15") < page.index("## Step 5")
    assert "What it says, step 15" in (watched / "report.html").read_text()


def test_a_run_that_goes_on_writes_no_step_twice(model, tmp_path):
    where = tmp_path / "run"
    more = ["--trainer.callbacks+=callbacks.Samples", "--trainer.callbacks.prompts", "2"]
    command = language_modelling(*model, where, *more, "--trainer.callbacks.max_new_tokens", "5")
    short = [*command, "--trainer.max_steps", "12"]
    assert cli.main(short) == 0
    before = json.loads((where / "samples.json").read_text())
    told = {**before, "11": [["half", "done"]], "99": [["from", "elsewhere"]]}
    (where / "samples.json").write_text(json.dumps(told))
    assert cli.main([*command, "--ckpt_path", "last"]) == 0
    after = json.loads((where / "samples.json").read_text())
    assert list(after) == ["5", "10", "11", "15"] and after["10"] == before["10"]


def test_a_model_of_documents_goes_on_with_their_first_words(model, tmp_path):
    rows = [{"text": f"Number {n} is followed by number {n + 1}, as everybody knows who can count."} for n in range(60)]
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    more = [
        "--trainer.callbacks+=callbacks.Samples",
        "--data.path",
        str(tmp_path / "texts.json"),
        "--trainer.max_steps",
        "5",
    ]
    assert cli.main(language_modelling(*model, tmp_path / "run", *more, "--data.supervise", "all")) == 0
    told = json.loads((tmp_path / "run" / "samples.json").read_text())
    assert told["5"] and all(prompt.startswith("Number") for prompt, _ in told["5"])


@pytest.mark.parametrize("text", ["a | b", "two\nlines", "<b>bold</b> & more", "`code | with` ticks", "|", "\\| \\"])
def test_whatever_is_said_stays_in_its_cell(text):
    page = as_markdown({"3": [["question", text], [text, "answer"]]})
    html = MarkdownIt("commonmark").enable("table").render(page)
    assert html.count("<tr>") == 3 and html.count("<td>") == 4 and "<b>" not in html


def test_nothing_to_show_is_refused():
    with pytest.raises(UserError, match="show nothing"):
        Samples(prompts=0)
