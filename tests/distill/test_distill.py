"""Distillation: whatever fails or is killed, each prompt stands exactly once, with the model's own answer."""

import json
import os
import random
import resource
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
from mhc.util.journal import Journal, digest
from tests.helpers.fake_server import REFUSED, Fake, answer_to

ROOT = Path(__file__).parents[2]


def data(folder: Path, count: int, turns: int = 1) -> Path:
    """A file of conversations about nothing."""
    rows = []
    for i in range(count):
        messages = [{"role": "system", "content": "Be brief."}] if i % 3 == 0 else []
        for turn in range(turns):
            messages += [
                {"role": "user", "content": f"question {i}, turn {turn}"},
                {"role": "assistant", "content": "an old answer"},
            ]
        rows.append({"id": i, "messages": messages})
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def records(path: Path) -> list[dict]:
    """The lines of a result, every one of them whole."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert row.pop("check") == digest(row)
        rows.append(row)
    return rows


def assert_answered(out: Path, count: int, turns: int = 1, seed: int = 1) -> None:
    """Every conversation stands once, with the fake server's answers, each given to what was said before it."""
    rows = records(out)
    assert sorted(int(row["id"]) for row in rows) == list(range(count))
    for row in rows:
        answers = [at for at, message in enumerate(row["messages"]) if message["role"] == "assistant"]
        assert len(answers) == turns == len(row["finish_reasons"])
        for turn, at in enumerate(answers):
            own = int(digest([seed, row["key"], turn]), 16) % 2**31
            assert row["messages"][at]["content"] == answer_to(row["messages"][:at], own)


def jobs_of(path: Path) -> list[Job]:
    return [
        Job(str(row["id"]), row["messages"]) for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    ]


def server(fake: Fake, **options) -> OpenAIAnswerer:
    arguments = {"concurrency": 64, "timeout": 1.0, "retries": 30, "pause": 0.02} | options
    return OpenAIAnswerer(fake.url, None, {"temperature": 0.0}, 64, **arguments)


def test_a_server_full_of_faults(tmp_path):
    """500, 503, 429, hangs, cut streams, garbage, slow drips: a thousand prompts, complete and unique."""
    path, out = data(tmp_path, 1000), tmp_path / "out.jsonl"
    with Fake(share=0.4, hang=2.0) as fake:
        counts = answer_all(jobs_of(path), server(fake), out, 1, 4096, print)
    assert (counts.kept, counts.answers, counts.rejected, counts.tokens) == (1000, 1000, 0, 5000)
    assert_answered(out, 1000)
    assert len({fault for _, fault, _ in fake.asked}) == 11  # every fault came, and None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.jsonl", "prompts.jsonl"]


def test_later_turns_see_the_new_answers(tmp_path):
    path, out = data(tmp_path, 20, turns=3), tmp_path / "out.jsonl"
    with Fake(share=0.3, hang=0.3) as fake:
        answer_all(jobs_of(path), server(fake, timeout=0.2), out, 1, 7, print)
    assert_answered(out, 20, turns=3)


def test_a_slow_drip_does_not_outlive_the_deadline(tmp_path):
    with Fake(hang=4.0) as fake:
        fake.dice.random, fake.share = (lambda: 0.0), 1.0
        fake.dice.choice = lambda faults: "drip"
        started = time.monotonic()
        with pytest.raises(UserError, match=r"all 1 prompts were rejected.*no whole answer within 0\.5 s"):
            one = server(fake, timeout=0.5, retries=1)
            answer_all(jobs_of(data(tmp_path, 1)), one, tmp_path / "o.jsonl", 1, 9, print)
        assert time.monotonic() - started < 4 and len(fake.asked) == 2


def test_retry_after_is_waited_for(tmp_path):
    with Fake() as fake:
        fake.share = 1.0
        fake.dice.choice = lambda faults: "429"
        with pytest.raises(UserError, match="429"):
            one = server(fake, retries=1, pause=0.001)
            answer_all(jobs_of(data(tmp_path, 1)), one, tmp_path / "o.jsonl", 1, 9, print)
        (_, _, first), (_, _, second) = fake.asked
        assert second - first >= 0.2


def test_what_is_refused_is_rejected_and_told(tmp_path):
    path, out = data(tmp_path, 30), tmp_path / "out.jsonl"
    jobs = jobs_of(path)
    jobs += [Job("no", [{"role": "user", "content": REFUSED}, {"role": "assistant", "content": ""}])]
    with Fake() as fake:
        counts = answer_all(jobs, server(fake), out, 1, 64, print)
        assert (counts.kept, counts.rejected) == (30, 1) and sum(text == REFUSED for text, _, _ in fake.asked) == 1
        (told,) = records(tmp_path / "out.rejects.jsonl")
        assert told["id"] == "no" and told["reason"].startswith("400") and "I will not" in told["reason"]
        again = answer_all(jobs, server(fake), out, 1, 64, print)  # only the rejected one is asked again
    assert (again.kept_before, again.kept, again.rejected) == (30, 0, 1)


