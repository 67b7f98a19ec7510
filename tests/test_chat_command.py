"""`run.py chat` as it is used: in a pseudo-terminal, through a pipe; and the conversation behind it."""

import os
import re
import sys
import time
from pathlib import Path

import pexpect
import pyte
import pytest

ROOT = Path(__file__).parent.parent
DONE = r"\d+ tokens.*\]"  # the line below an answer


class Person:
    """Somebody at a terminal of this size: types, waits for what is to be read, and looks at the screen."""

    def __init__(self, *arguments: str, columns: int = 80, rows: int = 30, folder: Path = ROOT):
        self.screen = pyte.HistoryScreen(columns, rows, history=2000, ratio=1)
        self.stream = pyte.ByteStream(self.screen)
        environment = os.environ | {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", "PYTHONPATH": str(ROOT)}
        environment |= {"COLUMNS": "", "LINES": "", "OMP_NUM_THREADS": "1"}
        command = [str(ROOT / "run.py"), "chat", *arguments]
        self.program = pexpect.spawn(
            sys.executable, command, dimensions=(rows, columns), env=environment, cwd=folder, timeout=60
        )
        self.wait_for("> $")

    def read(self, seconds: float = 0.1) -> None:
        """What the program has written meanwhile comes to the screen."""
        try:
            while True:
                self.stream.feed(self.program.read_nonblocking(1 << 16, timeout=seconds))
        except (pexpect.TIMEOUT, pexpect.EOF):
            pass

    @property
    def text(self) -> str:
        """Everything from the first line to the cursor, that which has scrolled away as well."""
        above = [
            "".join(line[column].data for column in range(self.screen.columns)) for line in self.screen.history.top
        ]
        below = self.screen.display[: self.screen.cursor.y + 1]
        return "\n".join(line.rstrip() for line in [*above, *below]) + (" " if self.screen.cursor.x == 2 else "")

    def wait_for(self, pattern: str, seconds: float = 60) -> str:
        """The text, once the pattern is found in it."""
        until = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert time.monotonic() < until, f"no {pattern!r} in\n{self.text}"
            self.read()
        return self.text

    def type(self, keys: str) -> None:
        self.program.send(keys)

    def ask(self, line: str, pattern: str = DONE) -> str:
        """Type a line; what is new on the screen when the next prompt is there."""
        before = len(self.text.rstrip().splitlines()) - 1
        self.type(line + "\r")
        until = time.monotonic() + 60
        while True:
            self.read()
            new = "\n".join(self.text.splitlines()[before:])
            if re.search(pattern, new, re.DOTALL) and re.search(r"\n> $", self.text):
                return new
            assert time.monotonic() < until, f"no {pattern!r} and prompt in\n{self.text}"
