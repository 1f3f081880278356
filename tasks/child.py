"""A stage as a child of the night: one process, joined to it by a socket.

Over the socket the stage's error reaches the night as what it is. The night's end is closed when the night is gone,
however that was, and then the stage ends too. What the stage prints goes through a pipe.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from protege.errors import Boundary, ProtegeError
from tasks.lineage import dvc_above, gone, identity

LINK = "PROTEGE_PARENT_FD"
"""Environment variable: the number of the child's end of the socket."""
TAIL_LINES = 60
PATIENCE_S = 20.0
_LOOK_S = 0.5
_MESSAGE_CHARS = 20_000
"""So much of an error's message is sent; all of it has room in the socket, so that nobody waits to send."""


class StageFailed(ProtegeError):
    """A stage did not end well. ``kind`` is the class of its error, "" if it gave none; ``log_tail`` the end of what it printed."""

    def __init__(
        self, stage: str, kind: str, message: str, boundary: Boundary, retryable: bool, log_tail: str = ""
    ) -> None:
        self.stage, self.kind, self.log_tail = stage, kind, log_tail
        self.boundary, self.retryable = boundary, retryable
        super().__init__(f"stage {stage}: {kind}: {message}" if kind else f"stage {stage} {message}")


def run_child(
    stage: str, command: Sequence[str], env: dict[str, str], tell: Callable[[str], None], cwd: Path | str | None = None
) -> None:
    """Run ``command``, each line that it prints given to ``tell``. Raises StageFailed with the error that it sends.

    It ends with this process. It has a session of its own: Ctrl-C in a terminal interrupts it once, through us.
    """
    ours, theirs = socket.socketpair()
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    with ours:
        with theirs:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=cwd,
                    env={**env, LINK: str(theirs.fileno())},
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    encoding="utf-8",
                    errors="replace",
                    bufsize=1,
                )
            except OSError as error:
                raise StageFailed(stage, "BadInput", f"cannot run {command[0]!r}: {error}", "input", False) from error

        def pass_on() -> None:
            assert process.stdout is not None
            with process.stdout as lines:
                for line in lines:
                    tail.append(line)
                    tell(line.rstrip("\n"))

        reader = threading.Thread(target=pass_on, name=f"output of {stage}", daemon=True)
        reader.start()
        try:
            status = process.wait()
        except BaseException:
            ours.close()
            try:
                process.wait(PATIENCE_S + 5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise
        reader.join(5)  # longer only where something that the stage started, and that outlives it, holds the pipe
        sent = _received(ours)
    if status:
        raise _failure(stage, status, sent, "".join(tail))


def _failure(stage: str, status: int, error: dict[str, Any] | None, output: str) -> StageFailed:
    if error is not None:
        return StageFailed(stage, **error, log_tail=output)
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "it printed nothing")
    # 1 is a program's own defect; whatever else ended it (a signal) may pass
    return StageFailed(stage, "", f"{how}: {last[-300:]}", "sandbox", status != 1, output)


def _received(link: socket.socket) -> dict[str, Any] | None:
    link.setblocking(False)
    raw = b""
    try:
        while part := link.recv(65536):
            raw += part
    except OSError:  # what the child started may hold its end open
        pass
    try:
        return dict(json.loads(raw))
    except ValueError:
        return None


class Parent:
    """Whoever runs this process as a stage: the night, through its socket, or ``dvc repro`` (``process``: pid, created)."""

    def __init__(self, process: dict[str, Any], link: socket.socket | None) -> None:
        self.process, self._link = process, link

    @classmethod
    def of_this_process(cls) -> Parent | None:
        """None for a process that was started by hand."""
        if number := os.environ.pop(LINK, ""):
            link = socket.socket(fileno=int(number))
            link.set_inheritable(False)  # what this process starts does not hold it
            return cls(identity(os.getppid()), link)
        dvc = dvc_above() if "DVC_STAGE" in os.environ else None
        return cls(dvc, None) if dvc else None

    def send(self, error: Exception) -> None:
        """Hand ``error`` to the night."""
        ours = isinstance(error, ProtegeError)
        about = {
            "kind": getattr(error, "kind", "") or type(error).__name__,
            "message": str(error)[-_MESSAGE_CHARS:],
            "boundary": error.boundary if ours else "sandbox",  # type: ignore[attr-defined]
            "retryable": ours and error.retryable,  # type: ignore[attr-defined]
        }
        if self._link is not None:
            try:
                self._link.sendall(json.dumps(about).encode())
            except OSError:
                pass  # it is gone, and this process ends too

    def end_with(self, patience_s: float = PATIENCE_S) -> None:
        """Interrupt this process (KeyboardInterrupt in its main thread) once the parent is gone.

        Interrupted, it still waits for its threads, and one of them may wait for minutes (for a model server that
        starts, for an expert): after ``patience_s`` it is killed. Call it in the main thread: a background job of a
        shell ignores SIGINT, which is undone here.
        """
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)

        def watch() -> None:
            self._wait()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(patience_s)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=watch, name=f"ends with {self.process['pid']}", daemon=True).start()

    def _wait(self) -> None:
        if self._link is None:
            while not gone(self.process):
                time.sleep(_LOOK_S)
            return
        try:
            while self._link.recv(1):
                pass
        except OSError:
            pass
