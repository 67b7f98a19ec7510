"""`run.py export`: heads in the format of another engine, checked before they are there."""

import shlex

from mhc.commands import Parser, add_checkpoint, add_dtype, add_new_folder
from mhc.util.verbs import RUN, shell_line

FORMATS = {
    "tgi-medusa": "Medusa heads in text-generation-inference; FasterDecoding's names",
    "vllm-medusa": "Medusa heads in vLLM up to 0.32 (0.33 has no Medusa any more)",
    "vllm-cascade": "any cascade of residual cells in vLLM up to 0.32, with this project's plugin (docs/engines.md)",
    "vllm-tied-cascade": "the same for a cascade trained with tied: true, by vLLM's EAGLE path",
    "eagle3-vllm": "EAGLE-3 heads in vLLM",
    "eagle3-sglang": "EAGLE-3 heads in SGLang",
    "speculators": "EAGLE-3 heads as the speculators library and vLLM read them",
    "hf": "heads of any family as they are, with a model card of what was measured, for `run.py push`",
}


def main(argv: list[str]) -> int:
    """Export --checkpoint as --format to --out and print what was written; returns the exit status."""
    options = _parser().parse_args(argv)

    import torch

    from mhc.export import export

    dtype = getattr(torch, options.dtype)
    written = export(
        options.checkpoint, options.format, options.out, options.backbone, options.license, dtype=dtype, decoding=False
    )
    for name, size in written.files.items():
        print(f"{written.folder / name}  {size / 1e6:,.3f} MB")
    print(
        f"read back by {options.format}'s rules: the largest difference from the heads is {written.difference:.1e} of "
        "the largest logit"
    )
    words = shlex.split(
        written.command, comments=True
    )  # of an export for this project, as its card says it to everybody
    print(f"\n{shell_line(*words[2:]) if words[1] == RUN.name else written.command}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="run.py export",
        description="Write trained heads in a format that another engine serves. The folder is read back by an "
        "independent reader that follows the engine's loading rules, and compared with the heads logit by logit; only "
        "then is it there. What an engine cannot run as it was trained is refused, with the nearest choice. Formats: "
        + "; ".join(f"{name}: {about}" for name, about in FORMATS.items()),
    )
    add = parser.add_argument
    add_checkpoint(parser, required=True)
    add("--format", required=True, metavar="NAME", help=", ".join(FORMATS))
    add_new_folder(parser)
    add("--backbone", metavar="NAME", help="the model, as in generate (default: what the heads name)")
    add("--license", metavar="ID", help="for the model card, e.g. apache-2.0 (default: what the backbone's card says)")
    told = "how the backbone is loaded and the weights are written (default float32; bfloat16 takes half the room, "
    add_dtype(parser, f"{told}and the comparison allows for its rounding)", "float32")
    return parser
