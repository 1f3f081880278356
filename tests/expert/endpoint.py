"""A real HTTP endpoint that misbehaves as it is told: each request takes the next act of a script, the last one stays."""

from __future__ import annotations

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Act = Callable[["Handler"], None]


def body(text: Any = "Look at `difference`.", usage: Any = None, finish: str = "stop", **more: Any) -> dict[str, Any]:
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25} if usage is None else usage
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **more}, "finish_reason": finish}
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


def says(value: Any = None, status: int = 200, **headers: str) -> Act:
    """Answer with JSON (or with these very bytes)."""
    raw = value if isinstance(value, bytes) else json.dumps(body() if value is None else value).encode()
    return lambda handler: handler.answer(status, raw, {k.replace("_", "-"): v for k, v in headers.items()})


def fails(status: int, message: str = "broken", code: str = "", **headers: str) -> Act:
    return says({"error": {"message": message, "code": code or None}}, status, **headers)


def hangs(handler: Handler) -> None:
    """Until the server closes."""
    handler.server.closing.wait(30)  # type: ignore[attr-defined]


def drips(handler: Handler) -> None:
    """A byte every 50 ms, so that no single read is slow."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", "10000")
    handler.end_headers()
    while not handler.server.closing.is_set():  # type: ignore[attr-defined]
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


def truncates(handler: Handler) -> None:
    raw = json.dumps(body()).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(raw)))
    handler.end_headers()
    handler.wfile.write(raw[: len(raw) // 2])
    handler.close_connection = True


def resets(handler: Handler) -> None:
    """TCP reset instead of an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True


def echoes_key(status: int) -> Act:
    def act(handler: Handler) -> None:
        told = f"Incorrect API key provided: {handler.headers['Authorization']}"
        handler.answer(status, json.dumps({"error": {"message": told}}).encode(), {})

    return act


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        act = self.server.next_act(request)  # type: ignore[attr-defined]
        try:
            act(self)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True

    def answer(self, status: int, raw: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *args: Any) -> None:
        pass


class Endpoint(ThreadingHTTPServer):
    """``with Endpoint() as server: server.script = [...]``; ``requests`` holds the bodies it was sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script: list[Act] = [says()]
        self.requests: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_act(self, request: dict[str, Any]) -> Act:
        with self._lock:
            self.requests.append(request)
            self.times.append(time.monotonic())
            return self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def plays(self, *acts: Act) -> None:
        self.script = list(acts)

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass

    def __enter__(self) -> Endpoint:
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc: Any) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
        self._thread.join(5)


def texts(*replies: str) -> Iterable[Act]:
    return [says(body(reply)) for reply in replies]
