"""Sandboxes that are up before they are needed.

``WarmPool`` stands in front of a provider. ``plan`` names what is to come, and the pool keeps the next few sandboxes
running; whoever asks for one of them waits milliseconds. It starts a few at a time, backs off when the
engine fails, and a start that hangs loses its place in the queue instead of holding the others up.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence

from protege.config import SandboxParams
from protege.core.instance import Instance
from protege.errors import SandboxDied, SandboxError
from protege.sandbox.base import Sandbox, SandboxProvider

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_SLOW_S = 15.0
_log = logging.getLogger(__name__)


class Starts:
    """At most ``limit`` starts at once, and a pause after each failure that doubles with every further one.

    A start that takes longer than ``slow_s`` gives its place up: what hangs must not hold up what does not.
    """

    def __init__(self, limit: int, slow_s: float = _SLOW_S) -> None:
        self.limit, self.slow_s = limit, slow_s
        self._changed = threading.Condition()
        self._running: dict[int, float] = {}
        self._next = 0
        self._failures = 0
        self._not_before = 0.0

    def _wait(self, give_up: Callable[[], bool]) -> int | None:
        with self._changed:
            while not give_up():
                now = time.monotonic()
                running = sum(now - since < self.slow_s for since in self._running.values())
                if running < self.limit and now >= self._not_before:
                    self._next += 1
                    self._running[self._next] = now
                    return self._next
                self._changed.wait(min(0.5, max(0.01, self._not_before - now)))
        return None

    @contextlib.contextmanager
    def place(self, give_up: Callable[[], bool] = lambda: False) -> Iterator[bool]:
        """Wait for a place; False where ``give_up`` answered True first. A SandboxError inside counts as a failure."""
        mine = self._wait(give_up)
        if mine is None:
            yield False
            return
        try:
            yield True
        except SandboxError as error:
            self._failed(error)
            raise
        else:
            self._failures = 0
        finally:
            with self._changed:
                self._running.pop(mine, None)
                self._changed.notify_all()

    def _failed(self, error: SandboxError) -> None:
        if not error.retryable:
            return
        with self._changed:
            self._failures += 1
            pause = min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._failures - 1)) * random.uniform(0.5, 1.0)
            self._not_before = time.monotonic() + pause
        _log.warning("a sandbox did not start, so the next one waits %.1f s: %s", pause, error)


class WarmPool:
    """A SandboxProvider that hands out fresh sandboxes, warm where the plan foresaw them. Safe to share between threads.

    At most ``params.warm`` unused sandboxes exist at a time, and at most ``params.starts`` are being started. A sandbox is handed
    out once; closing it is its user's business and ends it. Closing the pool removes those never used.
    """

    def __init__(self, provider: SandboxProvider, params: SandboxParams) -> None:
        self.provider, self.params, self.backend = provider, params, provider.backend
        self.starts = Starts(params.starts)
        self._max_idle_s = params.lifetime_s / 2
        self._changed = threading.Condition()
        self._plan: deque[Instance] = deque()
        self._ready: dict[str, list[tuple[float, Sandbox]]] = defaultdict(list)
        self._starting: Counter[str] = Counter()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._fill, daemon=True, name=f"warm-{n}")
            for n in range(min(params.warm, params.starts))
        ]
        for thread in self._threads:
            thread.start()

    def plan(self, instances: Sequence[Instance]) -> None:
        """Say which sandboxes will be asked for, in about this order; it replaces the plan before."""
        with self._changed:
            self._plan = deque(instances)
            self._changed.notify_all()

    def open(self, instance: Instance) -> Sandbox:
        """See the protocol."""
        found = self._take(instance)
        if found is not None:
            return found
        with self.starts.place():
            return self.provider.open(instance)

    def check(self, instances: list[Instance]) -> None:
        """See the protocol."""
        self.provider.check(instances)

    def image_digest(self, instance: Instance) -> str:
        """See the protocol."""
        return self.provider.image_digest(instance)

    def _take(self, instance: Instance) -> Sandbox | None:
        """A warm sandbox, waited for where its start is under way; None where a cold start is as good."""
        key = instance.digest
        with self._changed:
            for index, planned in enumerate(self._plan):
                if planned.digest == key:
                    del self._plan[index]
                    self._changed.notify_all()
                    break
            wanted = time.monotonic()
            while not self._ready[key] and self._starting[key] and time.monotonic() - wanted < _SLOW_S:
                self._changed.wait(0.5)
            ready = self._ready.pop(key, [])
            if not ready:
                return None
            _, sandbox = ready.pop(0)
            if ready:
                self._ready[key] = ready
            self._changed.notify_all()
        try:
            if sandbox.image_digest != self.provider.image_digest(instance):
                raise SandboxDied("its image has changed")
            sandbox.live_for(self.params.lifetime_s)
            if sandbox.exec("true", timeout=10).exit_code != 0:
                raise SandboxDied("it does not work")
        except SandboxError as error:
            _log.info("the warm sandbox %s is of no use: %s", sandbox.id, error)
            sandbox.close()
            return None
        return sandbox

    def _next(self) -> Instance | None:
        """The first instance of the plan that lacks its warm sandbox; waits for one. None when the pool is closed."""
        with self._changed:
            while not self._closed:
                self._drop_stale()
                room = self.params.warm - sum(map(len, self._ready.values())) - self._starting.total()
                have = Counter({key: len(ready) + self._starting[key] for key, ready in self._ready.items()})
                have.update({key: n for key, n in self._starting.items() if key not in have})
                for instance in list(self._plan)[: self.params.warm] if room > 0 else ():
                    if have[instance.digest] == 0:
                        self._starting[instance.digest] += 1
                        return instance
                    have[instance.digest] -= 1
                self._changed.wait(5.0)
        return None

    def _drop_stale(self) -> None:
        oldest = time.monotonic() - self._max_idle_s
        for key, ready in list(self._ready.items()):
            for since, sandbox in list(ready):
                if since < oldest:
                    ready.remove((since, sandbox))
                    threading.Thread(target=sandbox.close, daemon=True).start()
            if not ready:
                del self._ready[key]

    def _fill(self) -> None:
        while (instance := self._next()) is not None:
            sandbox: Sandbox | None = None
            try:
                with self.starts.place(lambda: self._closed) as granted:
                    if granted:
                        sandbox = self.provider.open(instance)
            except Exception as error:  # whoever asks for this one gets the error from a start of its own
                _log.info("no warm sandbox for %s: %s", instance.instance_id, error)
            with self._changed:
                self._starting[instance.digest] -= 1
                if sandbox is not None and not self._closed:
                    self._ready[instance.digest].append((time.monotonic(), sandbox))
                    sandbox = None
                elif sandbox is None:
                    self._forget(instance)
                self._changed.notify_all()
            if sandbox is not None:
                sandbox.close()

    def _forget(self, instance: Instance) -> None:
        """Take an instance that could not be started out of the plan: its user will find out for itself."""
        with contextlib.suppress(ValueError):
            self._plan.remove(instance)

    def close(self) -> None:
        """Remove what was never used. Idempotent; a start under way is ended when it comes up."""
        with self._changed:
            self._closed = True
            unused = [sandbox for ready in self._ready.values() for _, sandbox in ready]
            self._ready.clear()
            self._plan.clear()
            self._changed.notify_all()
        for sandbox in unused:
            sandbox.close()
        for thread in self._threads:
            thread.join(_SLOW_S)

    def __enter__(self) -> WarmPool:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
