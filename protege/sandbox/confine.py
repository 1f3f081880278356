"""Starting, feeding and ending the processes of a process sandbox."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protege.sandbox.shell import Buffer


@functools.cache
def bubblewrap() -> str | None:
    """Path of a ``bwrap`` that works here, else None (missing, or user namespaces are switched off)."""
    found = shutil.which("bwrap")
    if found is None:
        return None
    probe = [
        found,
        "--ro-bind",
        "/",
        "/",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--die-with-parent",
        "/bin/true",
    ]
    run = subprocess.run(probe, capture_output=True, check=False, timeout=20)
    return found if run.returncode == 0 else None


def limits_text(isolated: bool) -> str:
    """What the mode protects against and what not, in words for a person."""
    if isolated:
        return (
            "process sandbox (bubblewrap): own view of files, processes and network; memory is limited for each process, not in all; "
            "disk is watched; CPU share is not limited; the kernel is shared"
        )
    return (
        "process sandbox without bubblewrap: commands can reach the network, can read this machine's files as an ordinary user and can "
        "see its processes and installed packages; memory is limited for each process, CPU share and disk are not. "
        "Run only code that you would run yourself; apt-get install bubblewrap"
    )


def reachable_by_others(path: Path) -> bool:
    """Whether an unprivileged user can get to ``path``."""
    path = path.resolve()
    return all(p.stat().st_mode & stat.S_IXOTH for p in (path, *path.parents))


def kernel() -> tuple[int, int]:
    """Major and minor version; from 5.14 on the limit on processes counts within a user namespace."""
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()) or 0)


def pump(process: subprocess.Popen[bytes], stdin: bytes | None, deadline: float, out: Buffer, err: Buffer) -> bool:
    """Move bytes until the command has ended; False when the deadline came first."""
    todo = memoryview(stdin or b"")
    with selectors.DefaultSelector() as selector:
        for pipe, sink in ((process.stdout, out), (process.stderr, err)):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ, sink)
        if process.stdin is not None:
            os.set_blocking(process.stdin.fileno(), False)
            selector.register(process.stdin, selectors.EVENT_WRITE, None)
        ended_at: float | None = None
        pause = 0.002
        while True:
            now = time.monotonic()
            if now >= deadline:
                return False
            readers = [key for key in selector.get_map().values() if key.data is not None]
            if not readers and process.poll() is not None:
                return True
            # a process left behind may hold a pipe open: once the command has ended, a short grace is enough
            if ended_at is not None and now - ended_at > 0.2:
                return True
            busy = False
            for key, _ in selector.select(min(0.05 if readers else pause, deadline - now)):
                busy = True
                if key.data is None:
                    assert process.stdin is not None
                    try:
                        todo = todo[os.write(key.fd, todo[:65536]) :] if todo else todo
                    except BlockingIOError:
                        continue
                    except OSError:
                        todo = todo[:0]
                    if not todo:
                        selector.unregister(process.stdin)
                        process.stdin.close()
                    continue
                try:
                    data = os.read(key.fd, 262144)
                except BlockingIOError:
                    continue
                if data:
                    key.data.feed(data)
                else:
                    selector.unregister(key.fileobj)
            pause = min(pause * 2, 0.05)
            if not busy and ended_at is None and process.poll() is not None:
                ended_at = time.monotonic()


def left_over(mark: str, uid: int | None) -> list[int]:
    """Live processes of user ``uid``, or (where all share one user) those with ``mark`` in their environment."""
    wanted = mark.encode()
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if "\nState:\tZ" in (path / "status").read_text():
                continue
            if uid is not None:
                hit = path.stat().st_uid == uid
            else:
                hit = wanted in (path / "environ").read_bytes().split(b"\0")
            if hit:
                found.append(int(path.name))
    return found


def kill_tree(process: subprocess.Popen[bytes], mark: str, uid: int | None, isolated: bool) -> None:
    """End the command and whatever it left: bubblewrap's namespace dies with it, else by group, user or mark."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    if isolated:
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(100):  # a fork bomb makes new ones while the list is read
        left = left_over(mark, uid)
        if not left:
            return
        for pid in left:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def remove_tree(path: Path) -> None:
    """Remove a folder whose contents may have been closed to us."""

    def again(function: Callable[[str], Any], name: str, error: BaseException) -> None:
        with contextlib.suppress(OSError):
            if name != str(path):
                os.chmod(os.path.dirname(name), 0o700)
            os.chmod(name, 0o700, follow_symlinks=False) if os.path.isdir(name) else None
            function(name)

    try:
        if sys.version_info >= (3, 12):
            shutil.rmtree(path, onexc=again)
        else:
            shutil.rmtree(path, onerror=lambda function, name, info: again(function, name, info[1]))
    except RecursionError:  # folders in folders, thousands deep
        pass
    if path.exists():
        for command in (["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
            subprocess.run([*command, "--", str(path)], capture_output=True, check=False)