def test_many_rejections_in_a_row_stop_the_run(tmp_path):
    with Fake() as fake:
        many = [
            Job(str(i), [{"role": "user", "content": f"{REFUSED} {i}"}, {"role": "assistant", "content": ""}])
            for i in range(200)
        ]
        with pytest.raises(UserError, match=r"50 prompts in a row were rejected, the last one: 400"):
            answer_all(many, server(fake, concurrency=4), tmp_path / "o.jsonl", 1, 999, print)


def test_identical_rows_stand_once_and_duplicate_ids_apart(tmp_path):
    def job(text: str) -> Job:
        return Job("same", [{"role": "user", "content": text}, {"role": "assistant", "content": "old"}])

    with Fake() as fake:
        answer_all([job("a"), job("a"), job("b")], server(fake), tmp_path / "o.jsonl", 1, 9, print)
    assert sorted(row["messages"][0]["content"] for row in records(tmp_path / "o.jsonl")) == ["a", "b"]


# -- killed ----------------------------------------------------------------------------------------


def command(path: Path, out: Path, *more: str) -> list[str]:
    return [sys.executable, str(ROOT / "run.py"), "distill", "--data", str(path), "--out", str(out), *more]


def test_killed_twenty_times(tmp_path):
    """kill -9 at random moments, resumed each time: nothing lost, nothing twice."""
    path, out, dice = data(tmp_path, 400, turns=2), tmp_path / "out.jsonl", random.Random(0)
    kills, sizes = 0, []
    with Fake(share=0.1, pause=0.4, hang=0.5) as fake:
        more = ["--server", fake.url, "--concurrency", "16", "--timeout", "2"]
        while kills < 20:
            process = subprocess.Popen(command(path, out, *more), stderr=subprocess.DEVNULL)
            before, deadline = len(fake.asked), time.monotonic() + 30
            while len(fake.asked) == before and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(dice.uniform(0, 1.2))
            if process.poll() is not None:
                break  # finished
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
            sizes.append(out.stat().st_size if out.exists() else 0)
        subprocess.run(command(path, out, *more), check=True, stderr=subprocess.DEVNULL)
        answered = len(fake.asked)
        subprocess.run(command(path, out, *more), check=True, stderr=subprocess.DEVNULL)
        assert len(fake.asked) == answered  # nothing is left to ask
    assert kills == 20 and sizes == sorted(sizes)
    assert_answered(out, 400, turns=2)
    assert not (tmp_path / "out.partial.jsonl").exists()
    manifest = json.loads((tmp_path / "out.manifest.json").read_text())
    assert manifest["counts"] == {"conversations": 400, "rejected": 0} and manifest["settings"]["model"] == "fake"


def test_killed_in_process(tmp_path):
    """The engine as back end: what was killed and resumed is what an undisturbed run says."""
    path, whole, out = data(tmp_path, 60, turns=2), tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    more = ["--max_new_tokens", "24", "--batch_size", "8", "--temperature", "0.7"]
    assert run.main(command(path, whole, *more)[2:]) == 0
    for seconds in (0.3, 0.6):
        process = subprocess.Popen(command(path, out, *more), stderr=subprocess.DEVNULL)
        while not (out.exists() and out.stat().st_size) and process.poll() is None:
            partial = out.with_suffix(".partial.jsonl")
            if partial.exists() and partial.stat().st_size:
                break
            time.sleep(0.02)
        time.sleep(seconds)
        process.kill()
        process.wait()
    assert run.main(command(path, out, *more)[2:]) == 0
    assert sorted(out.read_text().splitlines()) == sorted(whole.read_text().splitlines())
    assert len(records(out)) == 60


def test_heads_and_seeds_do_not_change_a_word(tmp_path):
    from mhc.backbone.model import Backbone
    from mhc.checkpoints.heads_folder import save_drafter
    from mhc.drafters import Medusa
    from mhc.engine import Engine
    from mhc.sampling import Sampling
    from mhc.trees.shapes import FixedTree

    backbone = Backbone.load("pocket")
    save_drafter(tmp_path / "heads", Medusa(backbone, heads=2), FixedTree([(0,), (0, 0)]))
    path = data(tmp_path, 6, turns=2)
    common = ["--max_new_tokens", "16", "--temperature", "0.8", "--seed", "5"]
    for name, more in (("plain", []), ("heads", ["--checkpoint", str(tmp_path / "heads")])):
        assert run.main(command(path, tmp_path / f"{name}.jsonl", *common, *more, "--batch_size", "4")[2:]) == 0
    plain, heads = (sorted((tmp_path / f"{n}.jsonl").read_text().splitlines()) for n in ("plain", "heads"))
    assert plain == heads
    row = records(tmp_path / "plain.jsonl")[0]
    asked = row["messages"][: -1 if row["messages"][-1]["role"] == "assistant" else None]
    drawn = Sampling(temperature=0.8, seed=int(digest([5, row["key"], 1]), 16) % 2**31)
    assert Engine(backbone).generate(asked, 16, sampling=drawn).text == row["messages"][-1]["content"]


