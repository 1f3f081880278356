"""How much of a stretch of time at least one call was under way: is the model server kept busy?"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Busy:
    """Counts the calls of functions it has wrapped. Safe between threads; a call costs two clock readings."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._lock = clock, threading.Lock()
        self._open = 0
        self.restart()

    def restart(self) -> None:
        """A new stretch begins now; calls under way count in it."""
        with self._lock:
            self._began = self._since = self._clock()
            self._seconds, self._in_calls, self._calls = 0.0, 0.0, 0

    def wrap(self, function: Callable[P, T]) -> Callable[P, T]:
        def counted(*args: P.args, **kwargs: P.kwargs) -> T:
            with self._lock:
                self._advance()
                self._open += 1
                self._calls += 1
            try:
                return function(*args, **kwargs)
            finally:
                with self._lock:
                    self._advance()
                    self._open -= 1

        return counted

    def figures(self) -> dict[str, float]:
        """Of the stretch so far: ``busy`` share with a call under way, ``in_flight`` mean number, ``calls``, ``seconds``."""
        with self._lock:
            self._advance()
            seconds = self._since - self._began
            share = self._seconds / seconds if seconds else 0.0
            mean = self._in_calls / seconds if seconds else 0.0
            return {
                "busy": round(share, 4),
                "in_flight": round(mean, 3),
                "calls": self._calls,
                "seconds": round(seconds, 2),
            }

    def _advance(self) -> None:
        now = self._clock()
        if self._open:
            self._seconds += now - self._since
            self._in_calls += self._open * (now - self._since)
        self._since = now
