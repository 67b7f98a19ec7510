"""Distillation where it was found wrong once: mending that is killed, odd answers of servers, wrong flags, full disks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run
from mhc.distill.answers import Job, Reply, answer_all
from mhc.distill.openai_server import OpenAIAnswerer
from mhc.errors import UserError
from mhc.util.journal import Journal
from tests.helpers.conversations import read_conversations
from tests.helpers.fake_server import Fake, Handler

ROOT = Path(__file__).parents[2]


def jobs(count: int, turns: int = 1) -> list[Job]:
    """Conversations whose turns are "<number> <turn>"."""
    rows = ([(f"{number} {turn}", "") for turn in range(turns)] for number in range(count))
    return [Job(str(i), [m for user, said in row for m in _turn(user, said)]) for i, row in enumerate(rows)]


def _turn(user: str, said: str) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": said}]


def echo(requests):
    for request in requests:
        yield Reply(request.key, f"to {request.messages[-1]['content']}", "stop", 1)


def silent(line: str) -> None:
    pass


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def prompts(folder: Path, count: int) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text(
        "".join(json.dumps({"id": i, "messages": _turn(f"{i} {'x' * 99}", "")}) + "\n" for i in range(count))
    )
    return path


def distill(data: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), "distill", "--data", str(data), "--out", str(out), *more]


class Saying(Fake):
    """A server with one body for everything; status and body may tell the key it was given."""

    def __init__(self, body: bytes | None = None, **message):
        super().__init__()
        choice = {"message": {"role": "assistant", "content": "yes"}, "finish_reason": "stop"} | message
        usage = choice.pop("usage", {"completion_tokens": 3})
        said = body or json.dumps({"choices": [choice], "usage": usage}).encode()

        class One(Handler):
            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self._send(200, said)

        self.RequestHandlerClass = One


@pytest.mark.parametrize("killed_at", ["fsync", "replace", "replaced"])
def test_mending_may_be_killed(tmp_path, killed_at):
    out = tmp_path / "o.jsonl"
    answer_all(jobs(50), echo, out, 1, 9, silent)
    out.write_bytes(out.read_bytes().replace(b"to 7 0", b"to 9 9"))
    child = os.fork()
    if not child:
        replace = os.replace

        def die(*arguments):
            os.kill(os.getpid(), signal.SIGKILL)

        def replace_and_die(*arguments):
            replace(*arguments)
            die()

        for name, change in {
            "fsync": ("fsync", die),
            "replace": ("replace", die),
            "replaced": ("replace", replace_and_die),
        }.items():
            if name == killed_at:
                setattr(os, *change)
        with Journal(out, silent) as journal:
            list(journal.records())
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert answer_all(jobs(50), echo, out, 1, 9, silent).kept_before == 49
    assert len({row["key"] for row in rows(out)}) == 50 == len(rows(out))


def test_a_damaged_answer_of_an_unfinished_conversation_moves_no_later_one(tmp_path):
    out, partial = tmp_path / "o.jsonl", tmp_path / "o.partial.jsonl"

    def two_turns(requests):
        for request in requests:
            later = request.messages[-1]["content"].endswith("2")
            yield Reply(request.key, reason="not now") if later else next(iter(echo([request])))

    with pytest.raises(UserError, match="all 2 prompts"):
        answer_all(jobs(2, 3), two_turns, out, 1, 9, silent)
    partial.write_bytes(partial.read_bytes().replace(b"to 0 0", b"to 9 9"))
    answer_all(jobs(2, 3), echo, out, 1, 9, silent)
    for row in rows(out):
        said = [message["content"] for message in row["messages"]]
        assert said[1::2] == [f"to {asked}" for asked in said[::2]]


def test_prompts_that_nobody_was_asked_do_not_stop_a_run(tmp_path):
    def some_too_long(requests):
        for request in requests:
            short = int(request.messages[0]["content"].split()[0]) >= 60
            yield next(iter(echo([request]))) if short else Reply(request.key, reason="long", final=True, attempts=0)

    counts = answer_all(jobs(100), some_too_long, tmp_path / "o.jsonl", 1, 999, silent)
    assert (counts.kept, counts.rejected) == (40, 60)


@pytest.mark.parametrize(
    "message",
    [
        {"message": {"role": "assistant", "content": "half a pair: \ud83d"}},
        {"usage": {}},
        {"usage": {"completion_tokens": "many"}},
        {"usage": None, "finish_reason": ["odd"]},
        {"message": {"role": "assistant", "content": "a\u2028b\x85c\x00d"}},
    ],
)
def test_odd_answers_of_servers_are_kept(tmp_path, message):
    out = tmp_path / "o.jsonl"
    with Saying(**message) as fake:
        answer_all(jobs(3), OpenAIAnswerer(fake.url, None, {}, 8, timeout=2, retries=0), out, 1, 9, silent)
    assert len(rows(out)) == len(read_conversations(str(out))[0]) == 3


def test_nested_garbage_is_a_rejection(tmp_path):
    with Saying(b'{"choices":' + b"[" * 100_000) as fake, pytest.raises(UserError, match="all 3 prompts"):
        answer_all(jobs(3), OpenAIAnswerer(fake.url, None, {}, 8, timeout=2, retries=0), tmp_path / "o", 1, 9, silent)


def test_follow_ups_do_not_wait_for_a_straggler(tmp_path):
    asked = []

    class Slow(Handler):
        def do_POST(self):
            messages = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"]
            asked.append((len(messages), time.monotonic()))
            if messages[-1]["content"] == "0 0" and len([n for n, _ in asked if n == 1]) <= 9:
                time.sleep(3)
            choice = {"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
            self._send(200, json.dumps({"choices": [choice]}).encode())

    with Fake() as fake:
        fake.RequestHandlerClass = Slow
        started = time.monotonic()
        answer_all(
            jobs(20, 3), OpenAIAnswerer(fake.url, None, {}, 8, concurrency=8), tmp_path / "o.jsonl", 1, 999, silent
        )
    times = sorted(at - started for _, at in asked)
    assert len(asked) == 60 and times[-3] < 2.5  # all but the straggler's own two


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--limit", "0"], "--limit"),
        (["--retries", "-1"], "--retries"),
        (["--server", "http://127.0.0.1:9/v1", "--model", "m"], "no server answers at http://127.0.0.1:9/v1"),
        (["--server", "127.0.0.1:9"], "http://localhost:8000/v1"),
        (["--server", "http://127.0.0.1:9", "--temperature", "-1"], "--temperature"),
    ],
)
def test_wrong_flags_get_one_line_and_leave_nothing(tmp_path, capsys, flags, named):
    data = prompts(tmp_path, 3)
    assert run.main(distill(data, tmp_path / "o.jsonl", *flags)[2:]) == 2
    assert named in capsys.readouterr().err.strip().splitlines()[-1]
    assert list(tmp_path.iterdir()) == [data]


def test_a_server_may_move_but_not_change_precision_unseen(tmp_path, capsys):
    data, out = prompts(tmp_path, 8), tmp_path / "o.jsonl"
    with Fake() as fake:
        assert run.main(distill(data, out, "--server", fake.url, "--limit", "2")[2:]) == 0
    with Fake() as fake:
        assert run.main(distill(data, out, "--server", fake.url.removesuffix("/v1"))[2:]) == 0
    assert len(rows(out)) == 8
    own = tmp_path / "own.jsonl"
    short = ["--max_new_tokens", "4"]
    assert run.main(distill(data, own, *short, "--dtype", "bfloat16")[2:]) == 0
    assert run.main(distill(data, own, *short)[2:]) == 2
    assert "dtype: bfloat16" in capsys.readouterr().err


def test_a_key_that_a_server_repeats_is_not_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")

    class Talkative(Handler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self._send(400, json.dumps({"error": {"message": self.headers["Authorization"]}}).encode())

    with Fake() as fake:
        fake.RequestHandlerClass = Talkative
        assert run.main(distill(prompts(tmp_path, 3), tmp_path / "o.jsonl", "--server", fake.url)[2:]) == 2
    assert "very-secret" not in capsys.readouterr().err
    assert not any("very-secret" in file.read_text() for file in tmp_path.iterdir())


def test_a_second_process_leaves_the_counts_alone(tmp_path):
    data, out, manifest = prompts(tmp_path, 3), tmp_path / "o.jsonl", tmp_path / "o.manifest.json"
    with Fake() as fake:
        assert run.main(distill(data, out, "--server", fake.url)[2:]) == 0
        before = json.loads(manifest.read_text())
        with Journal(out, silent):
            assert run.main(distill(data, out, "--server", fake.url)[2:]) == 2
    assert json.loads(manifest.read_text()) == before


def test_a_disk_that_is_full_to_the_last_byte(tmp_path):
    small, data = tmp_path / "small", prompts(tmp_path, 300)
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        with Fake() as fake:
            for _ in range(2):
                full = subprocess.run(
                    distill(data, small / "o.jsonl", "--server", fake.url), capture_output=True, text=True
                )
                assert full.returncode == 2 and "Traceback" not in full.stderr and "No space left" in full.stderr
            subprocess.run(["mount", "-o", "remount,size=4m", str(small)], check=True)
            assert run.main(distill(data, small / "o.jsonl", "--server", fake.url)[2:]) == 0
        assert len({row["key"] for row in rows(small / "o.jsonl")}) == 300 == len(rows(small / "o.jsonl"))
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_an_interrupted_run_says_so_alone(tmp_path):
    with Fake(pause=0.3) as fake:
        command = distill(prompts(tmp_path, 60), tmp_path / "o.jsonl", "--server", fake.url, "--concurrency", "2")
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        while not (tmp_path / "o.jsonl").exists() or not (tmp_path / "o.jsonl").stat().st_size:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        told = process.communicate(timeout=20)[1].strip().splitlines()
    assert process.returncode == 130 and told[-1] == "interrupted" and not any("Task" in line for line in told)
    counts = json.loads((tmp_path / "o.manifest.json").read_text())["counts"]
    assert counts["conversations"] == len(rows(tmp_path / "o.jsonl"))
