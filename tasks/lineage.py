"""Which process is which: one that is gone is told from another that has its number now."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any


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
        return bool(abs(now.create_time() - float(process["created"])) >= 2 or now.status() == psutil.STATUS_ZOMBIE)
    except (psutil.Error, KeyError, ValueError, TypeError):
        return True


def dvc_above() -> dict[str, Any] | None:
    """pid and start time of the ``dvc`` that runs this process, through a shell or not; None without one."""
    import psutil

    for parent in psutil.Process().parents():
        with suppress(psutil.Error):
            if any(Path(word).name == "dvc" for word in parent.cmdline()[:3]):
                return identity(parent.pid)
    return None
