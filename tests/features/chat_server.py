"""A real HTTP server that answers like an OpenAI-compatible endpoint, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import math
import re
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Oracle(ThreadingHTTPServer):
    """Answers chats: names every latent, says 1 of texts that `knows` finds, and how strong each token is."""

    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.keys: list[str | None] = []
        self.failures: list[int] = []
        self.retry_after: str | None = None
        self.knows: Any = lambda text: True
        self.chance: float | None = None
        self.slow = 0.0
        self.open = self.most_open = 0
        self.lock = threading.Lock()
        self.address = f"http://127.0.0.1:{self.server_port}/v1"

    def answer(self, system: str, user: str) -> str:
        if "how strongly" in system:
            return json.dumps([int(self.knows(text)) for text in re.findall(r"^\d+\. (.*)$", user, flags=re.MULTILINE)])
        if "JSON list" not in system:
            return f'"tokens of a river {zlib.crc32(user.encode()) % 1000}"\nand more'
        texts = re.findall(r"^\d+\. (.*)$", user, flags=re.MULTILINE)
        return "Sure: " + json.dumps([int(self.knows(text)) for text in texts])

    def logprobs(self, text: str) -> dict[str, Any]:
        """A token for every character, digits with the chance of 1."""
        chance = self.chance or 0.0
        both = [{"token": "1", "logprob": math.log(chance)}, {"token": "0", "logprob": math.log(1 - chance)}]
        return {"content": [{"token": c, "top_logprobs": both if c in "01" else []} for c in text]}


class Handler(BaseHTTPRequestHandler):
    server: Oracle

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.asked.append({"path": self.path, **body})
            server.times.append(time.monotonic())
            server.keys.append(self.headers.get("Authorization"))
            server.open += 1
            server.most_open = max(server.most_open, server.open)
            status = server.failures.pop(0) if server.failures else 200
        time.sleep(server.slow)
        turns = {turn["role"]: turn["content"] for turn in body["messages"]}
        text = server.answer(turns["system"], turns["user"])
        choice: dict[str, Any] = {"message": {"content": text}}
        if body.get("logprobs") and server.chance is not None:
            choice["logprobs"] = server.logprobs(text)
        said = {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
        data = json.dumps(said if status == 200 else {"error": "no"}).encode()
        with server.lock:
            server.open -= 1
        self.send_response(status)
        if status != 200 and server.retry_after:
            self.send_header("Retry-After", server.retry_after)
        if status in (301, 302):
            self.send_header("Location", "http://127.0.0.1:9/elsewhere")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextlib.contextmanager
def answering() -> Iterator[Oracle]:
    """A server on a free port, until the end of the block."""
    server = Oracle()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()
