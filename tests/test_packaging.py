"""What ships: the pocket backbone whole and small, and nothing that is private to a machine."""

from pathlib import Path

from mhc.backbone import POCKET, Backbone
from mhc.engine import Engine

ROOT = Path(__file__).parents[1]


def test_pocket_ships_and_answers():
    assert sum(path.stat().st_size for path in POCKET.iterdir()) < 20e6
    backbone = Backbone.load("pocket", decoding=False)
    assert type(backbone.model).__name__ == "LlamaForCausalLM" and backbone.layers >= 6
    assert 5e6 < sum(parameter.numel() for parameter in backbone.model.parameters()) < 10e6
    asked = "Write a thank-you letter from Luis to Leo. It is for the teddy bear."
    answer = Engine(backbone).generate(asked, max_new_tokens=100)
    assert answer.finish_reason == "stop" and all(word in answer.text for word in ("Leo", "teddy bear", "Luis"))


def test_every_data_file_of_the_package_ships():
    """What is no Python file is named by setup.cfg, or an installed mhc would lack it."""
    from configparser import ConfigParser

    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    patterns = settings["options.package_data"]["mhc"].split()
    shipped = {path for pattern in patterns for path in (ROOT / "mhc").glob(pattern)}
    data = {path for path in (ROOT / "mhc").rglob("*.*") if path.suffix not in (".py", ".pyc") and path.is_file()}
    assert data == shipped


def test_readme_names_only_what_exists():
    import re

    readme = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for path in re.findall(r"(?:--config |python )((?:configs|benchmarks)/[\w./-]+)", readme):
        assert (ROOT / path).exists(), path
