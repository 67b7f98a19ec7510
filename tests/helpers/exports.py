"""Heads in a folder, exported and read back."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mhc.checkpoints.heads_folder import save_drafter
from mhc.drafters import Drafter
from mhc.errors import UserError
from mhc.export import FORMATS, export
from mhc.trees.shapes import FixedTree
from tests.helpers.drafters import randomised


def checkpoint(folder: Path, drafter: Drafter) -> Path:
    """`drafter`, randomised, as a folder."""
    save_drafter(folder / "heads", randomised(drafter, 0.2), FixedTree.chain(drafter.draft_length))
    return folder / "heads"


def assert_every_tensor_counts(backbone, drafter, format, tmp_path, harm):
    """A tensor that is harmed, missing, renamed or cut is seen, whichever it is."""
    export(checkpoint(tmp_path, drafter), format, tmp_path / "out", backbone)
    path = next((tmp_path / "out").glob("*.safetensors"))
    whole, chosen = load_file(path), FORMATS[format]

    def apart(tensors) -> float:
        save_file(tensors, path)
        return chosen.difference(drafter.eval(), chosen.read(tmp_path / "out", backbone))

    for name, tensor in whole.items():
        assert apart(whole | {name: harm(tensor)}) > 1e-3, name
        others = {other: value for other, value in whole.items() if other != name}
        with pytest.raises(UserError, match=f"lacks {name}"):
            apart(others)
        with pytest.raises(UserError, match=f"lacks {name} and has {name}.renamed, unread"):
            apart(others | {f"{name}.renamed": tensor})
        with pytest.raises(UserError, match=f"{name} is"):
            apart(whole | {name: tensor[1:].clone()})
    assert apart(whole) < 1e-5
