"""Ports of this machine, by the standard library alone: the doctor asks where nothing else is installed."""

from __future__ import annotations

import socket

FIRST_PORT, PORTS = 4200, 100
"""The Prefect server is put at the first free one of these (tasks/server.py)."""


def is_free(port: int) -> bool:
    """Whether nothing listens on ``port`` of the loopback address."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            return True
        except OSError:
            return False
