"""`run.py import`: published draft heads as a folder of ours."""

import os
from pathlib import Path

from mhc.commands import Parser, add_dtype, add_new_folder
from mhc.errors import UserError
from mhc.util.verbs import shell_line


def main(argv: list[str]) -> int:
    """Turn the heads at PATH into the new folder --out; returns the exit status."""
    options = _parser().parse_args(argv)

    import torch

    from mhc.backbone.model import Backbone
    from mhc.checkpoints.heads_folder import save_drafter
    from mhc.export.published import read_published
    from mhc.trees.shapes import FixedTree

    path, out = Path(options.path), Path(options.out)
    if os.path.lexists(out):
        raise UserError(f"'{out}' exists and is left alone: choose another --out")
    if not path.is_dir():
        raise UserError(
            f"'{path}' is no folder: give the one that holds config.json and the heads (`hf download NAME`)"
        )
    backbone = Backbone.load(options.backbone, getattr(torch, options.dtype), decoding=False)
    drafter = read_published(path, backbone)
    try:
        save_drafter(out, drafter, FixedTree.chain(drafter.draft_length))
    except OSError as error:
        raise UserError(f"cannot write '{out}' ({error.strerror or error}): choose another --out") from error
    arguments = ", ".join(f"{name} {value}" for name, value in drafter.arguments.items())
    print(f"-> {out}: {type(drafter).__name__} heads on {options.backbone} ({arguments})")
    print(f"   they decode in a chain until `{shell_line('tune', '--checkpoint', str(out))}` has found a tree")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="run.py import",
        description="Turn published draft heads into a folder that every command takes: FasterDecoding's Medusa heads "
        "(medusa_lm_head.pt or .safetensors with config.json; nothing in a .pt but tensors is read), and EAGLE-3 heads. "
        "Every command takes the folder: generate, tune, test, serve.",
    )
    add = parser.add_argument
    add(
        "path",
        metavar="PATH",
        help="folder with the published files; fetch it with `hf download NAME --local-dir PATH`",
    )
    add("--backbone", required=True, metavar="NAME", help="the model they belong to, as in generate")
    add_new_folder(parser)
    add_dtype(parser, "how the backbone is loaded; the heads are kept in float32 (default float32)", "float32")
    return parser
