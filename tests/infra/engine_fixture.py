"""A private Docker engine that a test may stop, restart and kill; the machine's own is left alone."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


class Engine:
    """A dockerd with everything of its own under ``folder``. Any process may steer it: its state is on disk."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        self.host = f"unix://{self.folder}/sock"

    def start(self) -> None:
        """Start it (again) on the same data, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["dockerd", "--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
        command += ["--pidfile", f"{self.folder}/pid", "-H", self.host, "--bridge=none", "--iptables=false"]
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if self.answers():
                return
            time.sleep(0.1)
        raise RuntimeError(f"the private engine does not start: {(self.folder / 'log').read_text()[-2000:]}")

    def answers(self) -> bool:
        import docker

        try:
            client = docker.DockerClient(base_url=self.host, timeout=5)
            try:
                return bool(client.ping())
            finally:
                client.close()
        except Exception:
            return False

    def pid(self) -> int | None:
        try:
            return int((self.folder / "pid").read_text())
        except (FileNotFoundError, ValueError):
            return None

    def stop(self, patience_s: float = 30.0, how: signal.Signals = signal.SIGTERM) -> None:
        """End it and, as engines do without live-restore, its containers. Idempotent."""
        pid = self.pid()
        if pid is None or not _is_dockerd(pid):
            return
        os.kill(pid, how)
        deadline = time.monotonic() + patience_s
        while _is_dockerd(pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        if _is_dockerd(pid):
            os.kill(pid, signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()


def _is_dockerd(pid: int) -> bool:
    try:
        os.waitpid(pid, os.WNOHANG)  # our own child would stay as a zombie
    except ChildProcessError:
        pass
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return "(dockerd)" in status and ") Z" not in status


@contextmanager
def private_engine(folder: Path) -> Iterator[Engine]:
    if shutil.which("dockerd") is None or os.geteuid() != 0:
        pytest.skip("a private engine needs dockerd and root")
    engine = Engine(folder)
    try:
        engine.start()
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """One private engine for the session. A test that stops it starts it again."""
    # a short path: a socket's address holds 108 bytes
    with private_engine(tmp_path_factory.mktemp("e") / "e") as running:
        yield running
