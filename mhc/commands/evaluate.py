"""`run.py evaluate`: how good a language model is: perplexity of a text, multiple-choice exams, lm-evaluation-harness.

Results go to the terminal and into one JSON file per model: earlier results with other settings stay in it, what is
measured again is replaced, and the file of another model (or of other weights) is renamed to *.previous.json.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhc.commands import Parser, add_loading, loading_of
from mhc.errors import UserError
from mhc.util.options import did_you_mean
from mhc.util.progress import say

if TYPE_CHECKING:
    from mhc.backbone.model import Backbone
    from mhc.lm.exams import Exam
    from mhc.text.messages import Messages

RESULT = "evaluation.json"
POCKET_DIALOGUES = 20_000  # generated where the source is pocket
SHOTS = 5


def main(argv: list[str]) -> int:
    """Evaluate --model; returns the exit status."""
    options = _parser().parse_args(argv)
    _check(options)

    from mhc.lm.exams import read_exam
    from mhc.lm.harness import require_harness

    if options.harness:
        require_harness()
    exams = _with_subjects({source: read_exam(source) for source in options.exams}, options.subjects)
    texts = [(source, _conversations(source, options)) for source in options.perplexity]

    from mhc.backbone.model import Backbone
    from mhc.lm.results import Results, show_exam, show_perplexity

    loading = loading_of(options)
    backbone = Backbone.load(options.model, decoding=False, **loading)
    loaded = {
        "dtype": str(loading["dtype"]).removeprefix("torch."),
        "device": options.device,
        "quantize": options.quantize,
    }
    results = Results(_result_path(options), backbone, loaded)
    window = _window(options, backbone.context) if texts else 0
    for source, conversations in texts:
        results.add(_perplexity(backbone, source, conversations, window, options))
    show_perplexity(results.new)
    for source, exam in exams.items():
        results.add(_exam(backbone, source, exam, options))
        show_exam(results.new[-1])
    del backbone
    if options.harness:
        results.add(_by_harness(options, loaded["dtype"]))
    say(f"-> {results.path}")
    return 0


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for flags that do not fit together, before anything is read."""
    if not (options.perplexity or options.exams or options.harness):
        raise UserError("nothing to measure: give --perplexity PATH, --exams ZIP or --harness TASK")
    for name, least in (("limit", 1), ("shots", 0), ("max_length", 2), ("batch_tokens", 1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}: it must be at least {least}")
    if options.subjects and not options.exams:
        raise UserError("--subjects goes with --exams: give an exam")
    if options.quantize and options.harness:
        raise UserError("--harness loads the model itself: leave --quantize out")


# -- what is evaluated ----------------------------------------------------------------------------------


def _with_subjects(exams: dict[str, "Exam"], names: list[str] | None) -> dict[str, "Exam"]:
    """The exams, by source, with these subjects only. Raises UserError for a subject that none has."""
    from mhc.lm.exams import Exam

    if names is None:
        return exams
    known = {name for exam in exams.values() for name in exam.subjects}
    for name in names:
        if name not in known:
            hint = did_you_mean(name, sorted(known), 3) or f": there are {', '.join(sorted(known)[:5])} and more"
            raise UserError(f"no subject '{name}' among {len(known)}{hint}")
    reduced = {
        source: Exam(exam.name, {name: exam.subjects[name] for name in exam.subjects if name in names})
        for source, exam in exams.items()
    }
    return {source: exam for source, exam in reduced.items() if exam.subjects}


def _conversations(source: str, options: argparse.Namespace) -> "list[Messages]":
    """The messages of a source's split."""
    from datamodules import ConversationData
    from mhc.text.splits import SPLITS, prompt_number

    data = ConversationData(source, limit=POCKET_DIALOGUES if source == "pocket" else None)
    splits = SPLITS if options.split == "all" else (options.split,)
    conversations = [conversation for split in splits for conversation in data.conversations(split)]
    if data.report and (data.report.bad or data.report.dropped or data.report.unused):
        say("\n".join(data.report.lines()), markup=True)
    if not conversations:
        raise UserError(f"'{source}' has no row in its {options.split} split: choose --split all")
    if options.limit is not None:
        conversations = sorted(conversations, key=lambda each: (prompt_number(each.prompt), each.id))[: options.limit]
    return [conversation.messages for conversation in conversations]


def _window(options: argparse.Namespace, context: int) -> int:
    from mhc.lm.evaluation import LONGEST

    if context < (options.max_length or 2):
        raise UserError(f"--max_length is {options.max_length or 2}: the model's context is {context} tokens")
    return options.max_length or min(context, LONGEST)


# -- measurements ------------------------------------------------------------------------------


def _perplexity(
    backbone: "Backbone", source: str, conversations: "list[Messages]", window: int, options: argparse.Namespace
) -> dict[str, Any]:
    from mhc.lm.evaluation import perplexity

    settings = {"source": source, "split": options.split, "limit": options.limit, "window": window}
    with _bar(f"reading {Path(source).name}") as progress:
        try:
            figures = perplexity(backbone, conversations, window, options.batch_tokens, progress)
        except UserError as error:
            raise UserError(f"'{source}': {error}") from error
    return {"kind": "perplexity", "settings": settings, **figures}


def _exam(backbone: "Backbone", source: str, exam: "Exam", options: argparse.Namespace) -> dict[str, Any]:
    from mhc.lm.sitting import sit

    shots = SHOTS if options.shots is None else options.shots
    settings = {"source": source, "shots": shots, "limit": options.limit, "subjects": options.subjects}
    with _bar(f"sitting {exam.name}") as progress:
        figures = sit(backbone, exam, shots, options.limit, options.batch_tokens, progress)
    return {"kind": "exam", "settings": settings, **figures}


def _by_harness(options: argparse.Namespace, dtype: str) -> dict[str, Any]:
    from mhc.lm.harness import run_harness

    figures, table = run_harness(options.model, options.harness, options.shots, options.limit, options.device, dtype)
    print(table)
    settings = {"source": sorted(options.harness), "shots": options.shots, "limit": options.limit}
    return {"kind": "harness", "settings": settings, "harness": figures}


# -- output ----------------------------------------------------------------------------------


def _result_path(options: argparse.Namespace) -> Path:
    """--out, or beside the model's files where it is a folder, or a folder of its name."""
    if options.out is not None:
        out = Path(options.out)
        return out / RESULT if out.is_dir() else out
    if Path(options.model).is_dir():
        return Path(options.model) / RESULT
    return Path("runs/evaluate") / options.model.replace("/", "--") / RESULT


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error; the function takes what is done, and the total."""
    from mhc.util.progress import add_task, counting_bar

    with counting_bar() as progress:
        yield add_task(progress, title)


def _parser() -> Parser:
    parser = Parser(
        prog="run.py evaluate",
        description="Measure a language model: loss, perplexity and bits per byte of texts; multiple-choice exams by the "
        "likelihood of the letters; tasks of EleutherAI's lm-evaluation-harness where that is installed.",
    )
    add = parser.add_argument
    add("--model", required=True, metavar="NAME", help="a directory, a .gguf file, a hub name, pocket or smollm2")
    texts = "conversations or documents: files, folders, hf:NAME, pocket"
    add("--perplexity", nargs="+", default=[], metavar="PATH", help=texts)
    exams = "ZIPs or folders of CSV files <subject>_<split>.csv in the format of C-Eval or MMLU"
    add("--exams", nargs="+", default=[], metavar="ZIP", help=exams)
    tasks = "tasks of lm-evaluation-harness by name, or YAML files of your own (see its documentation)"
    add("--harness", nargs="+", default=[], metavar="TASK", help=tasks)
    splits = ("train", "validation", "test", "all")
    add("--split", choices=splits, default="test", help="which rows of a text (default test, as in training)")
    shots = f"examples before an exam's question (default {SHOTS}; of --harness: the task's own)"
    add("--shots", type=int, metavar="N", help=shots)
    add("--subjects", nargs="+", metavar="NAME", help="only these subjects of the exams")
    add(
        "--limit", type=int, metavar="N", help="at most N rows of a text and N questions of a subject, for a quick look"
    )
    window = "tokens of a text that are seen at once (default: the model's context, at most 2048)"
    add("--max_length", type=int, metavar="T", help=window)
    add("--batch_tokens", type=int, default=8192, metavar="N", help="positions read at once (default 8192)")
    out = f"where results go (default: {RESULT} in the model's directory, else under runs/evaluate)"
    add("--out", metavar="FILE", help=out)
    add_loading(parser)
    return parser
