"""The verbs of run.py that are not Lightning's, one file each with `main(arguments) -> exit status`."""

import argparse
from typing import Any, NoReturn

from mhc.errors import UserError


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are one line, like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see python {self.prog} --help)")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The flags of `mhc.sampling.Sampling`, the same wherever text is made."""
    add = parser.add_argument
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    add("--top_p", type=float, default=1.0, metavar="P", help="draw among the likeliest tokens of this share")
    add("--top_k", type=int, default=0, metavar="K", help="draw among the K likeliest tokens (default 0: all)")
    add("--seed", type=int, default=0, metavar="N", help="the same seed, the same text, with any heads or none")


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """Where the backbone is loaded from, and how."""
    add = parser.add_argument
    add(
        "--backbone",
        metavar="NAME",
        help="a directory, a hub name or pocket (default: what the heads name, else pocket)",
    )
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How a model is loaded."""
    add = parser.add_argument
    add("--device", default="cpu", help="where to run: cpu, cuda, ... (default: cpu; `compare`: where it trains)")
    add_dtype(parser, "default: float32 on a CPU, bfloat16 on a GPU")
    one = parser.add_mutually_exclusive_group().add_argument
    one("--quantize", choices=("int8", "int4"), help="keep the model's weights in 8 or 4 bits (needs torchao)")
    for bits, told in ((8, ""), (4, " (torchao stores them in 8)")):
        chosen: dict[str, Any] = {"dest": "quantize", "const": f"int{bits}", "help": f"--quantize int{bits}{told}"}
        one(f"--load-in-{bits}bit", action="store_const", **chosen)


def add_dtype(parser: argparse.ArgumentParser, told: str, default: str | None = None) -> None:
    """In which precision. told: what the help says."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=default, help=told)


def add_compile(parser: argparse.ArgumentParser) -> None:
    """Whether the engine compiles its rounds."""
    parser.add_argument(
        "--compile", action="store_true", help="compile the rounds, on CUDA as graphs: slow to start, then faster"
    )


def loading_of(options: argparse.Namespace) -> dict[str, Any]:
    """How `Backbone.load` shall load, by these flags."""
    import torch

    dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    return {"device": options.device, "dtype": getattr(torch, dtype), "quantize": options.quantize}


def require_model(options: argparse.Namespace) -> None:
    """Raise UserError unless the flags name heads or a model."""
    if not options.checkpoint and not options.backbone:
        raise UserError("give --checkpoint DIR (heads), or --backbone NAME (a model without heads)")


def engine_of(options: argparse.Namespace, backbone: str | None = None):
    """The Engine of --checkpoint (heads), or of --backbone alone, with --tree and --compile where there are such flags.
    backbone: the model where no flag names one; without it, that is a UserError."""
    from mhc.backbone.model import Backbone
    from mhc.engine import Engine

    loading, compile = loading_of(options), getattr(options, "compile", False)
    if options.checkpoint:
        tree = getattr(options, "tree", None)
        return Engine.from_checkpoint(options.checkpoint, options.backbone, tree, compile, **loading)
    if backbone is None:
        require_model(options)
    return Engine(Backbone.load(options.backbone or str(backbone), **loading), compile=compile)


def sampling_of(options: argparse.Namespace):
    """The Sampling that these flags ask for."""
    from mhc.sampling import Sampling

    names = ("temperature", "top_p", "top_k", "seed", "posterior_threshold", "posterior_alpha")
    return Sampling(**{name: getattr(options, name) for name in names if hasattr(options, name)})
