"""The verbs of run.py: what each does, and a call of it that works as it stands.

Nobody can add a verb without either. In this order every example finds what the ones before it wrote.
"""

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

RUN = Path(__file__).parents[2] / "run.py"
_FIRST = "--config configs/quickstart.yaml --config configs/drafter/cascade.yaml --data.limit 2000 --trainer.default_root_dir runs/first"


class Verb(NamedTuple):
    """about: for the list of verbs. example: arguments."""

    about: str
    example: str


VERBS = {
    "fit": Verb("train draft heads (or a small language model)", _FIRST),
    "validate": Verb("accuracy of each head on held-out conversations", _FIRST),
    "test": Verb("decode held-out prompts plain and with heads, and compare", _FIRST),
    "quickstart": Verb("all stages on the embedded model, in minutes", "--out runs/quickstart"),
    "compare": Verb(
        "train every family of heads alike and compare their speed", "--data runs/quickstart/answers.jsonl --steps 150"
    ),
    "lm": Verb("train a small language model from scratch, and heads for it", "--out runs/lm"),
    "sweep": Verb(
        "search settings by grid or at random, from a wandb sweep file",
        "configs/sweeps/learning_rate.yaml --out runs/sweeps/learning_rate",
    ),
    "generate": Verb(
        "answer a prompt with trained heads",
        '--checkpoint runs/quickstart/cascade --prompt "Write a happy story about Anna."',
    ),
    "chat": Verb(
        "chat in the terminal, with accepted draft tokens in green",
        "--checkpoint runs/quickstart/cascade --temperature 0.8",
    ),
    "serve": Verb(
        "an OpenAI-compatible API and a chat page, with continuous batching",
        "--checkpoint runs/quickstart/cascade --port 8000",
    ),
    "tune": Verb(
        "find the tree with which trained heads are fastest on this machine", "--checkpoint runs/quickstart/cascade"
    ),
    "distill": Verb(
        "let the target model answer prompts: the best training data for heads",
        "--data pocket --limit 200 --out runs/distilled/answers.jsonl",
    ),
    "collect": Verb(
        "store the target model's features, so that heads train without it",
        "--data runs/distilled/answers.jsonl --out runs/distilled/features",
    ),
    "tokenizer": Verb(
        "train a byte-level BPE tokenizer with a chat template",
        "--data runs/quickstart/answers.jsonl --size 1024 --out runs/tokenizer",
    ),
    "evaluate": Verb(
        "evaluate a language model: perplexity, exams, lm-evaluation-harness",
        "--model pocket --perplexity runs/quickstart/answers.jsonl --limit 100 --out runs/evaluation.json",
    ),
    "answer": Verb(
        "answer MT-Bench questions for FastChat's judge and Spec-Bench",
        "--checkpoint runs/quickstart/cascade --questions configs/questions.jsonl --out runs/answers/cascade.jsonl --both",
    ),
    "speed": Verb(
        "a table of speedups by category from two answer files",
        "runs/answers/cascade.jsonl runs/answers/cascade-plain.jsonl",
    ),
    "export": Verb(
        "write heads in the formats of vLLM, SGLang and TGI, and check them",
        "--checkpoint runs/quickstart/medusa --format tgi-medusa --out runs/exports/tgi",
    ),
    "import": Verb(
        "turn published Medusa and EAGLE-3 heads into a heads folder",
        "runs/exports/tgi --backbone pocket --out runs/imported",
    ),
    "push": Verb(
        "upload heads, or an export, to the Hugging Face Hub", "runs/exports/tgi --repo me/my-medusa --dry_run"
    ),
    "inspect": Verb(
        "show the tokens of a data file, and which are trained on",
        "--data runs/quickstart/answers.jsonl --backbone pocket",
    ),
}


def shell_line(*arguments: str) -> str:
    """The line that calls run.py so, to copy into the user's shell."""
    return f"{_program()} {shlex.join(arguments)}"


def example(verb: str) -> str:
    """The verb's example as a line to copy into the user's shell."""
    return f"{_program()} {verb} {VERBS[verb].example}"


def _program() -> str:
    """run.py and the Python that runs now: `python` where the shell finds this one by that name, else its path."""
    python, found = Path(sys.executable), shutil.which("python")
    known = found and Path(found).absolute().parent == python.parent
    return shlex.join(["python" if known else _path(python), _path(RUN)])


def _path(path: Path) -> str:
    """From the user's folder where it stands below that, else absolute."""
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)
