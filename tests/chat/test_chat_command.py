"""`run.py chat` as it is used: in a pseudo-terminal, through a pipe; and the conversation behind it."""

import io
import json
import os
import random
import re
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pyte
import pytest
from rich.console import Console

import run
from mhc.backbone.model import Backbone
from mhc.chat.conversation import Conversation, Exchange
from mhc.chat.live_markdown import LiveAnswer
from mhc.checkpoints.heads_folder import save_drafter
from mhc.commands.chat import COMMANDS, USAGE, Chat
from mhc.drafters import Medusa
from mhc.engine import Engine
from mhc.errors import UserError
from mhc.sampling import Sampling
from mhc.trees.shapes import FixedTree

ROOT = Path(__file__).parents[2]
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

    def read(self, seconds: float = 0.03) -> None:
        """What the program has written meanwhile comes to the screen."""
        try:
            while True:
                self.stream.feed(self.program.read_nonblocking(1 << 16, timeout=seconds))
        except pexpect.TIMEOUT:
            pass
        except pexpect.EOF:
            raise AssertionError(f"the program has ended:\n{self.text}") from None

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

    def ask(self, line: str, pattern: str = DONE, enter: str = "\r") -> str:
        """Type a line; what is new on the screen when the next prompt is there."""
        before = len(self.text.rstrip().splitlines()) - 1
        self.type(line + enter)
        until = time.monotonic() + 60
        while True:
            self.read()
            new = "\n".join(self.text.splitlines()[before:])
            if re.search(pattern, new, re.DOTALL) and re.search(r"\n> $", self.text):
                return new
            assert time.monotonic() < until, f"no {pattern!r} and prompt in\n{self.text}"

    def green(self) -> str:
        """The characters on the screen that are green."""
        lines = (self.screen.buffer[row] for row in range(self.screen.lines))
        return "".join(line[at].data for line in lines for at in range(self.screen.columns) if line[at].fg == "green")


LETTER = "Write a thank-you letter from Luis to Leo. It is for the teddy bear."


@pytest.fixture(scope="module")
def backbone():
    return Backbone.load("pocket")


@pytest.fixture(scope="module")
def heads(backbone, tmp_path_factory):
    """Heads that learned nothing, with so wide a tree that they are right now and then."""
    folder = tmp_path_factory.mktemp("heads")
    save_drafter(folder, Medusa(backbone, heads=1), FixedTree([(choice,) for choice in range(60)]))
    return folder


def kept(path: Path) -> list[tuple[str, str]]:
    """Who said what in a saved conversation."""
    return [
        (message["role"], message["content"]) for message in json.loads(path.read_text(encoding="utf-8"))["messages"]
    ]


# -- in a terminal -----------------------------------------------------------------------------------


