"""Progress that people see: one line for each finished unit on the console, the same line in the Prefect UI."""

from __future__ import annotations

import os
import sys
import threading
import time


class Progress:
    """Counts units of work; ``step`` may be called from any thread."""

    def __init__(self, stage: str, total: int) -> None:
        self.stage, self.total, self.done = stage, total, 0
        self._lock = threading.Lock()
        self._began = time.monotonic()

    def step(self, name: str, what: str) -> None:
        with self._lock:
            self.done += 1
            say(self.stage, f"{self.done}/{self.total} {name}: {what}")


def tell(line: str) -> None:
    """One line on the console; on none, once whoever read it is gone.

    A night that `make serve` or a worker started writes to a pipe of theirs, and outlives them when they are killed.
    """
    try:
        print(line, flush=True)
    except BrokenPipeError:
        # what is left in the buffer would fail every later line, and the interpreter's end
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def say(stage: str, text: str) -> None:
    """One line on the console, and in the log of the running flow where there is one."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    tell(f"{stage}: {text}")
    try:
        get_run_logger().info(text)
    except MissingContextError:
        pass
