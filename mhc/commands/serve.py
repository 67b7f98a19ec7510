"""`run.py serve`: an OpenAI-compatible server and a page over trained heads, or over a model alone."""

import math
import os
import socket
from contextlib import suppress
from pathlib import Path

from mhc.commands import Parser, add_backbone, add_checkpoint, add_compile, add_tree, engine_of, require_model
from mhc.errors import UserError

KEY = "MHC_API_KEY"


def main(argv: list[str]) -> int:
    """Serve until interrupted; returns the exit status."""
    options = _parser().parse_args(argv)
    _check(options)
    try:
        import uvicorn

        from mhc.serve.app import Limits, build
    except ImportError as problem:
        raise UserError(f'serving needs {problem.name}: pip install -e ".[serve]"') from problem
    with _listen(options.host, options.port) as listening:
        engine = engine_of(options)
        if engine.backbone.quantised:
            print(engine.backbone.quantised)
        if options.tree is None:
            engine.with_large_batch_tree()
        name = options.name or Path(options.checkpoint or options.backbone).resolve().name
        key = os.environ.get(KEY) or None
        body = int(options.body * 2**20)
        limits = Limits(options.rows, options.waiting, options.context, options.timeout, body, key)
        app = build(engine, name, limits)
        _greet(listening, name, key)
        settings = {"log_level": "warning", "timeout_graceful_shutdown": options.grace}
        with suppress(KeyboardInterrupt):  # how a server is ended; uvicorn raises it again when all is done
            uvicorn.Server(uvicorn.Config(app, **settings)).run(sockets=[listening])
    return 0


def _check(options) -> None:
    require_model(options)
    if not 0 <= options.port < 2**16:
        raise UserError(f"--port is {options.port}: it must be below {2**16}; 0 takes any that is free")
    least = {"rows": 1, "waiting": 0, "context": 2, "timeout": 0.001, "body": 0.001, "grace": 0}
    for name, value in least.items():
        if not value <= getattr(options, name) < math.inf:
            raise UserError(f"--{name} is {getattr(options, name)}: it must be at least {value}")


def _listen(host: str, port: int) -> socket.socket:
    """Take the address before anything is loaded: a port that is taken is known at once."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, UnicodeError) as problem:
        reason = getattr(problem, "strerror", None) or str(problem)
        raise UserError(
            f"cannot listen on {host}, port {port} ({reason}): choose another --host or --port"
        ) from problem


def _greet(listening: socket.socket, name: str, key: str | None) -> None:
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    url = f"http://{'localhost' if host in ('0.0.0.0', '::') else shown}:{port}"
    with_key = f' -H "Authorization: Bearer ${KEY}"' if key else ""
    body = f'{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
    print(f"serving '{name}': a page at {url}/, OpenAI's API at {url}/v1, counters at {url}/metrics")
    print(f"try: curl {url}/v1/chat/completions{with_key} -H 'Content-Type: application/json' -d '{body}'")
    if key is None and host not in ("127.0.0.1", "::1"):
        print(f"anybody who reaches this machine can use it: set {KEY} in the environment to ask for a key")
    print("Ctrl-C ends it.", flush=True)


def _parser() -> Parser:
    parser = Parser(
        prog="run.py serve",
        description="Serve a model with its heads: OpenAI's chat completions, completions and embeddings, streamed, many at once, and "
        "a page to chat at. Texts are the model's own; a seed gives the same text whoever is served beside. "
        f"With {KEY} in the environment /v1 asks for that key.",
    )
    add = parser.add_argument
    add_checkpoint(parser)
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this machine only)")
    add("--port", type=int, default=8000, metavar="N", help="default 8000; 0 takes any that is free")
    add("--name", metavar="NAME", help="the model's name for clients (default: the folder's)")
    add("--rows", type=int, default=16, metavar="N", help="answers decoded at once (default 16)")
    add(
        "--waiting",
        type=int,
        default=256,
        metavar="N",
        help="answers that may wait; more are sent away with 429 (default 256)",
    )
    add(
        "--context",
        type=int,
        default=4096,
        metavar="N",
        help="tokens of a prompt and its answer together, if the model has as many (default 4096): memory is set aside for rows times this",
    )
    add("--timeout", type=float, default=600.0, metavar="S", help="seconds that a request may take (default 600)")
    add("--body", type=float, default=4.0, metavar="MIB", help="the largest body that is read (default 4)")
    add(
        "--grace",
        type=int,
        default=30,
        metavar="S",
        help="seconds that answers under way get when the server ends (default 30)",
    )
    add_tree(parser, "as in generate, but one guess a row where 16 rows or more are decoded together")
    add_compile(parser)
    add_backbone(parser)
    return parser
