"""The corpus: reproducible, well formed, and right where its answers can be computed."""

import os
import re
import subprocess
import sys
from collections import Counter
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path

import pytest

from mhc.corpus import dialogues, fingerprint
from mhc.corpus.arithmetic import sums, units
from mhc.corpus.dates import DAYS, MONTHS, after, times
from mhc.corpus.dates import between as days_between
from mhc.corpus.functions import evaluate, function
from mhc.corpus.grammar import Pen, article, plural
from mhc.text.splits import split_of

LETTERS = ("words", "lists", "functions")  # these speak of the letter a
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def many() -> list[dict]:
    return list(dialogues(5000, seed=3))


def _written(family, count: int = 200, seed: int = 1) -> list[list[str]]:
    from random import Random

    pen = Pen(Random(seed))
    return [family(pen)[1] for _ in range(count)]


def test_same_seed_same_text_in_any_process():
    here = fingerprint(200, seed=7)
    assert fingerprint(200, seed=7) == here
    assert fingerprint(200, seed=8) != here
    code = "from mhc.corpus import fingerprint; print(fingerprint(200, seed=7))"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": str(ROOT)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, check=True)
    assert there.stdout.decode().strip() == here


def test_turns_alternate_and_say_something(many):
    for dialogue in many:
        roles = [message["role"] for message in dialogue["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and roles
        assert all(message["content"].strip() == message["content"] != "" for message in dialogue["messages"]), dialogue


def test_first_prompts_differ(many):
    assert len({" ".join(d["messages"][0]["content"].split()) for d in many}) == len(many)
    assert len({d["id"] for d in many}) == len(many)


def test_hand_written_text_is_tidy(many):
    for dialogue in many:
        if dialogue["topic"] in ("docstring", "reference"):
            continue
        for message in dialogue["messages"]:
            text = re.sub(r"```.*?```|`[^`]*`", "`", message["content"], flags=re.DOTALL)
            if message["role"] == "assistant" and not text.startswith("["):
                assert not re.search(r"\S  +\S", text), text
            assert not re.search(r"[{}<>](?![\d ])", text) or text.startswith(("{", "[")), text
            if dialogue["topic"] not in LETTERS:
                assert not re.search(r"\ba(?= [aeio]\w)(?! (one|once|eu))", text), text
            assert "(n)" not in text and ".." not in text.replace("...", ""), text


def test_documentation_share_is_obeyed(many):
    share = sum(d["topic"] in ("docstring", "reference") for d in many) / len(many)
    assert 0.08 < share < 0.12
    assert not any(d["topic"] in ("docstring", "reference") for d in dialogues(300, documentation_share=0))


def test_split_proportions():
    counts = Counter(split_of(f"prompt number {i}") for i in range(20000))
    assert abs(counts["train"] / 20000 - 0.94) < 0.01
    assert abs(counts["validation"] / 20000 - 0.03) < 0.005
    assert split_of("a  b\n") == split_of("a b")


def test_sums_are_right():
    for prompt, answer, *_ in _written(sums):
        expression = re.search(r"\(?\d[\d +*/()-]*\d\)?(?: \* \d+)?", prompt)[0]
        assert re.search(rf"(?<!\d){int(eval(expression))}(?!\d)", answer), (prompt, answer)
        for left, right in re.findall(r"((?:\d+ [-+*/] )+\d+) = (\d+)", answer):
            assert eval(left) == int(right), answer


def test_equations_everywhere_hold(many):
    seen = 0
    for dialogue in many:
        if dialogue["topic"] in (
            "arithmetic",
            "shopping",
            "units",
            "journeys",
            "averages",
            "percentages",
            "dates",
        ):
            for message in dialogue["messages"][1::2]:
                for left, right in re.findall(r"((?:[\d.]+ [-+*/] )+[\d.]+) = (\d+(?:\.\d+)?)", message["content"]):
                    exact = re.sub(r"\d+(?:\.\d+)?", lambda number: f"Fraction('{number[0]}')", left.rstrip("."))
                    assert eval(exact, {"Fraction": Fraction}) == Fraction(right), message["content"]
                    seen += 1
    assert seen > 200


def test_units_are_right():
    size = {
        "kilometres": ("metres", 1000),
        "weeks": ("days", 7),
        "feet": ("inches", 12),
        "hours": ("minutes", 60),
    }
    checked = 0
    for prompt, answer, *_ in _written(units, 400):
        for big, (small, factor) in size.items():
            if re.search(rf"\b{big}\b", prompt) and re.search(rf"\b{small}\b", prompt):
                given, unit = re.search(r"(\d+) (\w+)", prompt).groups()
                expected = int(given) * factor if unit == big else int(given) // factor
                assert re.search(rf"\b{expected}\b", answer), (prompt, answer)
                checked += 1
    assert checked > 40


def _date(text: str) -> date:
    day, month, year = text.split()
    return date(int(year), MONTHS.index(month) + 1, int(day))


DATE = r"\d+ (?:" + "|".join(MONTHS) + r") \d{4}"


def test_calendar_answers_are_right():
    for prompt, answer, *_ in _written(after, 300):
        days = int(re.search(r"(\d+) days", prompt)[1])
        days = -days if re.search(r"before|ago|back", prompt.split("?")[0]) else days
        if re.search(DATE, prompt):
            start = _date(re.search(DATE, prompt)[0])
            assert start + timedelta(days) == _date(re.search(DATE, answer)[0]), (prompt, answer)
        else:
            start = DAYS.index(re.search("|".join(DAYS), prompt)[0])
            assert DAYS[(start + days) % 7] in answer, (prompt, answer)
    for prompt, answer, *_ in _written(days_between, 100):
        first, second = sorted(map(_date, re.findall(DATE, prompt)))
        assert re.search(rf"\b{(second - first).days} days", answer), (prompt, answer)


def test_clock_answers_are_right():
    for prompt, answer, *_ in _written(times, 200):
        told = re.split("together |makes |plus ", answer)[-1] if "How long" in prompt else prompt
        hours, minutes = re.search(r"(\d+) hours?", told), re.search(r"(\d+) minutes?", told)
        clocks = [int(h) * 60 + int(m) for h, m in re.findall(r"(\d\d):(\d\d)", prompt + " " + answer)]
        if "How long" in prompt:
            length = 60 * int(hours[1] if hours else 0) + int(minutes[1] if minutes else 0)
            if length != clocks[1] - clocks[0]:  # told as two stretches
                assert sum(map(int, re.findall(r"(\d+) (?:more )?minutes", answer))) == clocks[1] - clocks[0]
        else:
            length = 60 * int(hours[1] if hours else 0) + int(minutes[1] if minutes else 0)
            assert {clocks[0] + length, clocks[0] - length}.intersection(clocks[1:]), (prompt, answer)


def test_code_answers_run():
    for _, answer, *rest in _written(function, 150):
        scope: dict = {}
        exec(re.search(r"```python\n(.*?)```", answer, re.DOTALL)[1], scope)
        if rest and "`" in rest[1] and "raises" not in rest[1]:
            call = next(value for name, value in scope.items() if callable(value) and name != "__builtins__")
            expected = eval(re.search(r"`(.*)`", rest[1])[1])
            assert call(eval(re.search(r"`(.*)`", rest[0])[1])) == expected
    for prompt, answer in _written(evaluate, 150):
        result = repr(eval(re.search(r"`(.*?)`", prompt)[1]))
        assert f"`{result}`" in answer, (prompt, answer)


def test_grammar_helpers():
    assert [article(w) for w in ("apple", "hour", "unicorn", "8", "18", "one", "egg")] == [
        "an", "an", "a", "an", "an", "a", "an"]  # fmt: skip
    assert [plural(w) for w in ("box", "city", "key", "knife", "child")] == [
        "boxes", "cities", "keys", "knives", "children"]  # fmt: skip
