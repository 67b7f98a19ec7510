"""Progress bars and lines of text on standard error.

A bar vanishes when it is finished, and is not drawn where standard error is no terminal: a log holds lines only.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")


def say(text: str, markup: bool = False) -> None:
    """Print on standard error, in one colour and without breaking lines. markup: whether [bold] and the like mean a style."""
    _errors().print(text, markup=markup, soft_wrap=True)


def bar(*columns: str | ProgressColumn) -> Progress:
    """A progress display; without columns rich's usual ones: description, bar, per cent and time remaining."""
    console = _errors()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def counting_bar(*fields: str) -> Progress:
    """A progress display with "done/total". fields: formats of further columns, such as "{task.fields[rate]}"."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *map(TextColumn, fields))
    return bar(*columns, TimeRemainingColumn())


def add_task(progress: Progress, title: str) -> Callable[[int, int], None]:
    """A further task of a progress display, as a function (done, total) that moves it."""
    task = progress.add_task(title, total=None)
    return lambda done, total: progress.update(task, completed=done, total=total)


def track(items: Iterable[Item], total: int, title: str, after: float = 2.0) -> Iterator[Item]:
    """The items, with a bar once they take longer than `after` seconds."""
    started, update = time.monotonic(), None
    with ExitStack() as stack:
        for done, item in enumerate(items):
            if update is None and time.monotonic() - started > after:
                update = add_task(stack.enter_context(bar()), title)
            if update is not None:
                update(done, total)
            yield item


def _errors() -> Console:
    return Console(stderr=True, highlight=False)
