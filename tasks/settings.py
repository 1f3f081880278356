"""Where the project keeps what is not an out, and its Prefect settings. Must not import prefect."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

HOME = Path(".cache/protege")
"""Relative to the project's folder, which is the current one (as for DVC)."""


def configure() -> None:
    """Put the project's Prefect settings into the environment; what the user has set there stays."""
    home = (HOME / "prefect").absolute()
    # On a disk that cannot be written, the first to need it says so (protege.files.storage_errors).
    with suppress(OSError):
        home.mkdir(parents=True, exist_ok=True)  # Prefect makes it without its parents, and complains
    defaults = {
        "PREFECT_HOME": str(home),
        # in memory, a restarted server would take a running night's place in its concurrency limit away from it
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_LOGGING_LEVEL": "INFO",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",  # people read our progress lines; the UI has the rest
        "PREFECT_API_REQUEST_TIMEOUT": "120",
        "PREFECT_CLIENT_MAX_RETRIES": "10",
        "DO_NOT_TRACK": "1",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
