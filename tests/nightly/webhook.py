"""A local HTTP server that keeps what is posted to it, and may refuse the first few."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Webhook:
    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.refuse, self.asked, self.url = 0, 0, ""


@contextmanager
def webhook() -> Iterator[Webhook]:
    kept = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            kept.asked += 1
            if kept.asked > kept.refuse:
                kept.messages.append(json.loads(body))
            self.send_response(200 if kept.asked > kept.refuse else 500)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept.url = f"http://127.0.0.1:{server.server_address[1]}/secret-path"
    try:
        yield kept
    finally:
        server.shutdown()
        server.server_close()
