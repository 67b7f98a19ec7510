"""Writes docs/api.md, the public interface, from the docstrings of what `mhc.__all__` names: `python docs/api.py`."""

import ast
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import mhc  # noqa: E402

HEAD = """# The Python interface

What `from mhc import ...` offers, made from the docstrings by `python docs/api.py` (a test holds this page to the code).
Everything else may change between versions. Words are explained in the [glossary](glossary.md).

```python
from mhc import Engine, Sampling

engine = Engine.from_checkpoint("runs/quickstart/cascade")
answer = engine.generate("Give me three tips for a good night's sleep.", sampling=Sampling(temperature=0.8, seed=7))
print(answer.text, answer.tokens_per_step)
```
"""


def main() -> None:
    (ROOT / "docs" / "api.md").write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for name in mhc.__all__:
        if name != "__version__":
            parts += described(name, getattr(mhc, name))
    return "\n".join(parts)


def described(name: str, public: Any) -> list[str]:
    """A class: its call, its docstring, its own public methods and properties."""
    parts = [f"## {name}\n", call(name, public), text(public)]
    for member, value in vars(public).items():
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if member.startswith("_") or not (inspect.isfunction(function) or isinstance(value, property)):
            continue
        if not inspect.getdoc(value):
            continue
        parts.append(f"### {name}.{member}\n")
        if not isinstance(value, property):
            parts.append(call(f"{name}.{member}", function))
        parts.append(text(value))
    return parts


def call(name: str, public: Any) -> str:
    """The call as its source writes it; of a class its constructor's, or its fields."""
    node = ast.parse(textwrap.dedent(inspect.getsource(public))).body[0]
    if isinstance(node, ast.ClassDef):
        made = [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"]
        if not made:
            fields = [ast.unparse(part) for part in node.body if isinstance(part, ast.AnnAssign)]
            return code(name, fields, "")
        node = made[0]
    assert isinstance(node, ast.FunctionDef)
    returned = f" -> {ast.unparse(node.returns)}" if node.returns and node.name != "__init__" else ""
    arguments = ast.unparse(node.args).removeprefix("self").removeprefix("cls").removeprefix(", ")
    return code(name, [arguments] if arguments else [], returned)


def code(name: str, arguments: list[str], returned: str) -> str:
    return f"```python\n{name}({', '.join(arguments)}){returned}\n```\n"


def text(function: Any) -> str:
    return f"{inspect.getdoc(function)}\n"


if __name__ == "__main__":
    main()
