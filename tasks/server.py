"""The project's own Prefect server: started when needed, found again, stopped by ``make down``.

Without a server each flow would start an ephemeral one, which takes 11-18 s and loses most run records
at exit. This module must not import prefect: it sets what prefect reads at import.

    python -m tasks.server start | stop | url
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from protege.errors import ProtegeError
from protege.files import storage_errors, write_json
from protege.ports import FIRST_PORT, PORTS, is_free
from tasks.lineage import gone, identity
from tasks.settings import HOME, configure

START_TIMEOUT_S = 240.0


class ServerError(ProtegeError):
    """The Prefect server does not start or answer. The message names its log."""


def _run_file() -> Path:
    return HOME / "run" / "prefect.json"


def healthy(url: str, timeout: float = 5.0) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=timeout) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError, ValueError):
        return False


def running() -> str | None:
    """The API address of this project's live server, or None."""
    try:
        run = json.loads(_run_file().read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None
    return str(run["url"]) if not gone(run) and healthy(run["url"]) else None


def free_port(first: int, tries: int = PORTS) -> int:
    """The first port from ``first`` on that nothing listens on. Raises ServerError after ``tries``."""
    for port in range(first, first + tries):
        if is_free(port):
            return port
    raise ServerError(
        f"no free port between {first} and {first + tries - 1} for the Prefect server; free one, or set PREFECT_API_URL to a "
        "server of yours"
    )


@contextmanager
def _lock() -> Iterator[None]:
    path = HOME / "run" / "prefect.lock"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = path.open("w")
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def ensure() -> str:
    """The API address of a live server: the user's own (PREFECT_API_URL), this project's, or a new one.

    Raises ServerError when the user's does not answer or a new one does not start.
    """
    own = running()
    given = os.environ.get("PREFECT_API_URL")
    if given and given != own and not os.environ.get("PROTEGE_SERVER"):
        if not healthy(given, timeout=20):
            raise ServerError(
                f"PREFECT_API_URL is {given}, where no Prefect server answers; start it, or unset the variable"
            )
        return given
    if own is None:
        with _lock():
            own = running() or _start()
    os.environ["PREFECT_API_URL"] = own
    os.environ["PROTEGE_SERVER"] = "own"
    return own


def _start() -> str:
    log = HOME / "logs" / "prefect-server.log"
    with storage_errors(log):
        configure()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()
    said_before = log.stat().st_size
    port = FIRST_PORT
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        port = free_port(port)
        url = f"http://127.0.0.1:{port}/api"
        env = {k: v for k, v in os.environ.items() if k not in {"PREFECT_API_URL", "PROTEGE_SERVER"}}
        env["PREFECT_SERVER_UI_API_URL"] = url  # --port does not reach the UI
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        while process.poll() is None and time.monotonic() < deadline:
            if healthy(url, timeout=2):
                write_json(_run_file(), {**identity(process.pid), "url": url})
                return url
            time.sleep(0.5)
        if process.poll() is None:
            _end(process.pid)
            raise ServerError(f"the Prefect server gave no sign of life in {START_TIMEOUT_S:.0f} s; see {log}")
        if free_port(port) == port:  # it died, and not because another took the port meanwhile
            raise ServerError(
                f"the Prefect server exited with status {process.returncode}: {_why(log, said_before)}; see {log}"
            )


def _why(log: Path, said_before: int) -> str:
    """The reason for the server's end, from what it has written to its log since ``said_before`` (bytes)."""
    text = log.read_bytes()[said_before:].decode(errors="replace")
    if "Can't locate revision" in text:
        home = os.environ.get("PREFECT_HOME", str(HOME / "prefect"))
        return f"its database is of another Prefect version; move it away: mv {home}/prefect.db {home}/prefect.db.old"
    for said, meant in (("database or disk is full", "the disk is full"), ("No space left on device", "the disk is full"),
                        ("readonly database", "its database cannot be written")):  # fmt: skip
        if said in text:
            return meant
    return next((line.strip()[:300] for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def _end(pid: int, patience_s: float = 20.0) -> None:
    """SIGTERM to the process and its children, SIGKILL to what is left."""
    import psutil

    try:
        parent = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    family = [parent, *parent.children(recursive=True)]
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.terminate()
    for process in psutil.wait_procs(family, timeout=patience_s)[1]:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def stop() -> bool:
    """Stop this project's server. False when none runs."""
    try:
        run = json.loads(_run_file().read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return False
    alive = not gone(run)
    if alive:
        _end(int(run["pid"]))
    _run_file().unlink(missing_ok=True)
    return alive


def ui(url: str) -> str:
    """The page for people that belongs to an API address."""
    return url.removesuffix("/api")


def main(argv: list[str]) -> int:
    command = argv[0] if argv else "start"
    if command == "start":
        already = running()
        url = already or ensure()
        print(f"prefect: server {'runs' if already else 'started'} at {ui(url)}")
    elif command == "stop":
        print("prefect: server stopped" if stop() else "prefect: no server of ours runs")
    elif command == "url":
        url = running() or ""
        print(ui(url))
        return 0 if url else 1
    else:
        print("usage: python -m tasks.server start|stop|url", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except ProtegeError as error:
        print(f"prefect: {error}", file=sys.stderr)
        sys.exit(1)
