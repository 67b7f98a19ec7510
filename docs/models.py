"""Writes docs/models.md: what becomes of every model type, as `tests/backbone/test_model_types.py` finds it.

python docs/models.py            # a few minutes: builds a tiny random model of every type
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.helpers.model_types import names, verdict

PAGE = Path(__file__).with_name("models.md")
HEAD = """# Model types

What becomes of each causal model type of transformers {version}, found by `python docs/models.py` on a tiny random model of
each and held by `tests/backbone/test_model_types.py`.

**works**: with draft heads and a branching tree, alone and in ragged batches, greedily and drawn with a seed, the text is the
model's own. **refused**: `Backbone.load` says why in one line, and nothing is decoded or trained. A type that is not
here, or a setting of one that was not tried, is measured when it is loaded (`mhc/backbone/probe.py`) and works or is refused.

LongRoPE and dynamic RoPE choose their rotary factors by the longest row of a forward. Models with one of them work
within the length up to which the factors never change, and their context ends there.

| model type | | why |
|---|---|---|
"""


def main() -> None:
    import transformers

    rows = []
    for name in names():
        outcome, why = verdict(name)
        print(f"{name}: {outcome} {why}")
        rows.append(f"| {name} | {outcome} | {why} |\n")
    PAGE.write_text(HEAD.format(version=transformers.__version__) + "".join(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
