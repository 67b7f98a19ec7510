"""What a chat is held on: a terminal, or a pipe with one question a line. Both have the same methods."""

import signal
import sys
import termios
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings
from prompt_toolkit.shortcuts import CompleteStyle
from rich.console import Console
from rich.text import Text

from mhc.chat.live_markdown import LiveAnswer, harmless
from mhc.errors import UserError


class Bare:
    """An answer as it comes, on whatever can write."""

    def __init__(self, file, change=str):
        self.file, self.change = file, change

    def push(self, text: str, guessed: bool) -> None:
        self.file.write(self.change(text))
        self.file.flush()

    def finish(self) -> None:
        self.push("\n", False)


class Pipe:
    """Questions from standard input, answers to standard output, everything else to standard error; the first thing that is
    wrong ends it."""

    def __init__(self):
        for stream in (sys.stdin, sys.stdout):
            if isinstance(stream, TextIOWrapper):
                stream.reconfigure(errors="replace")

    def ask(self) -> str | None:
        """The next question or command, over as many lines as end with a backslash; None at the end."""
        lines = []
        while line := sys.stdin.readline():
            lines.append(line.rstrip("\r\n"))
            if not lines[-1].endswith("\\"):
                break
            lines[-1] = lines[-1][:-1]
        return "\n".join(lines) if lines else None

    def note(self, text: str) -> None:
        """Tell something that is no answer."""
        print(text, file=sys.stderr, flush=True)

    def refuse(self, problem: UserError) -> None:
        """Tell what cannot be done."""
        raise problem

    def confirms(self, question: str) -> bool:
        """Whether the user says yes; nobody is there to ask."""
        return False

    def answer(self) -> Bare:
        """Where the next answer is written."""
        return Bare(sys.stdout)

    @contextmanager
    def answering(self) -> Iterator[threading.Event]:
        """While the model speaks: set when the user wants it to stop. Here Ctrl-C ends the program as usual."""
        yield threading.Event()


class Terminal:
    """A person at a terminal. commands: their names; with_file: those of them that a file name follows."""

    def __init__(self, commands: Sequence[str], with_file: Sequence[str]):
        self.console = Console(highlight=False)
        self.session: PromptSession[str] = PromptSession(
            history=InMemoryHistory(),
            completer=_Names(commands, with_file),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,
            key_bindings=_keys(),
            multiline=True,
            prompt_continuation="  ",
        )

    def ask(self) -> str | None:
        """The next question or command; None at the end."""
        return _typed(self.session, "\n> ")

    def note(self, text: str) -> None:
        """Tell something that is no answer."""
        self.console.print(Text(harmless(text), style="dim"))

    def refuse(self, problem: UserError) -> None:
        """Tell what cannot be done."""
        self.console.print(Text(harmless(" ".join(str(problem).split())), style="red"))

    def confirms(self, question: str) -> bool:
        """Whether the user says yes."""
        return (_typed(PromptSession(), f"{harmless(question)} [y/N] ") or "").strip().lower() in ("y", "yes")

    def answer(self) -> LiveAnswer | Bare:
        """Where the next answer is written."""
        return Bare(self.console.file, harmless) if self.console.is_dumb_terminal else LiveAnswer(self.console)

    @contextmanager
    def answering(self) -> Iterator[threading.Event]:
        """While the model speaks: set by Ctrl-C; a second one does not wait for the step under way. What is typed
        meanwhile is not shown in the middle of the answer, and dropped: an impatient Enter must not end the program."""
        stop = threading.Event()

        def interrupted(*_) -> None:
            if stop.is_set():
                raise KeyboardInterrupt
            stop.set()

        keyboard = sys.stdin.fileno()
        before, handler = termios.tcgetattr(keyboard), signal.signal(signal.SIGINT, interrupted)
        silent = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
        termios.tcsetattr(keyboard, termios.TCSANOW, silent)
        try:
            yield stop
        except KeyboardInterrupt:  # the figures below the answer were not waited for
            pass
        finally:
            signal.signal(signal.SIGINT, handler)
            termios.tcsetattr(keyboard, termios.TCSAFLUSH, before)


def _typed(session: PromptSession, prompt: str) -> str | None:
    """What the user types; None for Ctrl-D or, where no key is bound to it, Ctrl-C."""
    try:
        return session.prompt(prompt)
    except (EOFError, KeyboardInterrupt):
        return None
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # one Ctrl-C too many between answer and prompt ends nothing


class _Names(Completer):
    """Tab completes commands, and the names of files behind those that want one."""

    def __init__(self, commands: Sequence[str], with_file: Sequence[str]):
        self.commands, self.with_file, self.files = commands, with_file, PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        name, space, file = document.text_before_cursor.partition(" ")
        if space and name in self.with_file:
            yield from self.files.get_completions(Document(file), complete_event)
        elif not space and name.startswith("!"):
            for command in self.commands:
                if command.startswith(name):
                    behind = " " if command in self.with_file else ""
                    yield Completion(command + behind, start_position=-len(name), display=command)


def _keys() -> KeyBindings:
    """Enter asks, a backslash before it or Alt goes to the next line, Ctrl-C clears what was typed."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-c")
    @keys.add("<sigint>")
    def _(event) -> None:
        event.current_buffer.reset()

    return keys