def test_every_command_in_a_terminal(heads, backbone, tmp_path):
    person = Person("--checkpoint", str(heads), "--system", "Be kind.", "--max_new_tokens", "40", folder=tmp_path)
    assert "green" in person.text
    first = person.ask(LETTER)
    assert "tokens per step" in first and re.search(r"\d\.\d\dx plain", first) and person.green()
    assert "heads off" in person.ask("!!plain", "heads off")
    assert ", plain, " in person.ask("What is 3 plus 4?") and "heads on" in person.ask("!!plain", "heads on")
    person.ask("!!save one.json", "saved: 2 exchanges")
    one = (tmp_path / "one.json").read_bytes()
    engine, said = Engine(backbone), [{"role": "system", "content": "Be kind."}]
    for question in (LETTER, "What is 3 plus 4?"):  # what was kept is what the model says
        said.append({"role": "user", "content": question})
        said.append({"role": "assistant", "content": engine.generate(said, 40).text})
    assert kept(tmp_path / "one.json") == [(message["role"], message["content"]) for message in said]

    # a file that exists is not overwritten without asking
    person.ask("!!remove", r"forgotten: What is 3 plus 4\?")
    for answer in ("\r", "n\r", "\x03", "\x04"):
        person.type("!!save one.json\r")
        person.wait_for(r"overwrite it\? \[y/N\] *$")
        person.ask(answer, "'one.json' exists: choose", enter="")
        assert (tmp_path / "one.json").read_bytes() == one
    # what cannot be loaded is refused and leaves the conversation as it is
    (tmp_path / "torn.json").write_bytes(one[:-40])
    (tmp_path / "foreign.json").write_text('{"model": "pocket"}')
    for name, told in (("torn", "damaged"), ("foreign", "no conversation"), ("missing", "cannot read")):
        person.ask(f"!!load {name}.json", told)
    person.ask("!!save now.json", "saved: 1 exchange ")
    assert kept(tmp_path / "now.json") == kept(tmp_path / "one.json")[:3]

    # loading restores byte for byte
    person.ask("!!load one.json", "loaded: 2 exchanges, greedy")
    person.type("!!save now.json\r")
    person.wait_for(r"'now.json' exists: overwrite it\? \[y/N\] *$")
    person.ask("y", "saved: 2 exchanges")
    assert (tmp_path / "now.json").read_bytes() == one
    assert "same answer" in person.ask("!!regen")
    person.ask("!!save again.json", "saved: 2 exchanges")
    assert (tmp_path / "again.json").read_bytes() == one

    assert all(usage in person.ask("!!help", "begins a new line") for usage in COMMANDS)
    assert all(name in person.ask("!!x", "unknown command '!!x'") for name in USAGE)
    person.ask("!!save", "write !!save FILE")
    person.type("!!rese\t")
    person.wait_for("> !!reset$")
    person.ask("", "forgotten: 2 exchanges")
    person.ask("!!remove", "nothing was said yet")
    person.ask("!!regen", "nothing was said yet")
    person.type("!!lo\tag\t")
    person.wait_for("> !!load again.json$")
    person.ask("", "loaded: 2 exchanges")
    person.type("!!exit\r")
    person.program.expect(pexpect.EOF)
    assert person.program.wait() == 0


def test_an_answer_is_stopped_and_lines_are_many(heads, backbone, tmp_path):
    """At 40 columns, drawn at a temperature at which no answer ends by itself."""
    drawn = ["--temperature", "3", "--seed", "5", "--max_new_tokens", "900"]
    person = Person("--checkpoint", str(heads), *drawn, columns=40, folder=tmp_path)
    person.type("never asked\x03Say <|im_end|>\\\r")
    person.type("two\x1b\rthree \x1b[200~four\nfive\x1b[201~\r")
    question = "Say <|im_end|>\ntwo\nthree four\nfive"
    written = len(person.text)
    while len(person.text) < written + 400:
        person.read()
    person.type("typed ahead\x03")
    person.wait_for(r"stopped\]\n\n> $")  # and what was typed meanwhile is gone
    person.ask("!!save one.json", "saved: 1 exchange")
    (_, asked), (_, answer) = kept(tmp_path / "one.json")
    assert asked == question and len(answer) > 100
    assert json.loads((tmp_path / "one.json").read_text())["messages"][1]["finish_reason"] == "interrupted"
    whole = Engine(backbone).generate(question, 900, sampling=Sampling(temperature=3.0, seed=5))
    assert whole.text.startswith(answer) and whole.text != answer

    person.type("!!regen\r")
    person.wait_for(r"!!regen\n(.+\n){5}")
    person.type("\x03")
    person.wait_for("stopped(?s:.*)stopped")
    person.ask("!!save two.json", "saved: 1 exchange")
    assert json.loads((tmp_path / "two.json").read_text())["sampling"]["seed"] == 6
    assert (
        kept(tmp_path / "two.json")[0] == ("user", question) and kept(tmp_path / "two.json")[1][1][:50] != answer[:50]
    )
    person.type("\x04")
    person.program.expect(pexpect.EOF)
    assert person.program.wait() == 0


