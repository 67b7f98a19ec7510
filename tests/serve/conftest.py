"""Heads that guess, and a server that lives: the pocket with a few seconds' training, served for real."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mhc.backbone.model import Backbone
from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Cascade
from mhc.engine import Engine
from mhc.text.encoding import prompt_ids
from mhc.trees.shapes import FixedTree
from tests.helpers.drafters import memorise
from tests.helpers.servers import QUESTIONS, serve

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def heads(tmp_path_factory) -> Path:
    """A folder with MHC heads for the pocket that get every other guess right, or better."""
    folder = tmp_path_factory.mktemp("heads") / "cascade"
    torch.manual_seed(0)
    backbone = Backbone.load("pocket", decoding=False)
    drafter = Cascade(backbone, heads=3)
    prompts = [prompt_ids(backbone.tokenizer, [{"role": "user", "content": text}]) for text in QUESTIONS]
    answers = [Engine(backbone).generate(prompt, 64, plain=True).token_ids for prompt in prompts]
    memorise(drafter, prompts, answers, steps=30, learning_rate=2e-3)
    save_drafter(folder, drafter.eval(), FixedTree([(0,), (1,), (0, 0), (0, 0, 0)]))
    return folder


@pytest.fixture(scope="session")
def engine(heads) -> Engine:
    return Engine.from_checkpoint(str(heads), device="cpu", dtype=torch.float32).with_large_batch_tree()


@pytest.fixture(scope="module")
def live(engine):
    """The pocket with heads, 8 rows."""
    yield from serve(engine, rows=8, waiting=64, context=512)


class Process:
    """`run.py serve` as a user starts it."""

    def __init__(self, *arguments: str, **environment: str):
        command = [sys.executable, "run.py", "serve", "--port", "0", *arguments]
        told = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=told, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+?(?=/,)", line)
        assert found, line + self.process.stderr.read()
        self.url = found[0]

    def stop(self) -> tuple[int, str]:
        """End it as Ctrl-C does; its exit status and what it said on standard error."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        _, errors = self.process.communicate(timeout=60)
        return self.process.returncode, errors


@pytest.fixture
def process():
    """Start `run.py serve` with these arguments; it is ended at last."""
    started: list[Process] = []

    def start(*arguments: str, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.communicate()
