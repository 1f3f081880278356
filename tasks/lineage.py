"""Which process is which: one that is gone is told from another with its number, and a child does not outlive its parent."""

from __future__ import annotations

import ctypes
import os
import pathlib
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

_PR_SET_PDEATHSIG = 1
_SHELLS = {"sh", "dash", "bash", "zsh", "ksh", "fish"}
_LOOK_S = 0.5


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


def dying_with_parent(sig: signal.Signals) -> Callable[[], None]:
    """For Popen's ``preexec_fn``: the kernel sends the child ``sig`` when the thread that starts it is gone, however it ends."""
    libc, parent = ctypes.CDLL(None, use_errno=True), os.getpid()

    def prepare() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, sig, 0, 0, 0)
        if os.getppid() != parent:  # it was faster
            os.kill(os.getpid(), sig)

    return prepare


def starter() -> dict[str, Any]:
    """pid and start time of the process that started this one, through ``sh -c`` or not.

    DVC starts a stage through $SHELL, else /bin/sh (services have no $SHELL). bash puts the command in its own place;
    Debian's sh stays between the two, and lives on when DVC is killed.
    """
    import psutil

    parent = psutil.Process(os.getppid())
    try:
        command = parent.cmdline()
        if command and pathlib.Path(command[0]).name in _SHELLS and "-c" in command[1:]:
            parent = parent.parent() or parent
    except psutil.Error:
        pass
    return identity(parent.pid)


def end_with(process: dict[str, Any], patience_s: float = 20.0) -> None:
    """Interrupt this process (KeyboardInterrupt in its main thread) once ``process`` (pid, created) is gone.

    Interrupted, it still waits for its threads, and one of them may wait for minutes (for a model server that starts, for
    an expert): after ``patience_s`` it is killed. Call it in the main thread: a background job of a shell ignores SIGINT,
    which is undone here.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def watch() -> None:
        while not gone(process):
            time.sleep(_LOOK_S)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(patience_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name=f"ends with {process['pid']}", daemon=True).start()


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
