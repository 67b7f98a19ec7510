"""A streamed answer on a terminal: Markdown as it comes, what the heads guessed in colour, nothing redrawn that stays.

The text is rendered block by block. Blocks that are over are there for good; of the last one, whenever text has come, only
the lines that have changed are written anew. So nothing flickers, and what has scrolled away is never reached for.
Lines are broken here and end before the edge, so it is known where they stand, whatever the terminal's width.
"""

import time
from io import StringIO

from markdown_it import MarkdownIt
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown
from rich.segment import Segment, Segments
from rich.style import Style
from rich.syntax import ANSISyntaxTheme, Syntax
from rich.theme import Theme

GUESSED = Style(color="green")
SECONDS, SHARE = 0.05, 0.1  # between two drawings at least, and the part of the time that drawing may take
_UNSEEN = dict.fromkeys([*range(32), *range(127, 160)], "\N{REPLACEMENT CHARACTER}") | {9: "\t", 10: "\n", 13: None}
# Colour tells who said it, so Markdown is told by weight and slant alone.
_THEME = Theme(
    {f"markdown.h{level}": "bold" for level in range(2, 7)}
    | {"markdown.h1": "bold underline", "markdown.code": "bold", "markdown.block_quote": "italic"}
    | {"markdown.item.bullet": "bold", "markdown.item.number": "bold", "markdown.hr": "dim"}
    | {"markdown.link": "underline", "markdown.link_url": "underline"}
    | {"markdown.table.header": "bold", "markdown.table.border": "dim"}
)
_WEIGHTS = {"Keyword": Style(bold=True), "Comment": Style(italic=True, dim=True)}
_CODE_THEME = ANSISyntaxTheme({(kind,): style for kind, style in _WEIGHTS.items()})
_PARSER = MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])  # HTML is shown, not lost
_MARKS = frozenset("*_#`~>|-+=[]()!\\:.&;")  # what is left out where Markdown is rendered
_AHEAD, _SURE = 400, 4  # how far to look for where rendered text continues, and for how many characters of it


def harmless(text: str) -> str:
    """The text without anything that steers a terminal."""
    return text.translate(_UNSEEN)


class LiveAnswer:
    """One answer that is being written on a terminal: `push` its text as it comes, then `finish`."""

    def __init__(self, console: Console):
        self.console = console
        self._source = ""  # text that is not settled
        self._guessed: list[bool] = []  # for each of its characters whether it was drafted
        self._shown: list[str] = []  # its lines on the screen; the cursor is at the end of the last one
        self._size = console.size
        self._settled = False  # whether there are lines above that are there for good
        self._next = 0.0  # when to draw again
        self._pen = Console(
            file=StringIO(),
            force_terminal=True,
            color_system=console.color_system,  # type: ignore[arg-type]  # rich's own property, typed wider than what it takes
            no_color=console.no_color,
            theme=_THEME,
            highlight=False,
        )

    def push(self, text: str, guessed: bool) -> None:
        """More of the answer; guessed: whether the heads had predicted it."""
        text = harmless(text)
        self._source += text
        self._guessed += [guessed] * len(text)
        if text and time.monotonic() >= self._next:
            self._draw()

    def finish(self) -> None:
        """The answer is over: draw what is missing and go to the next line."""
        self._draw()
        if self._shown or self._settled:
            self.console.file.write("\n")
        self.console.file.flush()

    def _draw(self) -> None:
        started = time.monotonic()
        if self.console.size != self._size:  # the terminal has broken its lines anew: leave them, and continue below
            self._size, self._shown, self._settled = self.console.size, [], True
        whole = self._source[: self._source.rfind("\n") + 1]  # a part of a line can look like what it is not
        if cut := _blocks(whole)[-1]:
            self._show(self._lines(self._source[:cut], self._guessed[:cut]))
            self._source, self._guessed, self._shown = self._source[cut:], self._guessed[cut:], []
            self._settled = True
        self._show(self._lines(self._source, self._guessed))
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - started) / SHARE)

    def _lines(self, source: str, guessed: list[bool]) -> list[str]:
        """The text as lines for the terminal, a blank one before it where something stands above."""
        width, starts = max(1, self._size.width - 1), _blocks(source)
        lines: list[str] = []
        for start, end in zip(starts, [*starts[1:], len(source)]):
            block = rendered(self._pen, source[start:end], guessed[start:end], width)
            lines += ["", *block] if block and (lines or self._settled) else block
        return lines or ([""] if self._shown else [])

    def _show(self, lines: list[str]) -> None:
        """Have these lines on the screen in place of those shown: from the first that differs, if it can be reached."""
        same = next((row for row, (old, new) in enumerate(zip(self._shown, lines)) if old != new), None)
        first = min(len(self._shown), len(lines)) if same is None else same
        if first == len(lines) < len(self._shown):
            first -= 1  # so that the cursor ends on the last line that stays
        first = max(first, len(self._shown) - self._size.height + 1)
        if first < len(self._shown):
            up = len(self._shown) - 1 - first
            start = f"\x1b[{up}A\r" if up else "\r"
        else:
            start = "\n" if self._shown or (self._settled and lines) else ""
        if first < max(len(lines), len(self._shown)):
            self.console.file.write(start + "\n".join(line + "\x1b[K" for line in lines[first:]) + "\x1b[J")
            self.console.file.flush()
        self._shown = [*self._shown[:first], *lines[first:]]


