"""One Ctrl-C (or SIGTERM, or a closed terminal) stops the work; more of them do not disturb the clearing up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def one_interrupt(note: Callable[[str], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once; later ones only say that the clearing up goes on.

    For a command: after an interrupt the handlers stay until the process ends, which it is to do at once.
    Does nothing outside the main thread, which alone is told of signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            note("stopping already: the sandbox and the model server are being removed")
            return
        stopping = True
        raise KeyboardInterrupt

    # what is ignored, as under nohup, stays ignored
    heard = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        if not stopping:  # after an interrupt the process only has to say so and end; a late Ctrl-C must not change how
            for number, handler in before.items():
                signal.signal(number, handler)
