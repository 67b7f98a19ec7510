"""What ships: the pocket backbone whole and small, and nothing that is private to a machine."""

from pathlib import Path

from mhc.backbone import POCKET, Backbone
from mhc.engine import Engine

ROOT = Path(__file__).parents[1]


def test_pocket_ships_and_answers():
    assert sum(path.stat().st_size for path in POCKET.iterdir()) < 20e6
    backbone = Backbone.load("pocket")
    assert type(backbone.model).__name__ == "LlamaForCausalLM" and backbone.layers >= 6
    assert 5e6 < sum(parameter.numel() for parameter in backbone.model.parameters()) < 10e6
    answer = Engine(backbone).generate("What is 12 plus 30?", max_new_tokens=80)
    assert answer.finish_reason == "stop" and "42" in answer.text


def test_readme_names_only_what_exists():
    import re

    readme = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for path in re.findall(r"(?:--config |python )((?:configs|benchmarks)/\S+)", readme):
        assert (ROOT / path).exists(), path
