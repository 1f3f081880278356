"""Progress that people see: one line for each finished unit on the console, the same line in the Prefect UI."""

from __future__ import annotations

import contextlib
import os
import select
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


def outlive_reader() -> None:
    """Let this process live on when whoever reads its output is gone.

    A night that `make serve` or a worker started writes to a pipe of theirs, and outlives them when they are killed.
    Prefect's log goes through rich, which ends the process on a pipe that nobody reads.
    """
    from rich.console import Console

    Console.on_broken_pipe = lambda console: _write_nowhere()  # type: ignore[method-assign,assignment]


def _write_nowhere() -> None:
    """Let what is still written to a pipe without a reader go nowhere; a buffer's rest would fail every later line."""
    for number in (1, 2):
        asked = select.poll()
        asked.register(number, 0)
        if asked.poll(0):  # asked for no event, poll tells errors only
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


def tell(line: str) -> None:
    """One line on the console; on none, once whoever read it is gone."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        _write_nowhere()


def say(stage: str, text: str) -> None:
    """One line on the console, and in the log of the running flow where there is one."""
    from prefect.exceptions import MissingContextError
    from prefect.logging import get_run_logger

    tell(f"{stage}: {text}")
    with contextlib.suppress(MissingContextError):
        get_run_logger().info(text)
