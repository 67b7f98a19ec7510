"""The page about a run: real runs, resumed ones, language models, and files that mean harm."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import run
from mhc.errors import UserError
from mhc.reports.plots import MOST_POINTS, curves_svg, tree_svg
from mhc.reports.run_logs import read_logs
from mhc.reports.run_page import report
from mhc.util.duration import duration
from tests.helpers.runs import CASCADE, COMMON, small, sums

VOID = {"meta", "path", "use", "rect", "circle", "line"}


class Tags(HTMLParser):
    """Fails unless every tag is closed in its turn; keeps the tags and the text that a reader sees."""

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.text = ""
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            assert not name.startswith("on") and (name not in ("src", "href", "xlink:href") or value.startswith("#"))

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def write_logs(folder: Path, version: int, rows: list[dict], config: str = "") -> None:
    """A metrics.csv as CSVLogger writes it."""
    names = sorted({name for row in rows for name in row})
    where = folder / f"logs/version_{version}"
    where.mkdir(parents=True)
    lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in rows)]
    (where / "metrics.csv").write_text("\n".join(lines) + "\n")
    (where / "config.yaml").write_text(config)


def test_fit_and_then_test_make_one_page(tmp_path, capsys):
    out = tmp_path / "run"
    flags = [*COMMON, *CASCADE, *small(out, sums(tmp_path)), "--trainer.log_every_n_steps", "1"]
    assert run.main(["fit", *flags]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().out.replace("\n", "")
    page = (out / "report.html").read_text()
    trained = Tags(page)
    metrics = json.loads((out / "drafter.json").read_text())["metrics"]
    cost = json.loads((out / "training.json").read_text())
    for wanted in (
        "Cascade heads on pocket",
        "Not measured yet",
        "head 4",
        f"{metrics['val/tokens_per_step']:.2f}",
        f"{metrics['val/head3_top1']:.3f}",
        f"{cost['tokens']:,} tokens seen",
        cost["machine"]["processor"],
        "learning_rate",
        "seed_everything: 0",
    ):
        assert wanted in trained.text, wanted
    curves = ("loss", "tokens per step, validation", "top-1 of each head, validation", "learning rate", "gradient norm")
    assert all(title in trained.text for title in (*curves, "tokens a second"))
    assert trained.seen.count("svg") == 7 and "prefers-color-scheme: dark" in page and "width=device-width" in page
    assert "http" not in page and "script" not in trained.seen
    assert run.main(["test", *flags]) == 0
    decoded = json.loads((out / "decode_benchmark.json").read_text())
    tested = Tags((out / "report.html").read_text())
    assert "Not measured yet" not in tested.text and f"{decoded['speedup']:.2f}×" in tested.text
    assert f"{decoded['identical']} / {decoded['prompts']}" in tested.text and "one round of an answer" in tested.text
    assert tested.seen.count("svg") == 9 and all(title in tested.text for title in curves)  # fit's part is there still


def test_nothing_from_a_file_is_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>&\"'"
    write_logs(tmp_path, 0, [{"step": 0, "train/loss": 1.0}], f"model:\n  class_path: {json.dumps(evil)}\nseed: 1\n")
    example = {"parents": [-1, 0, 0], "labels": [evil, "$x_{", "a$b$"], "strong": [True, True, False], "title": evil}
    figures = dict.fromkeys(("speedup", "speedup_q1", "speedup_q3", "speedup_min", "speedup_max"), 1.5)
    figures |= dict.fromkeys(("tokens_per_step", "plain_tokens_per_second", "tokens_per_second"), 2.0)
    figures |= {"drafter": evil, "prompts": 1, "identical": 1, "max_new_tokens": 8, "tree_nodes": 3}
    figures |= {"accepted_histogram": [1, 2], "head_accuracy": [], "example": example}
    (tmp_path / "decode_benchmark.json").write_text(json.dumps(figures))
    heads = {"drafter": evil, "backbone": evil, "fingerprint": evil, "tree": {"choices": [[0]]}, "metrics": {}}
    (tmp_path / "drafter.json").write_text(json.dumps(heads))
    page = Tags(report(tmp_path))
    assert not {"script", "img"} & set(page.seen)
    assert page.text.count(evil) >= 5 and "a$b$" in page.text


def test_a_resumed_run_is_one_curve(tmp_path):
    """Killed at step 50 behind a checkpoint of step 29; validated in between, which is no part of the curve."""
    write_logs(tmp_path, 0, [{"step": step, "train/loss": 1.0} for step in range(0, 60, 10)], "seed_everything: 1")
    write_logs(tmp_path, 1, [{"step": 0, "val/loss": 9.0}])
    write_logs(tmp_path, 10, [{"step": step, "train/loss": 3.0} for step in (30, 40)], "seed_everything: 3")
    write_logs(tmp_path, 2, [{"step": step, "train/loss": 2.0} for step in (30, 40, 50, 60)], "seed_everything: 2")
    curves, config = read_logs(tmp_path)
    assert curves == {"train/loss": {0: 1.0, 10: 1.0, 20: 1.0, 30: 3.0, 40: 3.0}}
    assert config == {"seed_everything": 3}
    again = tmp_path / "again"  # one file that a resumed run goes on in
    rows = [{"step": 0, "train/loss": 1.0}, {"step": 1, "train/loss": 1.0}, {"step": 1, "train/loss": 2.0}]
    write_logs(again, 0, rows)
    with next(again.glob("logs/*/metrics.csv")).open("a") as log:
        log.write("2,1")  # of 1.5, where the run was killed
    assert read_logs(again)[0] == {"train/loss": {0: 1.0, 1: 2.0}}


def test_a_language_model_has_its_loss(tmp_path):
    rows = [{"step": step, "train/loss": 5 - step / 50, "val/loss": ""} for step in range(100)]
    rows.append({"step": 99, "train/loss": "", "val/loss": 3.25})
    config = "model: {class_path: mhc.lm.module.LMModule, init_args: {model: {model_type: llama, hidden_size: 320}}}"
    write_logs(tmp_path, 0, rows, config)
    page = Tags(report(tmp_path))
    assert "Training of llama" in page.text and "3.250" in page.text and page.seen.count("svg") == 1
    assert "model.hidden_size" in page.text and "has not finished" in page.text and "Decoding" not in page.text


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "training.json").write_text('{"steps": ')
    with pytest.raises(UserError, match=r"training\.json"):
        report(tmp_path)


def test_curves_are_thinned_and_have_gaps(tmp_path):
    values = {step: float("nan") if step % 100 < 3 else 1.0 + step for step in range(10_000)}
    picture = curves_svg("long", {"a": values}, logarithmic=True)
    drawn = max(re.findall(r' d="([^"]+)"', picture), key=len)
    assert 100 < len(re.findall("[ML] ", drawn)) <= MOST_POINTS and drawn.count("M ") > 50
    assert curves_svg("long", {"a": values}, logarithmic=True) == picture  # the same file for the same run
    assert curves_svg("nothing", {"a": {3: float("inf")}}) and "→ 字" in tree_svg([-1, 0], ["a", "→ 字"], [True, False])


def test_durations_are_told_in_two_units():
    seconds = {8.21: "8.2 s", 99.7: "1 min 40 s", 7500: "2 h 5 min", 24 * 3600 - 1: "23 h 59 min", 264_000: "3 d 1 h"}
    assert {told: duration(told) for told in seconds} == seconds
