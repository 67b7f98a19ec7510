"""callbacks.Samples: tables that hold whatever a model says, one a validation, and a training that does not notice."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from markdown_it import MarkdownIt
from transformers import AutoConfig, AutoModelForCausalLM

import run as cli
from callbacks import Samples
from callbacks.samples import as_markdown
from mhc.backbone.loading import load_tokenizer
from mhc.backbone.model import Backbone
from mhc.checkpoints.training_file import CheckpointFiles
from mhc.engine import Engine
from mhc.errors import UserError
from tests.helpers.killed_runs import ROOT, language_modelling, log_lines, tensors, tiny_model


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


def talker(folder, kind: str, **sizes) -> SimpleNamespace:
    """As much of an LMModule as answers: a random model of this kind, its weights scaled so that its choices are no ties."""
    torch.manual_seed(0)
    tokenizer = load_tokenizer(str(folder))
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = AutoConfig.for_model(kind, vocab_size=280, **ends, **sizes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    return SimpleNamespace(model=model, tokenizer=tokenizer, training=False, device=torch.device("cpu"))


SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_answers_are_what_plain_decoding_says(model):
    """Whatever the model's own generation_config would rather have, and with the model in the mode that it was in."""
    module = talker(model[0], "llama", **SMALL, max_position_embeddings=64)
    prompts = [[5, 9, 11], [7] * 20, [6, 8] * 25]
    module.training = module.model.train().training
    module.model.generation_config.repetition_penalty, module.model.generation_config.temperature = 1.5, 0.7
    found = [Samples(3, 24).answer(module, ids) for ids in prompts]
    assert all(part.training for part in module.model.modules())
    engine = Engine(Backbone(module.model, module.tokenizer))
    plain = dict(engine.generate_ids(prompts, 24))
    for number, said in enumerate(found):
        tokens = [token for token in plain[number].token_ids if token not in engine.end_ids]
        assert said == module.tokenizer.decode(tokens)


def test_answers_end_where_learned_positions_do(model):
    module = talker(model[0], "gpt2", n_embd=32, n_layer=2, n_head=2, n_positions=32)
    for length in (4, 30, 31):
        assert isinstance(Samples(1, 64).answer(module, [5] * length), str)


def test_a_run_that_starts_over_keeps_nothing_of_the_one_before(model, tmp_path):
    more = ["--trainer.callbacks+=callbacks.Samples", "--trainer.callbacks.prompts", "1"]
    command = language_modelling(*model, tmp_path / "run", *more, "--trainer.callbacks.max_new_tokens", "3")
    assert cli.main([*command, "--trainer.max_steps", "6"]) == 0
    again = ["--trainer.max_steps", "8", "--trainer.val_check_interval", "7", "--checkpoint.overwrite", "true"]
    assert cli.main([*command, *again]) == 0
    assert list(json.loads((tmp_path / "run" / "samples.json").read_text())) == ["7"]
    assert "Step 5" not in (tmp_path / "run" / "samples.md").read_text()


def test_weights_and_biases_has_the_tables(model, tmp_path):
    """In a process of its own: wandb leaves threads behind."""
    more = ["--trainer.callbacks+=callbacks.Samples", "--trainer.callbacks.prompts", "2"]
    command = language_modelling(*model, tmp_path / "run", *more, "--trainer.callbacks.max_new_tokens", "3")
    command += ["--config", str(ROOT / "configs/logger/wandb.yaml"), "--trainer.max_steps", "6"]
    told = subprocess.run(
        [sys.executable, str(ROOT / "run.py"), *command], cwd=ROOT, capture_output=True, text=True, timeout=200
    )
    assert told.returncode == 0, told.stderr
    (path,) = (tmp_path / "run").glob("wandb/offline-run-*/files/media/table/samples_*.table.json")
    table = json.loads(path.read_text())
    written = json.loads((tmp_path / "run" / "samples.json").read_text())["5"]
    assert table == {"columns": ["step", "prompt", "answer"], "data": [[5, *row] for row in written]} | {
        name: table[name] for name in table if name not in ("columns", "data")
    }
