"""Which process is which: one that is gone is told from another with its number, and a child does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1


def this_process() -> dict[str, Any]:
    """What identifies this process on this machine: host, pid and start time (s since 1970)."""
    return {"machine": machine(), **identity(os.getpid())}


def machine() -> str:
    return os.environ.get("PROTEGE_MACHINE") or socket.gethostname()


def identity(pid: int) -> dict[str, Any]:
    """pid and start time; a start time of 0 where there is no such process."""
    import psutil

    try:
        return {"pid": pid, "created": psutil.Process(pid).create_time()}
    except psutil.Error:
        return {"pid": pid, "created": 0.0}


def gone(process: dict[str, Any]) -> bool:
    """Is the process that ``process`` (pid, created) describes no more? A pid may be another's by now; a zombie is gone."""
    import psutil

    try:
        now = psutil.Process(int(process["pid"]))
        return abs(now.create_time() - float(process["created"])) >= 2 or now.status() == psutil.STATUS_ZOMBIE
    except (psutil.Error, KeyError, ValueError, TypeError):
        return True


def dying_with_parent(sig: signal.Signals) -> Callable[[], None]:
    """For Popen's ``preexec_fn``: the kernel sends the child ``sig`` when the thread that starts it is gone, however it ends."""
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)
        if os.getppid() != parent:  # it was faster
            os.kill(os.getpid(), sig)

    return prepare


def die_with_parent(sig: signal.Signals) -> None:
    """The same for this process, whose parent is the one that lives now."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)


def end(process: dict[str, Any], patience_s: float = 20.0) -> None:
    """SIGINT, so that sandboxes are closed and the run's state is told; SIGKILL after ``patience_s``."""
    for sig, patience in ((signal.SIGINT, patience_s), (signal.SIGKILL, 10.0)):
        if gone(process):
            return
        try:
            os.kill(int(process["pid"]), sig)
        except ProcessLookupError:
            return
        deadline = time.monotonic() + patience
        while not gone(process) and time.monotonic() < deadline:
            time.sleep(0.1)
