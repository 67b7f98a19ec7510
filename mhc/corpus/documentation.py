"""Questions on the running Python's own documentation: docstrings read with `ast`, and `pydoc_data.topics`.

Nothing is imported to be read, and nothing but the standard library's files is used.
"""

import ast
import inspect
import re
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from .grammar import Pen

SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages", "pydoc_data", "ensurepip",
           "turtledemo", "encodings", "__pycache__", "idle_test", "this.py", "antigravity.py"}  # fmt: skip
SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
LONGEST = 100  # words of an answer
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Entry:
    """One documented thing: kind ("module", "class", "function", "method"), its names, signature and text."""

    kind: str
    module: str
    name: str
    owner: str
    signature: str
    sentences: tuple[str, ...]

    @property
    def path(self) -> str:
        """The dotted name, as `textwrap.wrap`."""
        return ".".join(part for part in (self.module, self.owner, self.name) if part)


def _prose(doc: str) -> tuple[str, ...]:
    """Return the plain sentences at the start of a docstring, at most LONGEST words of them."""
    sentences: list[str] = []
    for paragraph in inspect.cleandoc(doc).split("\n\n"):
        if re.search(r"^\s|>>>|^[-=*~#+|]|::|  \w", paragraph, re.MULTILINE) or not paragraph.isascii():
            break
        text = " ".join(paragraph.split())
        if "http" in text or "$" in text or "<" in text:
            break
        sentences += SENTENCE.split(text)
    while sum(len(sentence.split()) for sentence in sentences) > LONGEST:
        sentences.pop()
    if sentences and sentences[-1][-1] not in ".!?":
        if len(sentences) == 1 and sentences[0][-1].isalnum():
            sentences[0] += "."
        else:
            sentences.pop()
    return tuple(sentences)


def _entries(path: Path, module: str) -> list[Entry]:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return []
    entries: list[Entry] = []

    def add(kind: str, node: Documented, name: str = "", owner: str = "") -> None:
        doc = ast.get_docstring(node, clean=False)
        if not doc:
            return
        sentences = _prose(doc)
        if sum(len(sentence.split()) for sentence in sentences) < 5:
            return
        signature = ""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            signature = f"{name}({ast.unparse(node.args)})"
            signature = signature.replace("(self, ", "(").replace("(self)", "()")
        entries.append(Entry(kind, module, name, owner, signature, sentences))

    add("module", tree)
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
            add("function", node, node.name)
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            add("class", node, node.name)
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    add("method", inner, inner.name, node.name)
    return entries


@lru_cache(maxsize=1)
def docstrings() -> list[Entry]:
    """All public documented things of the standard library, in the order of their files."""
    root = Path(sysconfig.get_path("stdlib"))
    entries: list[Entry] = []
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).parts):
        parts = path.relative_to(root).parts
        if SKIPPED.intersection(parts) or any(part.startswith("_") and part != "__init__.py" for part in parts):
            continue
        name = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        entries += _entries(path, name)
    seen: set[tuple[str, ...]] = set()  # for membership only: the order of a set is never used
    unique = []
    for entry in entries:
        if entry.sentences not in seen:
            seen.add(entry.sentences)
            unique.append(entry)
    return unique


@lru_cache(maxsize=1)
def paragraphs() -> list[tuple[str, str]]:
    """(heading, paragraph) pairs of the language reference in `pydoc_data.topics`."""
    path = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    if not path.exists():
        return []
    topics = next(
        ast.literal_eval(node.value) for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.Assign)
    )
    pairs: list[tuple[str, str]] = []
    for topic in sorted(topics):
        heading = topic
        blocks = topics[topic].split("\n\n")
        for block in blocks:
            lines = block.strip("\n").split("\n")
            if len(lines) == 2 and re.fullmatch(r"[*=\-~^\"]{3,}", lines[1]):
                heading = lines[0].strip()
                continue
            if re.search(r"^\s|>>>|::|\[\d+\]|^[-*+|]", block.strip("\n"), re.MULTILINE):
                continue
            text = " ".join(block.replace("-\n", "-").split())
            if 15 <= len(text.split()) <= LONGEST + 20 and text.isascii() and text[-1] == "." and "  " not in text:
                pairs.append((heading, text))
    return sorted(set(pairs))


def _cut(pen: Pen, text: str, low: int, high: int) -> tuple[str, str]:
    words = text.split()
    at = min(pen.between(low, high), len(words) - 4)
    return " ".join(words[:at]), " ".join(words[at:])


def reference(pen: Pen) -> tuple[str, list[str]]:
    """A paragraph of the language reference: continue it, or say it from its first words."""
    heading, text = pen.pick(paragraphs())
    start, rest = _cut(pen, text, 5, 14)
    prompt = pen.ask(
        "{Continue this paragraph from the section \"<heading>\" of the Python reference: <start>"
        "|Continue: <start>"
        "|How does this sentence on <heading> go on? \"<start> ...\""
        "|The Python documentation says about <heading>: \"<start> ...\" {Please go on.|What comes next?}"
        "|Finish this {paragraph|passage|text} {from the Python language reference|of the Python manual}: <start>"
        "|<heading>. <start> ... {Complete it.|Write the rest.}}",
        heading=heading, start=start)  # fmt: skip
    whole = pen.chance(0.3)
    if whole:
        prompt = pen.ask(
            "{Quote|Write out|Give me|Recite} the {whole |complete |full |}{paragraph|passage} of the "
            "{Python reference|language reference|Python manual}{ on <heading>|} that {begins|starts|opens} "
            "{with|with the words} \"<start>\".", heading=heading, start=start)  # fmt: skip
    return "reference", [prompt, text if whole else rest]