# -- what is wrong with files and settings -----------------------------------------------------------


def test_torn_and_damaged_lines_are_made_again(tmp_path, capsys):
    path, out = data(tmp_path, 20), tmp_path / "out.jsonl"
    told = []
    with Fake() as fake:
        answer_all(jobs_of(path), server(fake), out, 1, 64, told.append)
        lines = out.read_bytes().splitlines(keepends=True)
        lines[4] = lines[4].replace(b"question", b"quastion", 1)  # a flipped bit or two
        out.write_bytes(b"".join(lines[:-1]) + lines[-1][:25])
        answer_all(jobs_of(path), server(fake), out, 1, 64, told.append)
    assert_answered(out, 20)
    assert told == [
        f"{out}:5: took out a damaged line, which is made again",
        f"{out}:20: took out a half-written line at the end",
    ]


def test_two_processes_and_other_settings(tmp_path, capsys):
    path, out = data(tmp_path, 5), tmp_path / "out.jsonl"
    with Fake() as fake:
        arguments = command(path, out, "--server", fake.url)[2:]
        assert run.main(arguments) == 0
        with Journal(out, print):
            assert run.main(arguments) == 2
        assert "another process is writing" in capsys.readouterr().err
        kept = out.read_text()
        assert run.main([*arguments, "--temperature", "0.5"]) == 2
        assert "other settings (temperature: 0.0, not 0.5)" in capsys.readouterr().err
        assert run.main([*arguments, "--model", "gpt-9"]) == 2
        (tmp_path / "out.manifest.json").unlink()
        assert run.main(arguments) == 2
        assert "has no out.manifest.json beside it" in capsys.readouterr().err and out.read_text() == kept
        assert run.main(command(path, tmp_path / "b.jsonl", "--server", fake.url, "--model", "gpt-9")[2:]) == 2
        error = capsys.readouterr().err
        assert "model 'gpt-9': 404" in error and error.count("error:") == 1
    assert run.main(command(path, tmp_path / "c.jsonl", "--server", "http://127.0.0.1:9/v1")[2:]) == 2
    assert "no server answers at http://127.0.0.1:9/v1" in capsys.readouterr().err
    assert run.main(command(path, tmp_path / "c.jsonl", "--server", fake.url, "--backbone", "pocket")[2:]) == 2


def test_a_full_disk_stops_clearly_and_is_gone_on_from(tmp_path):
    path, out = data(tmp_path, 60, turns=2), tmp_path / "out.jsonl"

    def little_room() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as on a full disk, writing fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (7000, 7000))

    with Fake() as fake:
        arguments = command(path, out, "--server", fake.url)
        full = subprocess.run(arguments, preexec_fn=little_room, capture_output=True, text=True)
        assert full.returncode == 2
        last = full.stderr.strip().splitlines()[-1]
        assert last.startswith("error: cannot write") and "make room, then run the same command again" in last
        assert "Traceback" not in full.stderr
        assert subprocess.run(arguments, capture_output=True).returncode == 0
    assert_answered(out, 60, turns=2)


def test_the_key_is_nowhere_and_secrets_of_the_address_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    path, out = data(tmp_path, 3), tmp_path / "out.jsonl"
    with Fake() as fake:
        url = fake.url.replace("http://", "http://me:password@")
        assert run.main(command(path, out, "--server", url)[2:]) == 0
    for file in tmp_path.iterdir():
        assert "secret" not in file.read_text() and "password" not in file.read_text()


def test_prompts_without_answers_are_answered(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 81, "category": "x", "turns": ["one?", "two?"]}\n')
    (tmp_path / "p.txt").write_text("a prompt a line\nand another\n")
    with Fake() as fake:
        for name in ("q.jsonl", "p.txt"):
            assert run.main(command(tmp_path / name, tmp_path / f"{name}.out.jsonl", "--server", fake.url)[2:]) == 0
    (row,) = records(tmp_path / "q.jsonl.out.jsonl")
    assert [m["role"] for m in row["messages"]] == ["user", "assistant", "user", "assistant"] and row["id"] == "81"
    assert len(records(tmp_path / "p.txt.out.jsonl")) == 2


def test_a_conversation_that_outgrows_the_context_ends_with_its_last_answer(tmp_path):
    def answerer(requests):
        for request in requests:
            if any(message["role"] == "assistant" for message in request.messages):
                yield Reply(request.key, reason="too long", final=True)
            else:
                yield Reply(request.key, "yes", "stop", 1)

    counts = answer_all(jobs_of(data(tmp_path, 3, turns=3)), answerer, tmp_path / "o.jsonl", 1, 2, print)
    assert (counts.kept, counts.rejected) == (3, 3)
    assert all(row["messages"][-1]["content"] == "yes" for row in records(tmp_path / "o.jsonl"))
    assert os.path.getsize(tmp_path / "o.rejects.jsonl")
