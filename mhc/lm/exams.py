"""Multiple-choice exams in the CSV files of C-Eval, MMLU and others in their format.

A ZIP or a folder holds one CSV per subject and split, named <subject>_<split>.csv anywhere in it, the split one of dev, val
and test. A file has columns named question, A, B, ... and answer (C-Eval; others are ignored), or no header and
question, choices, answer (MMLU). Examples come from dev. Questions come from test where it has answers, else from val:
C-Eval does not publish those of test.
"""

import csv
import io
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from mhc.errors import UserError
from mhc.text.messages import clean_text

LETTERS = "ABCDEFGHIJ"
NAME = re.compile(r"(.+)_(dev|val|test)")
CHINESE = re.compile(r"[\u4e00-\u9fff]")
EXPECTED = "expected <subject>_dev.csv, _val.csv or _test.csv with question, choices and answer"


@dataclass(frozen=True)
class Question:
    """The question, its choices, and the number of the right one (None where the file does not give it)."""

    text: str
    choices: tuple[str, ...]
    answer: int | None


@dataclass
class Subject:
    """Examples and the questions of one split, all with answers."""

    name: str
    examples: list[Question] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    split: str = ""


@dataclass(frozen=True)
class Exam:
    """Subjects by name. chinese: most questions are."""

    name: str
    subjects: dict[str, Subject]

    @property
    def chinese(self) -> bool:
        texts = [question.text for subject in self.subjects.values() for question in subject.questions]
        return 2 * sum(CHINESE.search(text) is not None for text in texts) > len(texts)


def read_exam(path: str | Path) -> Exam:
    """The exam in a ZIP or a folder. Raises UserError where there is none, and for a row that is not a question, with its
    file and line."""
    path = Path(path)
    splits: dict[str, dict[str, list[Question]]] = {}  # questions with answers, by subject and split
    for name, data in _files(path):
        if named := NAME.fullmatch(PurePosixPath(name).stem):
            questions = [question for question in _questions(data, f"{path}: {name}") if question.answer is not None]
            splits.setdefault(named[1], {})[named[2]] = questions
    subjects = {}
    for name, answered in sorted(splits.items()):
        if split := next((split for split in ("test", "val") if answered.get(split)), None):
            subjects[name] = Subject(name, answered.get("dev", []), answered[split], split)
    if not subjects:
        what = f"{len(splits)} subjects, none with an answered test or val question" if splits else "no exam"
        raise UserError(f"'{path}' holds {what}: {EXPECTED}")
    return Exam(path.stem, subjects)


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every CSV file."""
    if path.is_dir():
        for file in sorted(path.rglob("*.csv")):
            try:
                yield file.relative_to(path).as_posix(), file.read_bytes()
            except OSError as error:
                raise UserError(f"'{file}' cannot be read ({error.strerror}): repair or remove it") from error
        return
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                if name.endswith(".csv") and not name.startswith("__MACOSX"):
                    yield name, archive.read(name)
    except FileNotFoundError as error:
        raise UserError(f"exam '{path}' does not exist: give a ZIP or a folder, {EXPECTED}") from error
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"'{path}' is not a readable ZIP ({error}): {EXPECTED}") from error


def _questions(data: bytes, where: str) -> Iterator[Question]:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where} is not UTF-8 ({error}): convert it") from error
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise UserError(f"{where}, line {reader.line_num} is not CSV ({error})") from error
    header = [cell.strip().lower() for cell in rows[0][1]] if rows else []
    named = {"question", "a", "b"} <= set(header)
    for line, row in rows[named:]:
        if named:
            cells = dict(zip(header, row))
            text, answer = cells.get("question", ""), cells.get("answer", "")
            choices = [cells.get(letter.lower(), "") for letter in LETTERS]
        else:
            text, *choices, answer = row if len(row) > 2 else ["", "", ""]
        yield _question(text, choices, answer, f"{where}, line {line}")


def _question(text: str, choices: list[str], answer: str, where: str) -> Question:
    choices = [clean_text(choice.strip()) for choice in choices[: len(LETTERS)]]
    while choices and not choices[-1]:  # a column that other questions need
        choices.pop()
    if not text.strip() or len(choices) < 2:
        raise UserError(f"{where} is not a question with at least two choices: {EXPECTED}")
    answer = answer.strip().upper()
    if answer and answer not in list(LETTERS[: len(choices)]):
        raise UserError(f"{where}: the answer is '{answer[:40]}', expected one of {LETTERS[: len(choices)]}")
    return Question(clean_text(text.strip()), tuple(choices), LETTERS.index(answer) if answer else None)
