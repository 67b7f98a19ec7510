"""A server in this process, and questions that its heads know the answers to."""

import threading
from dataclasses import dataclass

import uvicorn

from mhc.engine import Engine
from mhc.serve.app import Limits, build

QUESTIONS = ["Hello!", "Give me three tips for good sleep.", "Write a thank-you letter.", "What is 12 + 30?"]


@dataclass
class Live:
    """A server in this process: its address, the engine that it serves, and the application."""

    url: str
    engine: Engine
    app: object


def serve(engine: Engine, **limits):
    """Serve an engine from a thread until the generator is closed."""
    app = build(engine, "pocket", Limits(**limits))
    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="warning", lifespan="on", timeout_graceful_shutdown=5)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        thread.join(0.01)
        assert thread.is_alive(), "the server did not start"
    port = server.servers[0].sockets[0].getsockname()[1]
    yield Live(f"http://127.0.0.1:{port}", engine, app)
    server.should_exit = True
    thread.join(20)
    assert not thread.is_alive(), "the server did not end"