WHAT = (
    "{What does `<path>` do?|Explain `<path>`{ to me|}.|What is `<path>` {for|good for|used for}?"
    "|{Tell me about|Describe|Document} the <kind> `<path>`.|I found `<path>` in {some|a friend's|old} code. "
    "{What is it?|What does it do?}|{When would I use|Why would I use} `<path>`?|`<path>`?"
    "|{In Python, what|What} does the documentation {say about|tell us about} {`<path>`|the <kind> `<path>`}?"
    "|{Could|Can} you {explain|describe} the <kind> `<name>` {of|in|from} {the module |}`<module>`?"
    "|Write {the|a} docstring {for|of} `<path>`.|How is `<path>` documented?|What is the help text of `<path>`?}"
)
METHOD = (
    "{What does the method `<name>` of {the class |}`<owner>` do?|Explain the method `<name>` of class `<owner>`"
    "{ in `<module>`|}.|What happens when I call `<name>` on a `<owner>`?|What is `<owner>.<name>` {for|used for}?"
    "|In the module `<module>`, what does `<owner>.<name>` do?|`<owner>` has a method `<name>`. What {is it for|does "
    "it do}?|How is `<name>` of `<owner>` documented?|Describe `<owner>.<name>`.}"
)
WHICH = (
    '{Which|What} <kind> {of|in} {the module |}`<module>` {does the following: "<what>"|is described by: "<what>"'
    '|has this docstring: "<what>"}?|Name the <kind> {of|in} `<module>` {documented as|described as} "<what>"|'
    'I need {a|some} <kind> from `<module>` with this description: "<what>" Which one is it?'
)


def docstring(pen: Pen) -> tuple[str, list[str]]:
    """A question on one documented module, class, function or method."""
    entry = pen.pick(docstrings())
    names = {"path": entry.path, "name": entry.name or entry.module, "owner": entry.owner, "kind": entry.kind,
             "module": entry.module, "what": entry.sentences[0]}  # fmt: skip
    text = " ".join(entry.sentences)
    pattern = METHOD if entry.kind == "method" and pen.chance(0.7) else WHAT
    way = pen.between(0, 9)
    if way == 0 and len(text.split()) > 10:
        start, rest = _cut(pen, text, 3, 8)
        return "docstring", [
            pen.ask("{Finish|Complete|Continue} this {sentence|text|description} from the documentation of "
                    "{`<module>`|`<path>`}: <start>|{The docstring of|The text on} `<path>` {begins|starts}: "
                    "\"<start> ...\" {How does it go on?|Continue it.}", **names, start=start), rest]  # fmt: skip
    if way in (1, 2) and entry.signature and len(entry.signature) < 160:
        ask = ("{Give|Show|Write} {me |}the signature of `<path>`.|{What are the|Which} {arguments|parameters} "
               "{of `<path>`?|does `<path>` take?}|How do I call `<path>`?")  # fmt: skip
        pen.cue(entry.module, entry.name)
        answer = pen.say("{The signature is `<s>`.|`<s>`|It is called as `<s>`.|You call it as `<s>`.}",
                         s=entry.signature)  # fmt: skip
        turns = [pen.ask("{" + ask + "}", **names), answer]
        if pen.chance(0.5):
            turns += [pen.ask("{And what does it do?|What is it for?|Explain it.|Thanks. What does it do?}"), text]
        return "docstring", turns
    if way == 3 and entry.kind in ("function", "class", "method"):
        pen.cue(entry.module, entry.name)
        path = f"{entry.owner}.{entry.name}" if entry.owner else entry.name
        answer = pen.say(
            "{That is|It is|You want|This is} `<path>`{. | from `<module>`. | in the module `<module>`. }",
            path=path, module=entry.module)  # fmt: skip
        if entry.signature and len(entry.signature) < 120:
            answer += pen.raw("{Call it as `<s>`.|Its signature is `<s>`.|It is called as `<s>`.}",
                              s=entry.signature).join([" ", ""])  # fmt: skip
        return "docstring", [pen.ask(WHICH, **names), answer.strip()]
    turns = [pen.ask(pattern, **names), text]
    if way == 4 and len(entry.sentences) > 1:
        turns[0] += pen.ask(" {One sentence, please.|In one sentence.|Be brief.|Keep it to one sentence.}")  # fmt: skip
        turns[1] = entry.sentences[0]
        if pen.chance(0.6):
            turns += [pen.ask("{Tell me more.|Go on.|And the details?|What else should I know?|More, please.}"),
                      " ".join(entry.sentences[1:])]  # fmt: skip
    elif pen.chance(0.12) and entry.signature and len(entry.signature) < 120:
        pen.cue(entry.module, entry.name)
        turns += [pen.ask("{And its signature?|How do I call it?|Which arguments does it take?|Signature?}"),
                  pen.say("{The signature is `<s>`.|Call it as `<s>`.|It is `<s>`.}", s=entry.signature)]  # fmt: skip
    return "docstring", turns