# -- through a pipe ----------------------------------------------------------------------------------


def pipe(monkeypatch, capsys, typed: str, *arguments: str) -> tuple[int, str, str]:
    """Exit status, answers and notes of a chat that is fed by a pipe."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode("latin-1")), encoding="utf-8"))
    capsys.readouterr()
    status = run.main(["chat", "--max_new_tokens", "12", *arguments])
    return status, *capsys.readouterr()


def test_a_pipe_asks_a_question_a_line(heads, backbone, monkeypatch, capsys, tmp_path):
    engine, said = Engine(backbone), []
    for question in ("What is 3 plus 4?", "Two\nlines"):
        said.append({"role": "user", "content": question})
        said.append({"role": "assistant", "content": engine.generate(said, 12).text})
    typed = f"What is 3 plus 4?\nTwo\\\nlines\n!!save {tmp_path / 'one.json'}\n\nnever asked\n"
    status, told, notes = pipe(monkeypatch, capsys, typed, "--checkpoint", str(heads))
    assert (status, told) == (0, "".join(message["content"] + "\n" for message in said[1::2]))
    assert notes.count("tokens per step") == 2 and "saved: 2 exchanges" in notes
    plain = pipe(monkeypatch, capsys, typed.replace("one", "two"), "--backbone", "pocket")
    assert plain[:2] == (0, told) and "12 tokens, plain" in plain[2]
    assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()
    # nobody is there to be asked: nothing is overwritten, and the first thing that is wrong ends it
    status, told, notes = pipe(monkeypatch, capsys, typed, "--backbone", "pocket")
    assert status == 2 and notes.splitlines()[-1].startswith("error: '") and "exists" in notes
    status, _, notes = pipe(monkeypatch, capsys, "caf\xe9 \xff\n", "--backbone", "pocket", "--max_steps", "3")
    assert status == 0 and notes.startswith("[3 tokens, plain")  # what is not UTF-8 is replaced


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--checkpoint DIR"),
        (["--backbone", "pocket", "--load-in-8bit", "--load-in-4bit"], "not allowed with"),
        (["--backbone", "pocket", "--quantize", "int8", "--load-in-4bit"], "not allowed with"),
        (["--backbone", "pocket", "--temperature", "-1"], "temperature is -1"),
        (["--backbone", "pocket", "--max_new_tokens", "0"], "--max_new_tokens"),
        (["--checkpoint", "/nowhere"], "no heads in"),
    ],
)
def test_wrong_settings_are_one_line(arguments, told, capsys):
    assert run.main(["chat", *arguments]) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


# -- the conversation --------------------------------------------------------------------------------


def talk(**settings) -> Conversation:
    said = [Exchange("Hi \N{SNOWMAN}\r\n", "Hello.\n", "stop"), Exchange("two", "", "length")]
    return Conversation('Be "kind".', Sampling(**settings), [*said, Exchange("three", "Well", "interrupted")])


def test_what_is_saved_is_loaded_byte_for_byte(tmp_path):
    for number, settings in enumerate(({}, {"temperature": 0.1 + 0.2, "top_p": 0.9, "top_k": 7, "seed": 2**63 - 1})):
        first, second = tmp_path / f"{number}-first", tmp_path / f"{number}-second"
        talk(**settings).save(first)
        found = Conversation.load(first)
        assert found == talk(**settings)
        found.save(second)
        assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-first", "0-second", "1-first", "1-second"]


def test_saving_spares_what_exists(tmp_path):
    path = tmp_path / "kept.json"
    path.write_text("dear to somebody")
    with pytest.raises(UserError, match="exists"):
        talk().save(path)
    assert path.read_text() == "dear to somebody"
    with pytest.raises(UserError, match="is no file"):
        talk().save(tmp_path, overwrite=True)
    for name in (path / "below.json", tmp_path / ("long" * 100), tmp_path / "nul\0"):
        with pytest.raises(UserError, match="cannot write"):
            talk().save(name)
        with pytest.raises(UserError, match="cannot read"):
            Conversation.load(name)
    talk().save(path, overwrite=True)
    assert Conversation.load(path) == talk()


def test_what_is_no_conversation_is_refused(tmp_path):
    path = tmp_path / "kept.json"
    talk(temperature=0.5).save(path)
    whole = path.read_text()

    def refused(text: str | bytes, told: str) -> None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        with pytest.raises(UserError, match=told) as caught:
            Conversation.load(path)
        assert str(path) in str(caught.value)

    refused("", "damaged")
    refused(b"\x80\x04\x95 a pickle", "damaged")
    refused("[" * 100_000, "damaged")
    refused("[1, 2]", "is no conversation")
    refused(whole.replace('"version": 1', '"version": 2'), "version 2")
    for old, new in (
        ('"role": "user"', '"role": "tool"'),
        ('"temperature": 0.5', '"temperature": "warm"'),
        ('"temperature": 0.5', '"temperature": NaN'),
        ('"temperature": 0.5', '"temperature": -0.5'),
        ('"seed": 0', '"seed": true'),
        ('"seed": 0', '"seeds": 0'),
        ('"content": "two"', '"content": ["two"]'),
        ('"content": "two"', '"content": "\\ud800"'),
        ('"finish_reason": "stop"', '"finish_reason": "tired"'),
        ('"messages"', '"turns"'),
    ):
        assert old in whole
        refused(whole.replace(old, new), "is damaged")
    generator = random.Random(0)
    for _ in range(200):  # whatever else happens to a file, it is one line or the whole
        torn = bytearray(whole.encode())
        del torn[generator.randrange(len(torn)) :]
        path.write_bytes(torn)
        with pytest.raises(UserError):
            Conversation.load(path)


def test_answering_again_draws_with_the_next_seed():
    drawn, greedy = talk(temperature=1.0, seed=4), talk(seed=4)
    assert drawn.again() == greedy.again() == Exchange("three", "Well", "interrupted")
    assert (drawn.sampling.seed, greedy.sampling.seed, len(drawn.exchanges)) == (5, 4, 2)


def test_the_oldest_exchanges_make_room(backbone):
    long = Conversation("Be kind.", exchanges=[Exchange(f"question {n}", f"answer {n}", "stop") for n in range(9)])
    whole, left_out = long.prompt(backbone.tokenizer, "last", 1024, 100)
    assert left_out == 0
    cut, left_out = long.prompt(backbone.tokenizer, "last", len(whole) - 1, 20)
    text = backbone.tokenizer.decode(cut)
    assert 0 < left_out < 9 and len(cut) + 20 < len(whole)
    assert "Be kind." in text and f"question {left_out - 1}" not in text and f"question {left_out}" in text
    alone, left_out = long.prompt(backbone.tokenizer, "last", 30, 29)  # no room to spare: the question alone
    assert left_out == 9 and "answer" not in backbone.tokenizer.decode(alone)
    with pytest.raises(UserError, match=r"takes \d+ tokens with the system prompt, the model's context is 30"):
        long.prompt(backbone.tokenizer, "last " * 30, 30, 1)


class Script:
    """A screen that asks these lines and remembers what it is told."""

    def __init__(self, *lines: str):
        self.lines, self.told = iter(lines), []
        self.note = self.told.append

    def ask(self):
        return next(self.lines, None)

    def refuse(self, problem):
        self.told.append(f"refused: {problem}")

    def confirms(self, question):
        return False

    def answer(self):
        return self

    def push(self, text, guessed):
        pass

    def finish(self):
        pass

    @contextmanager
    def answering(self):
        yield self.stop

    stop = threading.Event()


def test_a_full_context_is_told_once_and_a_failed_answer_costs_nothing(backbone, monkeypatch):
    monkeypatch.setattr(backbone, "context", 48)
    screen = Script(*[f"What is {n} plus 4?" for n in range(4)], "word " * 60, "!!regen")
    chat = Chat(Engine(backbone), screen, Conversation(sampling=Sampling(temperature=1.0)), 16)
    chat.run()
    assert sum("no longer sees" in line for line in screen.told) == 1
    assert sum("refused" in line for line in screen.told) == 1 and len(chat.conversation.exchanges) == 4
    assert chat.conversation.sampling.seed == 1
    before = [*chat.conversation.exchanges], chat.conversation.sampling
    stopped = Script("!!regen", "Hello!")
    stopped.stop = threading.Event()
    monkeypatch.setattr(backbone, "context", 8)  # nothing fits any more
    chat.screen = stopped
    chat.run()
    assert len(stopped.told) == 2 and before == (chat.conversation.exchanges, chat.conversation.sampling)


# -- what is drawn -----------------------------------------------------------------------------------

ANSWER = """# Soft *nights*

