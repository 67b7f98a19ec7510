"""An OpenAI-compatible server that misbehaves: `python -m tests.helpers.fake_server` prints its address and serves until killed.

An answer is a pure function of the messages, so that whoever asks twice is told the same. Faults are drawn by a seeded
generator: of ten requests about four are answered at once.
"""

import hashlib
import json
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("500", "503", "429", "hang", "cut", "garbage", "no choice", "drip", "null", "html")
REFUSED = "refuse me"


def answer_to(messages: list[dict], seed: int) -> str:
    """What the server says to these messages."""
    told = json.dumps([messages, seed], sort_keys=True)
    return f"{messages[-1]['content'][:30]} -> {hashlib.sha256(told.encode()).hexdigest()[:12]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def _send(self, status: int, body: bytes, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self._send(200, json.dumps({"object": "list", "data": [{"id": "fake", "object": "model"}]}).encode())

    def do_POST(self) -> None:
        server = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        messages = request["messages"]
        with server.lock:
            fault = server.dice.choice(FAULTS) if server.dice.random() < server.share else None
            server.asked.append((messages[-1]["content"], fault, time.monotonic()))
        if request["model"] != "fake":
            return self._send(404, b'{"error": {"message": "no such model"}}')
        if messages[-1]["content"].startswith(REFUSED):
            return self._send(400, b'{"error": {"message": "I will not"}}')
        text = answer_to(messages, request["seed"])
        body = {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "fake",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6},
        }
        whole = json.dumps(body).encode()
        time.sleep(server.pause)
        if fault in ("500", "503"):
            self._send(int(fault), b'{"error": {"message": "oops"}}')
        elif fault == "429":
            self._send(429, b'{"error": {"message": "slower"}}', Retry_After="0.2")
        elif fault == "hang":
            time.sleep(server.hang)
            self.close_connection = True
        elif fault == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2])
            self.close_connection = True
        elif fault == "garbage":
            self._send(200, whole[:-20] + b"}{")
        elif fault == "html":
            self._send(200, b"<html>a proxy's page</html>", "text/html")
        elif fault == "no choice":
            self._send(200, json.dumps(body | {"choices": []}).encode())
        elif fault == "null":
            self._send(200, json.dumps(body | {"choices": None}).encode())
        elif fault == "drip":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            try:
                for at in range(len(whole)):  # each byte soon enough for a time-out between bytes
                    self.wfile.write(whole[at : at + 1])
                    time.sleep(server.hang / 20)
            except OSError:
                pass
            self.close_connection = True
        else:
            self._send(200, whole)
        return None


class Fake(ThreadingHTTPServer):
    """share: of requests that go wrong; pause: seconds before an answer; hang: seconds that a hanging one takes."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, share: float = 0.0, pause: float = 0.0, hang: float = 2.0, seed: int = 0):
        super().__init__(("127.0.0.1", 0), Handler)
        self.share, self.pause, self.hang = share, pause, hang
        self.dice, self.lock, self.asked = random.Random(seed), threading.Lock(), []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is what is tested."""

    def __enter__(self) -> "Fake":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


if __name__ == "__main__":
    fake = Fake(share=float(sys.argv[1]), pause=float(sys.argv[2]))
    print(fake.url, flush=True)
    fake.serve_forever()
