"""run.py speed: figures worked out by hand and by Spec-Bench's rules, honest intervals, and files that do not pair."""

import json
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest

from mhc.commands import speed
from mhc.errors import UserError
from mhc.evaluation.answer_files import read_answers
from mhc.evaluation.speedup import figures, paired, speed_table


def row(number: int, category: str, tokens: list[int], seconds: list[float], accepted: list[int], text="a") -> dict:
    choice = {"index": 0, "turns": [text] * len(tokens), "new_tokens": tokens, "wall_time": seconds}
    choice |= {"accept_lengths": accepted, "idxs": tokens, "decoding_steps": tokens}
    return {"question_id": number, "category": category, "choices": [choice], "tstamp": 100.0 + number}


def write(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def some(folder: Path, count: int = 12, seed: int = 0) -> tuple[str, str]:
    """Two files of random measurements in three categories."""
    random = np.random.default_rng(seed)
    drafted, plain = [], []
    for number in range(count):
        tokens = random.integers(5, 40, 2).tolist()
        seconds = random.uniform(0.1, 0.5, 2).tolist()
        accepted = [2] * (sum(tokens) // 2) + [1] * (sum(tokens) % 2)
        category = ("math", "writing", "stem")[number % 3]
        drafted.append(row(number, category, tokens, seconds, accepted))
        slower = [one * random.uniform(1.2, 2.5) for one in seconds]
        plain.append(row(number, category, tokens, slower, [1] * sum(tokens), "a" if number else "b"))
    return write(folder / "drafted.jsonl", drafted), write(folder / "plain.jsonl", plain)


def by_spec_bench(path: str, task: str) -> tuple[float, float]:
    """Tokens per second and mean accepted tokens of a category (or overall), from the rules of its script."""
    rows = [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
    first = [row["choices"][0] for row in rows if task in ("overall", row["category"])]
    lengths = [length for choice in first for length in choice["accept_lengths"]]
    return mean(sum(choice["new_tokens"]) / sum(choice["wall_time"]) for choice in first), mean(lengths)


def table_of(names: tuple[str, str], **options) -> dict:
    return speed_table(paired(*map(read_answers, names), names), **options)


def test_figures_are_those_of_spec_bench(tmp_path):
    names = some(tmp_path)
    found = table_of(names, resamples=50)
    for task, one in {"overall": found["overall"], **found["categories"]}.items():
        (fast, length), (slow, _) = (by_spec_bench(name, task) for name in names)
        assert one["tokens_per_second"] == pytest.approx(fast, abs=0.006)
        assert one["plain_tokens_per_second"] == pytest.approx(slow, abs=0.006)
        assert one["speedup"] == pytest.approx(fast / slow, abs=1e-4)
        assert one["tokens_per_step"] == pytest.approx(length, abs=1e-4)
    assert list(found["categories"]) == ["math", "writing", "stem"]
    assert (found["overall"]["questions"], found["overall"]["turns"], found["overall"]["identical"]) == (12, 24, 22)
    ratios = []
    for one, other in zip(*(map(json.loads, Path(name).read_text(encoding="utf-8").splitlines()) for name in names)):
        ratios += [q / p for p, q in zip(one["choices"][0]["wall_time"], other["choices"][0]["wall_time"])]
    assert found["overall"]["paired_speedup"] == pytest.approx(median(ratios), abs=1e-4)


def test_the_bootstrap_is_one_worked_out_slowly(tmp_path):
    """The same draws, each resample written out and measured by the plain definitions."""
    names = some(tmp_path, 7)
    pairs = paired(*map(read_answers, names), names)
    found = figures(pairs, 300, 5)
    drawn = np.random.default_rng(5).multinomial(7, [1 / 7] * 7, size=300)
    slow = []
    for counts in drawn:
        several = [pair for pair, count in zip(pairs, counts) for _ in range(count)]
        fast, plain = (
            mean(sum(t[at] for t in p.tokens) / sum(s[at] for s in p.seconds) for p in several) for at in (0, 1)
        )
        by_turn = median((t[0] / s[0]) / (t[1] / s[1]) for p in several for t, s in zip(p.tokens, p.seconds))
        slow.append((fast / plain, by_turn, mean(length for p in several for length in p.accepted)))
    for at, name in enumerate(("speedup", "paired_speedup", "tokens_per_step")):
        expected = np.quantile([one[at] for one in slow], [0.025, 0.975])
        assert found[f"{name}_interval"] == pytest.approx(expected, abs=1e-4), name


def test_intervals_hold_the_truth_about_as_often_as_they_say(tmp_path):
    held = 0
    for seed in range(60):
        found = table_of(some(tmp_path, 40, seed), resamples=300)["overall"]
        low, high = found["paired_speedup_interval"]
        held += low <= 1.85 <= high  # the middle of 1.2 and 2.5
    assert held >= 50  # 95 %; fewer than 50 of 60 has a chance of one in 10,000


def test_one_question_has_no_interval_and_unanswered_turns_are_left_out(tmp_path):
    fast = [row(1, "math", [10, 0], [1.0, 0.0], [2] * 5), row(2, "stem", [0], [0.01], [])]
    slow = [row(1, "math", [10, 0], [2.0, 0.0], [1] * 10), row(2, "stem", [0], [0.01], [])]
    names = write(tmp_path / "f.jsonl", fast), write(tmp_path / "s.jsonl", slow)
    found = table_of(names)
    assert found["overall"]["speedup"] == found["overall"]["paired_speedup"] == 2.0
    assert found["overall"]["speedup_interval"] is None and found["overall"]["turns"] == 1
    assert found["unanswered"] == [2] and list(found["categories"]) == ["math"]
    with pytest.raises(UserError, match="no turn was answered"):
        speed_table(paired({2: fast[1]}, {2: slow[1]}, names))


def test_table_json_and_picture(tmp_path, capsys):
    names = some(tmp_path)
    kept, picture = tmp_path / "speed.json", tmp_path / "new" / "speed.svg"
    for _ in range(2):
        assert speed.main([*names, "--json", str(kept), "--picture", str(picture)]) == 0
    told = capsys.readouterr().out
    assert (
        "overall" in told and "10,000 resamples" in told and max(len(line.rstrip()) for line in told.splitlines()) <= 80
    )
    assert all(f"\n {name} " in told for name in ("math", "writing", "overall")) and " 22/24" in told  # not cut
    found = json.loads(kept.read_text())
    low, high = found["overall"]["speedup_interval"]
    assert low < found["overall"]["speedup"] < high and found["measured_in_turn"]
    assert picture.read_text().count("<svg") == 1
    rows = [json.loads(line) | {"tstamp": 1e9} for line in Path(names[1]).read_text(encoding="utf-8").splitlines()]
    assert speed.main([names[0], write(tmp_path / "later.jsonl", rows)]) == 0
    assert "not interleaved" in capsys.readouterr().out


def broken(names: tuple[str, str]) -> dict[str, tuple[list[str], str]]:
    """What does not pair, and what the line must name."""
    drafted, plain = names
    lines = Path(plain).read_text(encoding="utf-8").splitlines()

    def changed(name: str, change) -> str:
        rows = [json.loads(line) for line in lines]
        change(rows)
        return write(Path(plain).with_name(name), rows)

    cut = Path(plain).with_name("cut.jsonl")
    cut.write_text("\n".join([*lines[:3], lines[3][:40]]))
    return {
        "a missing question": ([drafted, changed("a.jsonl", lambda rows: rows.pop(4))], r"a\.jsonl.*lacks 1.*\(4\)"),
        "the first lacks one": ([changed("b.jsonl", lambda rows: rows.pop(4)), plain], r"b\.jsonl.*lacks 1.*\(4\)"),
        "a damaged line": ([drafted, str(cut)], r"cut\.jsonl:4: damaged"),
        "swapped": ([plain, drafted], "plain file second"),
        "another category": ([drafted, changed("c.jsonl", lambda rows: rows[2].update(category="x"))], "question 2"),
        "fewer turns": ([drafted, changed("d.jsonl", lambda rows: _drop_turn(rows[5]))], "question 5"),
        "twice": ([drafted, changed("e.jsonl", lambda rows: rows.append(rows[0]))], ":13: .*occurs twice"),
        "FastChat's, without times": (
            [drafted, changed("f.jsonl", lambda rows: rows[1]["choices"][0].pop("wall_time"))],
            ":2: .*wall_time",
        ),
        "tokens in no time": (
            [drafted, changed("g.jsonl", lambda rows: rows[0]["choices"][0].update(wall_time=[0.0, 1.0]))],
            ":1: .*in 0 seconds",
        ),
        "no such file": ([drafted, "nowhere.jsonl"], "nowhere.jsonl"),
        "an odd picture": ([drafted, plain, "--picture", "speed.gif"], r"\.png"),
        "answers as --json": ([drafted, plain, "--json", drafted], "not a speed table"),
    }


def _drop_turn(row: dict) -> None:
    for field in ("turns", "new_tokens", "wall_time"):
        row["choices"][0][field].pop()


@pytest.mark.parametrize(
    "case",
    [
        *("a missing question", "the first lacks one", "a damaged line", "swapped", "another category", "fewer turns"),
        *("twice", "FastChat's, without times", "tokens in no time", "no such file", "an odd picture"),
        "answers as --json",
    ],
)
def test_what_does_not_pair_gets_one_line(tmp_path, case):
    names = some(tmp_path)
    before = [Path(name).read_bytes() for name in names]
    flags, named = broken(names)[case]
    with pytest.raises(UserError, match=named):
        speed.main(flags)
    assert [Path(name).read_bytes() for name in names] == before
