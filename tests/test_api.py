"""The public interface: lazily imported, typed, and described by docs/api.md as it is."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import mhc

ROOT = Path(__file__).parents[1]


def test_the_page_is_made_from_the_code():
    spec = importlib.util.spec_from_file_location("api", ROOT / "docs" / "api.py")
    api = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(api)
    assert (ROOT / "docs" / "api.md").read_text() == api.page(), "call `python docs/api.py`"


def test_every_public_name_is_there_and_documented():
    for name in mhc.__all__:
        assert getattr(mhc, name) is not None
        assert name == "__version__" or getattr(mhc, name).__doc__
    assert set(dir(mhc)) == set(mhc.__all__)


def test_importing_the_package_imports_nothing_heavy():
    lines = "import sys, mhc; assert 'torch' not in sys.modules; from mhc import UserError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", lines], check=True, cwd=ROOT)


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "mhc" / "py.typed").exists() and "py.typed" in (ROOT / "setup.cfg").read_text()
