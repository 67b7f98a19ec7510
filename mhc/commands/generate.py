"""`run.py generate`: answer prompts with trained heads, or plainly."""

import json
import sys
from contextlib import contextmanager
from itertools import accumulate

from mhc.commands import (
    Parser,
    add_backbone,
    add_checkpoint,
    add_compile,
    add_max_new_tokens,
    add_plain,
    add_sampling,
    add_tree,
    engine_of,
    sampling_of,
)
from mhc.errors import UserError


def main(argv: list[str]) -> int:
    """Answer every --prompt and print the texts, or one JSON object a line; returns the exit status."""
    options = _parser().parse_args(argv)

    from mhc.text.encoding import prompt_ids

    sampling = sampling_of(options)
    if options.batch_size < 1:
        raise UserError(f"--batch_size is {options.batch_size}: it must be at least 1")
    engine = engine_of(options)
    prompts = [sys.stdin.read() if prompt == "-" else prompt for prompt in options.prompt]
    ids = [prompt_ids(engine.backbone.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    with _warming(options.compile) as warming:
        answers = dict(
            engine.generate_ids(ids, options.max_new_tokens, options.batch_size, options.plain, sampling, warming)
        )
    if sampling.posterior_threshold and not options.plain:
        print(
            "lossy: typical acceptance accepts likely draft tokens, not only those that plain decoding draws",
            file=sys.stderr,
        )
    for number, prompt in enumerate(prompts):
        answer = answers[number]
        if options.json:
            print(json.dumps(_as_json(answer), ensure_ascii=False))
            continue
        if len(prompts) > 1:
            print(f"{'' if number == 0 else chr(10)}> {prompt}", file=sys.stderr)
        _print_coloured(engine.backbone.tokenizer, answer)
    return 0


def _as_json(answer) -> dict:
    return {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "steps": answer.steps,
        "tokens_per_step": round(answer.tokens_per_step, 4),
        "seconds": round(answer.seconds, 4),
        "finish_reason": answer.finish_reason,
    }


@contextmanager
def _warming(compile: bool):
    """A progress bar for compilation, which can take a minute."""
    if not compile:
        yield None
        return
    from mhc.util.progress import add_task, bar

    with bar() as progress:
        yield add_task(progress, "compiling")


def coloured(tokenizer, answer, style: str = "green"):
    """The answer as a Rich Text in which accepted draft tokens have this style."""
    from rich.text import Text

    from mhc.text.detokenizer import TextStream

    text, stream = Text(), TextStream(tokenizer)
    for accepted, end in zip(answer.accepted, accumulate(count + 1 for count in answer.accepted)):
        text.append(stream.push(answer.token_ids[end - 1 - accepted : end - 1]), style=style)
        text.append(stream.push(answer.token_ids[end - 1 : end]))
    text.append(stream.finish())
    return text


def _print_coloured(tokenizer, answer) -> None:
    """Print the answer, accepted draft tokens in colour on a terminal, and its steps and speed."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(coloured(tokenizer, answer) if console.is_terminal else answer.text, soft_wrap=True, markup=False)
    print(
        f"[{len(answer.token_ids)} tokens in {answer.steps} steps = {answer.tokens_per_step:.2f} tokens per step, "
        f"{len(answer.token_ids) / answer.seconds:.0f} tokens/s, {answer.finish_reason}]",
        file=sys.stderr,
    )


def _parser() -> Parser:
    parser = Parser(
        prog="run.py generate",
        description="Answer prompts with the heads in a run's folder. The text is token for token the target "
        "model's own; on a terminal accepted draft tokens are green.",
    )
    add = parser.add_argument
    add_checkpoint(parser, required=True)
    add(
        "--prompt",
        required=True,
        nargs="+",
        metavar="TEXT",
        help="the user's message ('-' reads it from standard input); several are decoded together",
    )
    add("--batch_size", type=int, default=16, metavar="N", help="prompts decoded together (default 16)")
    add_plain(parser)
    add_sampling(parser)
    add(
        "--posterior_threshold",
        type=float,
        default=0.0,
        metavar="P",
        help="LOSSY: typical acceptance of draft tokens with probability above min(P, alpha * exp(-entropy)); Medusa uses 0.09",
    )
    add("--posterior_alpha", type=float, default=0.3, metavar="A", help="alpha of the above (default 0.3)")
    add_tree(parser)
    add_max_new_tokens(parser, 256)
    add_compile(parser)
    add("--json", action="store_true", help="print one JSON object per prompt instead of text")
    add_backbone(parser)
    return parser
