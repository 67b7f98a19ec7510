"""The commands of run.py that are not Lightning's, one file each with `main(arguments) -> exit status`."""

import argparse
import json
from pathlib import Path
from typing import Any, NoReturn

from mhc.errors import UserError
from mhc.util.options import ParserWithExample, did_you_mean, options_of

FAMILIES = ("medusa", "cascade", "diffusion", "eagle3")  # of draft heads
NO_MODEL = "give --checkpoint DIR (heads), or --backbone NAME (a model without heads)"


class Parser(ParserWithExample):
    """An argument parser whose errors are one line, like all others, and name the nearest option for a misspelled one."""

    def parse_args(self, args: list[str], namespace: None = None) -> argparse.Namespace:  # type: ignore[override]
        """As argparse's, but what is misspelled is said before what is missing: it is often the same."""
        required = [action for action in self._actions if action.required]
        for action in required:
            action.required = False
        unknown = self.parse_known_args(args)[1]
        for action in required:
            action.required = True
        for word in unknown[: unknown.index("--")] if "--" in unknown else unknown:
            if word.startswith("-") and len(word) > 1:
                option = word.partition("=")[0]
                self.error(f"there is no option {option}{did_you_mean(option, options_of(self))}")
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def add_checkpoint(parser: argparse.ArgumentParser, required: bool = False, use: str = "heads") -> None:
    """The flag for trained heads. use: what they are for."""
    text = f"{use}: a folder with drafter.json, e.g. runs/quickstart/cascade"
    parser.add_argument("--checkpoint", required=required, metavar="DIR", help=text)


def add_tree(parser: argparse.ArgumentParser, otherwise: str = "") -> None:
    """The flag for the draft tree. otherwise: what is done without one, other than in most commands."""
    parser.add_argument(
        "--tree",
        metavar="TREE",
        help="the draft tree: a name (mc_sim_7b_63), a JSON file, or a list such as [[0],[1],[0,0]]; default: "
        + (otherwise or "the tuned one (run.py tune), else the one the heads were trained with"),
    )


def add_max_new_tokens(parser: argparse.ArgumentParser, default: int) -> None:
    """The flag for the length limit."""
    text = f"most tokens of an answer (default {default})"
    parser.add_argument("--max_new_tokens", type=int, default=default, metavar="N", help=text)


def add_plain(parser: argparse.ArgumentParser) -> None:
    """The flag for decoding without heads."""
    parser.add_argument("--plain", action="store_true", help="decode without heads, one token per step")


def add_limit(parser: argparse.ArgumentParser) -> None:
    """The flag for a part of the data."""
    text = "at most N conversations, whatever split they belong to"
    parser.add_argument("--limit", type=int, metavar="N", help=text)


def add_new_folder(parser: argparse.ArgumentParser) -> None:
    """The flag for a folder that is written as a whole."""
    text = "the folder to write; one that exists is left alone"
    parser.add_argument("--out", required=True, metavar="DIR", help=text)


def add_seed(parser: argparse.ArgumentParser) -> None:
    """The flag for what is drawn."""
    text = "the same seed gives the same text, with or without heads"
    parser.add_argument("--seed", type=int, default=0, metavar="N", help=text)


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The flags of `mhc.sampling.Sampling`, the same for every command that generates text."""
    add = parser.add_argument
    add("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy (default)")
    add(
        "--top_p",
        type=float,
        default=1.0,
        metavar="P",
        help="sample from the likeliest tokens that together have probability P",
    )
    add("--top_k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (default 0: all)")
    add_seed(parser)


def add_backbone(parser: argparse.ArgumentParser) -> None:
    """The flags of the target model: which one, and how it is loaded."""
    add = parser.add_argument
    add(
        "--backbone",
        metavar="NAME",
        help="target model: a directory, a .gguf file, a hub name, pocket or smollm2 (default: the one the heads were trained "
        "on, else pocket)",
    )
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """The flags of how a model is loaded."""
    add = parser.add_argument
    add("--device", default="cpu", help="where to run: cpu, cuda, ... (default: cpu; `compare`: the training device)")
    add_dtype(parser, "default: float32 on a CPU, bfloat16 on a GPU")
    add = parser.add_mutually_exclusive_group().add_argument
    add("--quantize", choices=("int8", "int4"), help="store the model's weights in 8 or 4 bits (needs torchao)")
    for bits, note in ((8, ""), (4, " (torchao stores them in 8)")):
        constant: dict[str, Any] = {"dest": "quantize", "const": f"int{bits}", "help": f"--quantize int{bits}{note}"}
        add(f"--load-in-{bits}bit", action="store_const", **constant)


def add_dtype(parser: argparse.ArgumentParser, help: str, default: str | None = None) -> None:
    """The precision of the model. help: its help text."""
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default=default, help=help)


def add_compile(parser: argparse.ArgumentParser) -> None:
    """The flag for compiled rounds."""
    parser.add_argument(
        "--compile", action="store_true", help="compile decoding, on CUDA into graphs: a slower start, then faster"
    )


def loading_of(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Backbone.load` that these flags give."""
    import torch

    dtype = options.dtype or ("float32" if options.device == "cpu" else "bfloat16")
    return {"device": options.device, "dtype": getattr(torch, dtype), "quantize": options.quantize}


def require_model(options: argparse.Namespace) -> None:
    """Raise UserError unless the flags name heads or a model."""
    if not options.checkpoint and not options.backbone:
        raise UserError(NO_MODEL)


def engine_of(options: argparse.Namespace, backbone: str | None = None):
    """The Engine of --checkpoint (heads), or of --backbone alone, with --tree and --compile where there are such flags.
    backbone: the model where no flag names one; without it, a UserError is raised."""
    from mhc.backbone.model import Backbone
    from mhc.engine import Engine

    loading, compile = loading_of(options), getattr(options, "compile", False)
    if options.checkpoint:
        tree = getattr(options, "tree", None)
        return Engine.from_checkpoint(options.checkpoint, options.backbone, tree, compile, **loading)
    name: str | None = options.backbone or backbone
    if not name:
        raise UserError(NO_MODEL)
    return Engine(Backbone.load(name, **loading), compile=compile)


def identity_of(backbone: Any, manifest: Path) -> dict[str, str]:
    """What a file of settings says of the model that works beside it: its name, and the fingerprints of its weights, chat
    template and tokenizer. Where `manifest` is there and of this model, they have the form in which it has them: earlier
    versions had others."""
    from mhc.text.chat_template import template_fingerprint, tokenizer_fingerprint

    now = {
        "backbone": backbone.name,
        "fingerprint": backbone.fingerprint(),
        "template": template_fingerprint(backbone.tokenizer),
        "tokenizer": tokenizer_fingerprint(backbone.tokenizer),
    }
    try:
        earlier = dict(json.loads(manifest.read_text(encoding="utf-8"))["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        return now
    if backbone.is_model(str(earlier.get("fingerprint"))):
        now["fingerprint"] = earlier["fingerprint"]
        if "tokenizer" not in earlier:
            del now["tokenizer"]
    return now


def sampling_of(options: argparse.Namespace):
    """The Sampling that these flags give."""
    from mhc.sampling import Sampling

    names = ("temperature", "top_p", "top_k", "seed", "posterior_threshold", "posterior_alpha")
    return Sampling(**{name: getattr(options, name) for name in names if hasattr(options, name)})
