"""Files to raw rows, one at a time, whatever is wrong with them.

| ending                                | a row is                                         |
|---------------------------------------|--------------------------------------------------|
| .json, .jsonl, .ndjson, and .gz of it | an element of a JSON array, or a line            |
| .parquet                              | a record (needs the extra `data`)                |
| .txt, and .gz of it                   | a line: {"text": line}                           |
| a folder                              | all of these in it, by name                      |
| hf:NAME[:CONFIG][@SPLIT]              | a record of a Hugging Face data set, streamed    |

Nothing of a file but a row or a block is in memory. What cannot be read comes as a Broken with its place, and the rows
before it stay good.
"""

import codecs
import difflib
import gzip
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datamodules.streams import LARGEST, READING, Broken, Buffered, array_rows, lines, parsed, text_rows
from mhc.errors import UserError
from mhc.text.messages import clean_text

JSON_SUFFIXES, TEXT_SUFFIXES = (".json", ".jsonl", ".ndjson"), (".txt",)
SUFFIXES = (*JSON_SUFFIXES, ".parquet", *TEXT_SUFFIXES)
MAGIC = {  # how a file starts in lower case
    b"pk\x03\x04": "a zip archive",
    b"\x89png": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"%pdf": "a PDF",
    **{b"\x80" + bytes([protocol]): "a pickle" for protocol in range(2, 6)},
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"\xfd7zxz": "an xz archive",
    b"bzh": "a bzip2 archive",
    b"par1": "a parquet file without that ending",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"<!doctype": "a web page, no data: download it again",
    b"<html": "a web page, no data: download it again",
    b"version https://git-lfs": "a pointer of Git LFS: fetch its content with git lfs pull",
}


def raw_rows(path: str) -> Iterator[tuple[str, Any]]:
    """(place, row) of every row; place is "file.json:12" (line of a JSONL file, else number of the row, from 1). A row that
    cannot be read is a Broken. Raises UserError where there is nothing of that name."""
    if str(path).startswith("hf:"):
        yield from _hub_rows(str(path))
        return
    for file in data_files(Path(path)):
        name = clean_text(str(file.relative_to(path)) if file != Path(path) else file.name)
        try:
            yield from (_parquet_rows if name.endswith(".parquet") else _file_rows)(file, name)
        except OSError as problem:
            yield name, Broken(f"the file cannot be read ({problem.strerror or problem})")


def data_files(path: Path) -> list[Path]:
    """The file, or all data files of the folder and its folders, by name."""
    try:
        return _data_files(path)
    except OSError as problem:  # a name that is too long, a folder that may not be read
        raise UserError(
            f"{str(path)[:200]} cannot be read ({problem.strerror or problem}): check the path"
        ) from problem


def _data_files(path: Path) -> list[Path]:
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _ending(file).endswith(SUFFIXES)]
        files = [file for file in files if file.is_file() or (file.is_symlink() and not file.exists())]
        if not files:
            raise UserError(f"{path} is a folder without data files: expected {', '.join(SUFFIXES)}, plain or .gz")
        return files
    if path.exists():
        return [path]
    if path.is_symlink():
        raise UserError(f"{path} is a link to what does not exist: mend the link")
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(str(folder / name) for name in near)}?" if near else "check the path"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)) and not near:
        hint = f"check the path, or for a data set of the Hugging Face Hub write hf:{path}"
    raise UserError(f"{path} does not exist: {hint}")


def source_state(path: str) -> list[Any]:
    """What tells whether a source is still the same: name, size and time of its files."""
    if str(path).startswith("hf:"):
        folder = Path(_hub_name(str(path))[0])
        return [str(path), *(source_state(str(folder)) if folder.is_dir() else [])]
    states = [(file, file.stat()) for file in data_files(Path(path)) if file.exists()]
    return [[str(file.absolute()), state.st_size, state.st_mtime_ns] for file, state in states]


def _ending(file: Path) -> str:
    return file.name.removesuffix(".gz")


def _file_rows(file: Path, name: str) -> Iterator[tuple[str, Any]]:
    with _opened(file) as stream:
        try:
            start = stream.peek(8192)
        except READING as problem:
            yield f"{name}:1", Broken(f"a damaged gzip file ({problem})")
            return
        lower = start[:256].removeprefix(codecs.BOM_UTF8).lstrip().lower()
        if kind := next((kind for magic, kind in MAGIC.items() if lower.startswith(magic)), None):
            yield name, Broken(f"the file is {kind}{'' if ':' in kind else ': convert it to JSONL in UTF-8'}")
            return
        if start.startswith(codecs.BOM_UTF8):
            stream.read(len(codecs.BOM_UTF8))
            start = start[len(codecs.BOM_UTF8) :]
        if not start.strip() and len(start) < 4096:
            yield name, Broken("the file is empty")
        elif _ending(file).endswith(TEXT_SUFFIXES):
            yield from text_rows(name, stream)
        elif start.lstrip()[:1] == b"[":
            yield from array_rows(name, stream)
        else:
            yield from _line_rows(file, name, stream)


@contextmanager
def _opened(file: Path) -> Iterator[Buffered]:
    with open(file, "rb") as stream:
        if stream.peek(2)[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=stream) as unzipped:
                yield unzipped
        else:
            yield stream


def _line_rows(file: Path, name: str, stream: Buffered) -> Iterator[tuple[str, Any]]:
    for number, (where, line) in enumerate(lines(name, stream)):
        row = line if isinstance(line, Broken) else parsed(line)
        if number == 0 and isinstance(row, Broken) and isinstance(whole := _whole(file), dict):
            yield where, whole  # one object, written over several lines
            return
        yield where, row


def _whole(file: Path) -> Any:
    with _opened(file) as stream:
        try:
            return parsed(stream.read(LARGEST).removeprefix(codecs.BOM_UTF8))
        except READING:
            return None


# -- parquet and the hub ---------------------------------------------------------------------------


def _parquet_rows(file: Path, name: str) -> Iterator[tuple[str, Any]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as problem:
        raise UserError(f'{file} needs pyarrow: pip install "mhc[data]"') from problem
    number = 1
    try:
        for batch in ParquetFile(file).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{name}:{number}", row
                number += 1
    except (ArrowException, OSError) as problem:
        reason = " ".join(str(problem).split())[:120]
        yield f"{name}:{number}", Broken(f"damaged parquet ({reason}); what follows in this file cannot be read")


def _hub_name(path: str) -> tuple[str, str | None, str]:
    """(name, config, split) of hf:NAME[:CONFIG][@SPLIT]."""
    name, _, split = path.removeprefix("hf:").partition("@")
    name, _, config = name.partition(":")
    return name, config or None, split or "train"


def _hub_rows(path: str) -> Iterator[tuple[str, Any]]:
    try:
        from datasets import load_dataset
        from datasets.utils.logging import disable_progress_bar
    except ImportError as problem:
        raise UserError(f'{path} needs the datasets library: pip install "mhc[data]"') from problem
    name, config, split = _hub_name(path)
    disable_progress_bar()
    for library in ("datasets", "huggingface_hub"):  # they log each of many retries
        logging.getLogger(library).setLevel(logging.ERROR)
    try:
        for number, row in enumerate(load_dataset(name, config, split=split, streaming=True), start=1):
            yield f"{name}:{number}", row
    except Exception as problem:  # the library raises anything from OSError to its own kinds
        reason, hint = " ".join(str(problem).split())[:200], "check its name, config and split"
        if isinstance(problem, ConnectionError):
            hint = "check the name and the network, or bring the data set here and give its folder"
        raise UserError(f"data set {path} cannot be read ({reason}): {hint}") from problem