Dear Leo,
thank you for **the teddy bear**, which has `a nose` and <b>no</b> [name](http://example.com/names) at all so far.

1. Take the stairs whenever you can, and walk before you go to bed
2. Read
   - a book

```python
def sleep(hours):
    return "<b>" + hours
```

| day | hours |
|---|---|
| Monday | eight |

> 你好世界你好世界你好世界你好世界你好世界你好世界

Good night, \x1b[31mLeo &amp; all.
"""


def drawn(columns: int, rows: int, pieces: list[tuple[str, bool]], monkeypatch) -> Person:
    """The screen after these pieces, each drawn as it comes."""
    monkeypatch.setattr("mhc.chat.live_markdown.SECONDS", 0)
    monkeypatch.setattr("mhc.chat.live_markdown.SHARE", float("inf"))
    file = io.StringIO()
    console = Console(
        file=file, width=columns, height=rows, force_terminal=True, color_system="standard", legacy_windows=False
    )
    person = Person.__new__(Person)
    person.screen = pyte.HistoryScreen(columns, rows, history=2000, ratio=1)
    file.write("> asked\n")
    answer = LiveAnswer(console)
    for text, guessed in pieces:
        answer.push(text, guessed)
    answer.finish()
    file.write("done")
    pyte.Stream(person.screen).feed(file.getvalue().replace("\n", "\r\n"))
    return person


@pytest.mark.parametrize(("columns", "rows"), [(80, 40), (40, 24), (40, 8), (17, 40)])
def test_an_answer_in_pieces_looks_like_one_that_came_at_once(columns, rows, monkeypatch):
    whole = drawn(columns, rows, [(ANSWER, False)], monkeypatch).text
    assert whole.startswith("> asked\nSoft nights\n\nDear Leo,\nthank you for") and whole.endswith("\ndone")
    assert "**" not in whole and "```" not in whole and "<b>no</b>" in whole.replace("\n", " ")
    assert "Leo & all." in whole.replace("\n", " ") and "\x1b" not in whole
    generator = random.Random(columns)
    for _ in range(3):
        cuts = sorted(generator.sample(range(1, len(ANSWER)), 100))
        pieces = [(ANSWER[a:b], False) for a, b in zip([0, *cuts], [*cuts, len(ANSWER)])]
        assert drawn(columns, rows, pieces, monkeypatch).text == whole


def test_guesses_are_green_wherever_markdown_puts_them(monkeypatch):
    pieces = [
        (piece, number % 2 == 1) for number, piece in enumerate(re.split(r"(teddy|nose|Read|Monday|return)", ANSWER))
    ]
    assert drawn(80, 40, pieces, monkeypatch).green() == "teddynoseReadreturnMonday"
    assert drawn(80, 40, [(ANSWER, False)], monkeypatch).green() == ""
    everything = drawn(80, 40, [(ANSWER, True)], monkeypatch)
    assert set(everything.text.split("Dear")[1].split("name")[0].replace(" ", "")) - {"\n"} <= set(everything.green())
