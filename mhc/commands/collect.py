"""`run.py collect`: the frozen backbone reads the data once, and what heads learn from is kept on disk.

For every position: the last hidden state, the inputs of chosen layers (taps), and the token that the backbone itself
would say next; with them token ids and the supervision mask. Training from the folder (configs/data/features.yaml) then
runs no backbone forward. How rows become samples is told in `mhc.distill.windows`, the format in `mhc.distill.shards`.
"""

import argparse
import time
from pathlib import Path

from mhc.commands import FAMILIES, Parser, add_backbone, add_limit, identity_of, loading_of
from mhc.errors import UserError
from mhc.util.locks import alone, beside

GOOD = 0.8  # of the supervised tokens, above which data are the backbone's own words
LEAST = {
    "sample_size": 6,
    "stride": 1,
    "max_length": 3,
    "shard_mib": 1,
    "batch_tokens": 1,
    "max_samples": 3,
    "limit": 1,
}
SETTINGS = ("data", "sample_size", "stride", "max_samples", "limit", "store", "shard_mib", "batch_tokens", "quantize")


def main(argv: list[str]) -> int:
    """Collect --data into --out; returns the exit status."""
    options = _parser().parse_args(argv)
    _check(options)
    try:
        with alone(beside(Path(options.out)), "--out"):
            return _collect(options)
    except OSError as error:
        raise UserError(f"cannot write to --out {options.out}: {error.strerror}") from error


def _collect(options: argparse.Namespace) -> int:
    from datamodules import ConversationData
    from mhc.backbone.model import Backbone
    from mhc.distill.features import collect, in_bytes
    from mhc.distill.shards import MANIFEST
    from mhc.util.progress import say

    started, how = time.perf_counter(), loading_of(options)
    backbone = Backbone.load(options.backbone or "pocket", decoding=False, **how)
    taps = _taps(options, backbone.layers)
    data = ConversationData(options.data, max_length=min(options.max_length, backbone.context), limit=options.limit)
    data.tokenizer = backbone.tokenizer
    settings = {name: getattr(options, name) for name in SETTINGS} | {
        "max_length": data.max_length,
        "taps": list(taps),
        "width": backbone.width,
        "device": backbone.device.type,
        "dtype": str(backbone.dtype).removeprefix("torch."),
        **identity_of(backbone, Path(options.out) / MANIFEST),
    }
    manifest = collect(backbone, data, Path(options.out), settings)
    counts = ", ".join(f"{name} {counts['samples']:,}" for name, counts in manifest["splits"].items())
    advice = "" if manifest["agreement"] > GOOD else ": heads learn best from its own words, see `run.py distill`"
    say(
        f"{counts} samples, {in_bytes(manifest['bytes'])} in {time.perf_counter() - started:.0f} s -> {options.out}\n"
        f"the backbone would say {manifest['agreement']:.1%} of the {manifest['supervised']:,} supervised tokens itself{advice}"
    )
    return 0


def _taps(options: argparse.Namespace, layers: int) -> tuple[int, ...]:
    """The layers whose inputs are kept, in the order asked for."""
    if options.drafter == "eagle3":
        from mhc.drafters.eagle3 import default_taps

        return tuple(dict.fromkeys(default_taps(layers)))
    taps = tuple(dict.fromkeys(options.taps or ()))
    if not all(0 <= layer < layers for layer in taps):
        raise UserError(f"--taps {' '.join(map(str, taps))}: this backbone has layers 0 to {layers - 1}")
    return taps


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for numbers that make no sense, before anything is loaded."""
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise UserError(f"--{name} is {value}: it must be at least {least}")
    if options.stride > options.sample_size - 4:
        raise UserError(
            f"--stride is {options.stride} with --sample_size {options.sample_size}: samples must share the positions that "
            "heads look ahead; let it be smaller by at least twice the number of heads, and 2"
        )
    if options.taps and options.drafter:
        raise UserError("--taps and --drafter both say which layers are kept: give one of them")


def _parser() -> Parser:
    parser = Parser(
        prog="run.py collect",
        description="Run the frozen backbone over the data once and keep its features, so that heads train without it. "
        "Says first how much disk that takes. A stopped run resumes: call the same command again.",
    )
    add = parser.add_argument
    add("--data", default="pocket", metavar="PATH", help="conversations (default: pocket, the generated dialogues)")
    add("--out", required=True, metavar="DIR", help="folder for the shards; train with --data.path DIR")
    add("--taps", type=int, nargs="+", metavar="LAYER", help="keep the inputs of these layers too (default: none)")
    add("--drafter", choices=FAMILIES, help="keep the layers that this family reads, in place of --taps")
    add("--store", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="on disk (default bfloat16)")
    add("--sample_size", type=int, default=512, metavar="T", help="cut longer rows into samples of T (default 512)")
    add("--stride", type=int, default=256, metavar="T", help="from one sample's start to the next (default 256)")
    add("--max_length", type=int, default=2048, metavar="T", help="tokens of a row that are read (default 2048)")
    add("--max_samples", type=int, metavar="N", help="at most N samples in all, drawn from every split")
    add_limit(parser)
    add("--shard_mib", type=int, default=512, metavar="MIB", help="largest size of a shard (default 512)")
    add("--batch_tokens", type=int, default=8192, metavar="N", help="tokens read at once (default 8192)")
    add_backbone(parser)
    return parser
