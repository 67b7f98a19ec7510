"""A server that speaks to the page as mhc.serve does, and answers oddly when it is told to: for what a good one never does."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from select import select

PAGE = Path(__file__).parents[2] / "mhc" / "serve" / "page"
KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
ODD = """# Heading <script>window.hacked = 1</script>

<img src=x onerror="window.hacked = 1"> and **bold** and *soft* and `code` <iframe src="javascript:window.hacked=1">

[click](javascript:window.hacked=1) ![picture](http://outside.example/p.png) [good](https://outside.example/) \\*no\\*

- one
- two with `a|b`
  1. inner

> quoted

| a | b |
|---|---|
| 1 | 2 |

```python
def f():
    return "<b>**not bold**</b>"
```"""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None:
        pass

    def send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(len(body)), **headers}
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def refuse(self, status: int, message: str, **headers: str) -> None:
        self.send(status, json.dumps({"error": {"message": message}}).encode(), **headers)

    def allowed(self) -> bool:
        wanted = self.server.key
        if not wanted or self.headers.get("Authorization") == f"Bearer {wanted}":
            return True
        self.refuse(401, "no key")
        return False

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            heads = {"family": "Cascade", "heads": 5} if self.server.heads else None
            if self.allowed():
                self.send(200, json.dumps({"data": [{"id": "fake", "heads": heads}]}).encode())
            return
        file = PAGE / (self.path.lstrip("/") or "index.html")
        if file.is_file():
            policy = "default-src 'self'; form-action 'none'"
            self.send(200, file.read_bytes(), KINDS[file.suffix], Content_Security_Policy=policy)
        else:
            self.send(404, b"")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not self.allowed():
            return
        server, question = self.server, request["messages"][-1]["content"]
        server.asked.append(request)
        if question == "busy" and server.busy:
            server.busy -= 1
            return self.refuse(429, "queue full", Retry_After="7")
        if question == "bad":
            return self.refuse(400, "the prompt is too long by 12 tokens")
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        try:
            self.stream(question, request["plain"])
        except OSError:
            server.left.set()

    def stream(self, question: str, plain: bool) -> None:
        server = self.server
        text = ODD if question == "odd" else f"You said {question}, number {len(server.asked)}. " + "word " * 40
        if server.same:
            text = "One and the same. " * 4
        pieces = [text[at : at + 4] for at in range(0, len(text), 4)]
        self.event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        for number in range(0, len(pieces), 2):
            if number >= 10 and question == "cut":
                return
            if number >= 10 and question == "broken":
                return self.event({"error": {"message": "the engine has stopped"}})
            while number >= 10 and question == "slow" and not server.go.wait(0.02):
                if select([self.connection], [], [], 0)[0]:  # nothing is left to be sent: it was closed
                    raise ConnectionAbortedError
            now = pieces[number : number + 2]
            told = {
                "tokens": [[piece, at == 1 and not plain] for at, piece in enumerate(now)],
                "steps": number // 2 + 1,
            }
            told |= {"completion_tokens": number + len(now), "seconds": 0.01 * (number + 1) * (2 if plain else 1)}
            self.event({"choices": [{"index": 0, "delta": {"content": "".join(now)}}], "mhc": told})
        self.event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
        self.wfile.write(b"data: [DONE]\n\n")

    def event(self, data: dict) -> None:
        self.wfile.write(b": still here\r\n\r\ndata: " + json.dumps(data).encode() + b"\n\n")
        self.wfile.flush()


@contextmanager
def page_server():
    """The server; url, asked (all requests), go (lets a slow answer go on), left (a reader left), and what it is told: busy (how
    often), key, heads, same (every answer is)."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.url = True, f"http://127.0.0.1:{server.server_address[1]}"
    server.asked, server.busy, server.key, server.heads, server.same = [], 1, "", True, False
    server.go, server.left = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server
    server.go.set()
    server.shutdown()
    server.server_close()
    thread.join()
