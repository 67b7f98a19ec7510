"""Environments that are not like a developer's: output that is not UTF-8, names with other letters, places that cannot be
written. No traceback, no lost run: one line and status 2, in ASCII where that is all there is."""

import json
import os
import signal
import subprocess
import sys

import pytest

from mhc.util.locks import LOCK, alone
from mhc.util.verbs import VERBS
from tests.helpers.runs import CASCADE, COMMON, ROOT, small, sums

ASCII = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
BAD = {  # for each verb an input that cannot be, with a letter that ASCII lacks
    "fit": ["--config", "n\u00fcchts.yaml"],
    "validate": ["--config", "n\u00fcchts.yaml"],
    "test": ["--config", "n\u00fcchts.yaml"],
}


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    found = subprocess.run(
        [sys.executable, "run.py", *arguments],
        cwd=ROOT,
        env=os.environ | ASCII | environment,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    found.stdout, found.stderr = found.stdout.decode("ascii"), found.stderr.decode("ascii")
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_help_and_a_bad_option_in_ascii(verb):
    shown = call(verb, "--help")
    assert shown.returncode == 0 and "usage" in shown.stdout and not shown.stderr
    refused = call(verb, *BAD.get(verb, ["--n\u00fcchts"]))
    assert refused.returncode == 2 and len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert refused.stderr.startswith("error: ")


def test_a_run_in_ascii_trains_and_answers(tmp_path):
    """In a folder whose name ASCII cannot say, with data whose text it cannot."""
    folder = tmp_path / "\u00fcbung \u4e2d"
    folder.mkdir()
    data = sums(folder)
    with open(data, "a", encoding="utf-8") as file:
        turns = [
            {"role": "user", "content": "Gr\u00fc\u00dfe \u2603?"},
            {"role": "assistant", "content": "\u00c9t\u00e9 \U0001f600."},
        ]
        file.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    fitted = call("fit", *COMMON, *CASCADE, *small(folder / "run", data))
    assert fitted.returncode == 0, fitted.stderr
    assert (folder / "run" / "last.ckpt").exists() and (folder / "run" / "report.html").exists()
    shown = call("inspect", "--data", str(data), "--backbone", "pocket")
    assert shown.returncode == 0, shown.stderr
    answered = call(
        "generate", "--checkpoint", str(folder / "run"), "--prompt", "Gr\u00fc\u00dfe?", "--max_new_tokens", "8"
    )
    assert answered.returncode == 0, answered.stderr


def blocked(folder):
    """A path below a file, which nobody can make, not even root."""
    (folder / "file").write_text("", encoding="utf-8")
    return str(folder / "file" / "out")


@pytest.mark.parametrize(
    "verb, arguments",
    [
        ("fit", [*COMMON, *CASCADE, "--trainer.default_root_dir"]),
        ("distill", ["--data", "pocket", "--limit", "2", "--out"]),
        ("collect", ["--data", "pocket", "--limit", "2", "--out"]),
        ("quickstart", ["--conversations", "40", "--out"]),
        ("lm", ["--out"]),
        ("export", ["--checkpoint", "HEADS", "--format", "vllm-cascade", "--out"]),
        ("tokenizer", ["--data", "pocket", "--limit", "50", "--out"]),
        ("speed", ["--checkpoint", "HEADS", "--out"]),
    ],
)
def test_a_place_that_cannot_be_written_is_one_line(verb, arguments, tmp_path, heads):
    arguments = [str(heads) if part == "HEADS" else part for part in arguments]
    refused = call(verb, *arguments, blocked(tmp_path))
    assert refused.returncode == 2, refused.stderr
    assert refused.stderr.strip().splitlines()[-1].startswith("error: ") and "Traceback" not in refused.stderr


def test_a_reader_that_has_enough_ends_the_writing_quietly():
    command = f"{sys.executable} run.py --help | head -1 >/dev/null; exit ${{PIPESTATUS[0]}}"
    found = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert not found.stderr


def test_a_second_run_in_a_folder_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    held = tmp_path / "run"
    code = (
        f"import sys, time; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path; from mhc.util.locks import *\n"
    )
    code += f"with alone(Path({str(held)!r}) / LOCK, '--out'): print('held', flush=True); time.sleep(600)"
    owner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    second = call("fit", *COMMON, *CASCADE, *small(held, sums(tmp_path)))
    assert second.returncode == 2
    (line,) = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert f"process {owner.pid}" in line and str(held) in line and "--trainer.default_root_dir" in line
    assert not list(held.glob("*.ckpt"))
    os.kill(owner.pid, signal.SIGKILL)
    owner.communicate()
    with alone(held / LOCK, "--out"):
        assert (held / LOCK).exists()
