"""A Prefect server of its own for what works in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]


@contextmanager
def own_server(folder: Path, **settings: str) -> Iterator[str]:
    """Start the project's server in ``folder`` with Prefect's ``settings``, yield the address of its API, and stop it."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "PROTEGE_SERVER"))}

    def call(what: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "tasks.server", what],
            cwd=folder,
            env={**env, **settings, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=400,
            check=what != "stop",
        ).stdout.strip()

    try:
        call("start")
        yield call("url") + "/api"
    finally:
        call("stop")
