"""The exec stream, without an engine: what the HTTP client does with the first bytes."""

import http.client
import socket
import struct
from types import SimpleNamespace

from protege.sandbox import docker


def test_output_that_comes_with_the_headers_is_not_lost():
    """The engine may answer in one piece; the header reader then holds the first bytes of output."""
    ours, engine = socket.socketpair()
    frame = struct.pack(">BxxxL", 2, 5) + b"first"
    engine.sendall(b"HTTP/1.1 101 UPGRADED\r\nUpgrade: tcp\r\n\r\n" + frame)
    answer = http.client.HTTPResponse(ours, method="POST")
    answer.begin()
    stream = answer.fp.raw
    stream._response = SimpleNamespace(raw=SimpleNamespace(_fp=answer))
    ours.setblocking(False)
    assert docker.early_bytes(stream) == frame
    assert docker.early_bytes(stream) == b""
    engine.sendall(b"later")
    assert ours.recv(100) == b"later"
