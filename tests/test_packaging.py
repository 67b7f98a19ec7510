"""What ships: the pocket backbone whole and small, and nothing that is private to a machine."""

from configparser import ConfigParser
from pathlib import Path

import pytest
from setuptools import find_packages

from mhc.backbone.loading import POCKET
from mhc.backbone.model import Backbone
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


@pytest.fixture
def settings():
    found = ConfigParser()
    found.read(ROOT / "setup.cfg")
    return found


def test_every_package_ships(settings):
    """A folder with Python files that setup.cfg does not find (one without __init__.py, and all below it) would be missing
    from an installed mhc."""
    found = find_packages(str(ROOT), include=settings["options.packages.find"]["include"].split())
    files = [path for top in ("mhc", "callbacks", "datamodules") for path in (ROOT / top).rglob("*.py")]
    assert {".".join(path.parent.relative_to(ROOT).parts) for path in files} == set(found)


def test_every_data_file_of_the_package_ships(settings):
    """What is no Python file is named by setup.cfg, or an installed mhc would lack it."""
    patterns = settings["options.package_data"]["mhc"].split()
    shipped = {path for pattern in patterns for path in (ROOT / "mhc").glob(pattern)}
    data = {path for path in (ROOT / "mhc").rglob("*.*") if path.suffix not in (".py", ".pyc") and path.is_file()}
    assert data == shipped and {"model.safetensors", "mc_sim_7b_63.json"} <= {path.name for path in data}


def test_readme_names_only_what_exists():
    import re

    readme = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", readme):
        assert link.startswith("http") or (ROOT / link).exists(), link
    for path in re.findall(r"(?:--config |python )((?:configs|benchmarks)/[\w./-]+)", readme):
        assert (ROOT / path).exists(), path
