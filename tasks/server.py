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
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from protege.errors import ProtegeError
from protege.files import storage_errors, write_json
from protege.ports import FIRST_PORT, PORTS, is_free
from tasks.lineage import gone, identity
from tasks.settings import HOME, configure

START_TIMEOUT_S = 240.0
WATCH_S = 5.0


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


def _last_start() -> dict[str, Any]:
    """Process and address of the server that was started last; empty after ``make down``."""
    try:
        return dict(json.loads(_run_file().read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return {}


def _port(run: dict[str, Any]) -> int:
    return urlsplit(str(run.get("url", ""))).port or FIRST_PORT


def running() -> str | None:
    """The API address of this project's live server, or None."""
    run = _last_start()
    ours = bool(run) and not gone(run) and _listens(int(run["pid"]), _port(run))
    return str(run["url"]) if ours and healthy(run["url"]) else None


def _listens(pid: int, port: int) -> bool:
    """Is it this process that answers at ``port``? Another project's server may, where both chose it at one time."""
    import psutil

    try:
        return any(
            c.status == psutil.CONN_LISTEN and c.laddr.port == port for c in psutil.Process(pid).net_connections()
        )
    except psutil.AccessDenied:
        return True  # another user's
    except psutil.NoSuchProcess:
        return False


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
            own = running() or _start(_last_start())
    os.environ["PREFECT_API_URL"] = own
    os.environ["PROTEGE_SERVER"] = "own"
    return own


def start_again(url: str) -> bool:
    """Start this project's server at ``url`` again, on the same port, if its process is gone. False where it is not.

    Raises ServerError when it was stopped or started elsewhere meanwhile, or does not start: another program, or
    another project's server, may have its port.
    """
    run = _last_start()
    if run and not gone(run) and run["url"] == url:
        return False
    with _lock():
        run = _last_start()
        if not run or run.get("stopped"):
            raise ServerError("the Prefect server was stopped, by `make down`")
        if run["url"] != url:
            raise ServerError(f"the Prefect server that was at {ui(url)} is now at {ui(run['url'])}")
        if not gone(run):
            return False  # another process has started it
        port = _port(run)
        if not is_free(port):
            raise ServerError(f"the Prefect server at {ui(url)} has ended, and another program has taken port {port}")
        _start(run, tries=1)
    return True


@contextmanager
def watched(url: str, lost: Callable[[ProtegeError], None]) -> Iterator[None]:
    """Start this project's server at ``url`` again whenever its process is gone; ``lost`` is called where that fails.

    Runs wait for it meanwhile. A server of the user's own is left to the user.
    """
    over = threading.Event()

    def watch() -> None:
        while not over.wait(WATCH_S):
            try:
                if start_again(url):
                    print(f"prefect: the server had ended; started again at {ui(url)}", flush=True)
            except ProtegeError as error:
                if not over.is_set():
                    lost(error)
                return

    if running() == url:
        threading.Thread(target=watch, name="watches the Prefect server", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _start(last: dict[str, Any], tries: int = PORTS) -> str:
    """At the port of the ``last`` start if that is free, so that whoever is bound to it finds the server again."""
    log = HOME / "logs" / "prefect-server.log"
    with storage_errors(log):
        configure()
        log.parent.mkdir(parents=True, exist_ok=True)
        log.open("ab").close()
    said_before = log.stat().st_size
    port = last_port if is_free(last_port := _port(last)) or tries == 1 else FIRST_PORT
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        port = free_port(port, tries)
        url = f"http://127.0.0.1:{port}/api"
        env = {k: v for k, v in os.environ.items() if k not in {"PREFECT_API_URL", "PROTEGE_SERVER"}}
        env["PREFECT_SERVER_UI_API_URL"] = url  # --port does not reach the UI
        command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        with log.open("ab") as out:
            process = subprocess.Popen(
                command, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        while process.poll() is None and time.monotonic() < deadline:
            if _listens(process.pid, port) and healthy(url, timeout=2):
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
    run = _last_start()
    if not run:
        return False
    alive = not gone(run)
    if alive:
        write_json(_run_file(), {**run, "stopped": True})  # for whoever watches it
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