def _blocks(source: str) -> list[int]:
    """Where the paragraphs, lists, ... of a text start, the first at 0."""
    starts = [token.map[0] for token in _PARSER.parse(source) if token.level == 0 and token.map and token.nesting >= 0]
    lengths = [len(line) for line in source.split("\n")]
    return [0, *(sum(lengths[:line]) + line for line in starts[1:])]


def rendered(pen: Console, source: str, guessed: list[bool], width: int) -> list[str]:
    """One block of Markdown as lines of at most `width` columns, with control sequences for its styles; line ends stay where they are.
    guessed: one for each character of the source."""
    markdown = _Markdown(source)
    lines = pen.render_lines(markdown, pen.options.update(width=width, height=None), pad=False)
    lines = _coloured(lines, source, guessed)
    written = []
    for line in lines:
        with pen.capture() as captured:
            pen.print(Segments(line), end="", soft_wrap=True)
        written.append(captured.get() if "".join(part.text for part in line).strip() else "")
    while written and not written[-1]:
        written.pop()
    while written and not written[0]:
        written.pop(0)
    return written


class _Code(CodeBlock):
    """Code without a frame, so that it can be copied, and without colours of its own."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Syntax(str(self.text).rstrip(), self.lexer_name, theme=_CODE_THEME, word_wrap=True)


class _Heading(Heading):
    """A heading on the left."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.text


class _Markdown(Markdown):
    """Rich's Markdown, with line ends kept: a letter and a poem are what they were."""

    elements = Markdown.elements | {"fence": _Code, "code_block": _Code, "heading_open": _Heading}

    def __init__(self, source: str):
        super().__init__("", hyperlinks=False)
        self.parsed = _PARSER.parse(source)
        for token in self.parsed:
            for child in token.children or []:
                if child.type == "softbreak":
                    child.type = "hardbreak"


def _coloured(lines: list[list[Segment]], source: str, guessed: list[bool]) -> list[list[Segment]]:
    """The rendered lines with what was guessed in colour. Rendering drops marks and adds bullets and borders, so each
    rendered character is looked for in the source, behind the one before it."""
    places = [place for place, character in enumerate(source) if not character.isspace()]
    letters = "".join(source[place] for place in places)
    drawn = "".join(part.text for line in lines for part in line if not part.control)
    drawn = "".join(drawn.split())
    start, read = 0, 0
    coloured = []
    for line in lines:
        parts: list[Segment] = []
        for text, style, control in line:
            for character in "" if control else text:
                own = False
                if not character.isspace():
                    index = _find(letters, drawn[read : read + _SURE], start)
                    read += 1
                    if index is not None:
                        own, start = guessed[places[index]], index + 1
                parts.append(Segment(character, (style or Style()) + GUESSED if own else style))
        coloured.append(list(Segment.simplify(parts)))
    return coloured


def _find(letters: str, drawn: str, start: int) -> int | None:
    """Where `drawn` begins in `letters`, from `start` on; None where its first character was added by the rendering."""
    past = start
    while past < len(letters) and letters[past] != drawn[0] and letters[past] in _MARKS:
        past += 1
    if past < len(letters) and letters[past] == drawn[0]:
        return past
    index = letters.find(drawn, start, start + _AHEAD)
    return None if index < 0 else index
