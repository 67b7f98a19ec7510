"""The house keeps its order: few files at the top of mhc/, no import circles, imports go down the rooms, plain words."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the top down: a room imports what stands below it, never what stands above.
ROOMS = (
    *("run", "mhc.commands", "mhc.cli", "callbacks", "mhc.estimate", "mhc.lm", "mhc.serve", "mhc.tuning"),
    *("mhc.evaluation", "mhc.engine", "mhc.decoding", "mhc.export", "mhc.training", "datamodules", "mhc.checkpoints"),
    *(
        "mhc.drafters",
        "mhc.distill",
        "mhc.trees",
        "mhc.backbone",
        "mhc.sweeps",
        "mhc.reports",
        "mhc.chat",
        "mhc.corpus",
        "mhc.sampling",
    ),
    *("mhc.text", "mhc.distributed", "mhc.vllm_plugin", "mhc.util", "mhc.errors", "mhc.version"),
)
PHRASES = re.compile(  # written so that a search for them does not find this line
    r"hangs[ ]on|none[ ]of[ ]ours|is[ ]not[ ]to[ ]be[ ]had|whatever[ ]is[ ]killed", re.IGNORECASE
)
DIALECT = {"Asked", "Piece", "foretold"}


def modules() -> dict[str, Path]:
    """Every module of the program by its dotted name."""
    paths = [
        ROOT / "run.py",
        *(path for room in ("mhc", "callbacks", "datamodules") for path in (ROOT / room).rglob("*.py")),
    ]
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths)
    return dict(zip(names, paths))


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules that a file imports anywhere: at the top, inside functions, for type checkers, by import_module."""
    named: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                named.append(inside if inside in known else node.module)
        elif isinstance(node, ast.Import):
            named += [alias.name for alias in node.names]
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) == "import_module":
            named += [part.value for part in node.args[:1] if isinstance(part, ast.Constant)]
    return set(named) & known.keys()


@pytest.fixture(scope="module")
def arrows() -> dict[str, set[str]]:
    known = modules()
    found = {name: imports(path, known) - {name} for name, path in known.items()}
    del found["mhc"]  # the package's face, which imports when it is asked; nobody inside imports it
    return {name: targets - {"mhc"} for name, targets in found.items()}


def test_the_house_is_read():
    """The reading itself: known arrows of every kind are seen."""
    known = modules()
    assert len(known) > 150 and {"mhc.engine", "callbacks", "datamodules.batching", "mhc.corpus"} <= known.keys()
    assert "mhc.decoding.decoder" in imports(ROOT / "mhc" / "engine.py", known)
    assert "mhc.engine" in imports(ROOT / "mhc" / "commands" / "__init__.py", known)  # inside a function


def test_the_top_level_is_small():
    top = sorted(path.name for path in (ROOT / "mhc").glob("*.py"))
    assert len(top) <= 8, top


def test_no_two_modules_import_each_other(arrows):
    """No circle of any length: modules without imports are taken away until nothing is left."""
    left = {name: set(targets) for name, targets in arrows.items()}
    while free := {name for name, targets in left.items() if not targets & left.keys()}:
        left = {name: targets for name, targets in left.items() if name not in free}
    assert not left, f"modules in or above a circle: {sorted(left)}"


def test_imports_go_down(arrows):
    def room(module: str) -> str:
        return next(name for name in ROOMS if module == name or module.startswith(f"{name}."))

    assert {room(module) for module in arrows} <= set(ROOMS)
    upward = [
        f"{module} ({room(module)}) imports {target} ({room(target)})"
        for module, targets in arrows.items()
        for target in targets
        if ROOMS.index(room(target)) < ROOMS.index(room(module))
    ]
    assert not upward, "\n".join(upward)


def test_every_room_says_what_it_holds():
    for folder in (ROOT / "mhc").iterdir():
        if folder.is_dir() and any(folder.glob("*.py")):
            assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


def test_no_test_imports_another_test():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not re.search(r"^from tests[\w.]*\.test_\w+ import", path.read_text(), re.MULTILINE), path


def sources(*suffixes: str) -> list[Path]:
    folders = ("mhc", "callbacks", "datamodules", "benchmarks", "tests", "docs", "configs", "notebooks")
    paths = [*ROOT.glob("*.*"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    skipped = {ROOT / "CHANGELOG.md", ROOT / "docs" / "log.md"}
    return [path for path in paths if path.suffix in suffixes and path not in skipped]


def test_the_words_are_the_fields():
    for path in sources(".py", ".md"):
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            assert not PHRASES.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"


def test_the_dialect_is_gone():
    for path in sources(".py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME:
                assert token.string not in DIALECT, f"{path.relative_to(ROOT)}:{token.start[0]}: {token.string}"
