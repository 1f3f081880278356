"""Our end of a sandbox's runner: commands go in as frames over one connection, and their outcome comes back.

The other end is ``runner.py``, process 1 of the sandbox; docs/design/0004-runner.md.
"""

from __future__ import annotations

import abc
import contextlib
import functools
import itertools
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protege.errors import SandboxDied, SandboxError
from protege.sandbox.rootfs import HOME
from protege.sandbox.runner import FRAME
from protege.sandbox.shell import Buffer, Raw, ShellSandbox

INTERPRETERS = ("/usr/bin/python3", "/usr/local/bin/python3", "/opt/miniconda3/bin/python3", "/opt/conda/bin/python3")
"""Where the runner's interpreter is looked for inside, in this order."""
CAPABILITIES = ("SETUID", "SETGID", "SETPCAP", "KILL", "DAC_READ_SEARCH")
"""What process 1 holds where it is root, and every command has lost before it begins."""
NO_PYTHON = 97
"""Exit status of a sandbox in which there is none of them."""
_GRACE_S = 30.0
"""How long after a command's deadline the runner may take to kill it and say so."""
_LAST_WORDS = 4096

_FIND = (
    f"for python in {' '.join(INTERPRETERS)}; do "
    '[ -x "$python" ] && exec "$python" -ISB -c "$1" "$2" "$3"; done; '
    f"echo 'no Python 3 in {' '.join(INTERPRETERS)}' >&2; exit {NO_PYTHON}"
)
# its source comes over the connection: on the command line it would fill the agent's view of `ps`
_BOOT = (
    "import os, sys; source, size = b'', int(sys.argv.pop(1))\n"
    "while len(source) < size: source += os.read(0, size - len(source)) or sys.exit(0)\n"
    "exec(compile(source, 'runner', 'exec'))"
)


_RUNNER = Path(__file__).with_name("runner.py")
_INSIDE = Path(__file__).with_name("inside.py")


class LinkBroken(Exception):
    """The runner is gone or does not answer. Holds its last words on stderr."""


@functools.cache
def _source() -> bytes:
    """Both files of the runner as one: inside there is no protege to import from."""
    runner = _RUNNER.read_text(encoding="utf-8").split("from protege.sandbox.inside import", 1)
    return (runner[0] + _INSIDE.read_text(encoding="utf-8") + runner[1].partition("\n")[2]).encode()


def command_line(options: dict[str, Any]) -> list[str]:
    """argv of a sandbox's process 1; ``options`` as in :class:`protege.sandbox.runner.Runner`."""
    return ["/bin/sh", "-c", _FIND, "sh", _BOOT, str(len(_source())), json.dumps(options)]


class _Waiting:
    """A command that has been sent and what has come back of it."""

    def __init__(self, limit: int) -> None:
        self.sinks = {b"O": Buffer(limit), b"S": Buffer(65536)}
        self.outcome: dict[str, Any] | None = None


class Link:
    """One connection to one runner. Threads may run commands over it side by side.

    ``multiplexed`` says that the other side wraps the stream in the engine's 8-byte headers; ``early`` is
    what was read of it before.
    """

    def __init__(self, connection: socket.socket, *, multiplexed: bool, early: bytes = b"") -> None:
        self._socket = connection
        self._socket.settimeout(None)
        self._numbers = itertools.count(1)
        self._waiting: dict[int, _Waiting] = {}
        self._sending, self._turn = threading.Lock(), threading.Condition()
        self._reading = False
        self._broken: str | None = None
        self._frames, self._last_words = bytearray(), bytearray()
        self._demux = _Demux(self._frames, self._last_words) if multiplexed else None
        self.ready: dict[str, Any] | None = None
        self._take(early)
        try:
            self._socket.sendall(_source())
        except OSError as error:
            self.break_off(f"the sandbox ended before it was up ({error})")

    def wait_ready(self, timeout: float) -> None:
        """Return when the runner is ready. Raises LinkBroken."""
        deadline = time.monotonic() + timeout
        while self.ready is None:
            if not self._receive(deadline):
                self.break_off(f"the sandbox did not come up within {timeout:.0f} s")
            if self._broken is not None:
                raise LinkBroken(self._broken)

    def run(
        self,
        argv: list[str],
        *,
        cwd: str,
        timeout: float,
        limit: int,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        root: bool = False,
        merged: bool = False,
    ) -> Raw:
        """Run ``argv`` and keep ``limit`` bytes of its stdout (of both streams where ``merged``). Raises LinkBroken."""
        number, waiting = next(self._numbers), _Waiting(limit)
        header = {
            "argv": argv,
            "cwd": cwd,
            "env": env or {},
            "timeout": timeout,
            "limit": limit,
            "root": root,
            "merged": merged,
        }
        encoded = json.dumps(header).encode()
        self._waiting[number] = waiting
        try:
            self._send(b"R", number, struct.pack(">I", len(encoded)) + encoded + (stdin or b""))
            self._await(waiting, time.monotonic() + timeout + _GRACE_S)
        finally:
            self._waiting.pop(number, None)
        assert waiting.outcome is not None
        done, out, err = waiting.outcome, waiting.sinks[b"O"], waiting.sinks[b"S"]
        if "failed" in done:
            return Raw(int(done["code"]), b"", f"bash: no process could be started: {done['failed']}\n".encode())
        return Raw(
            int(done["code"]),
            out.value(),
            err.value(),
            bool(done["timed_out"]),
            int(done["dropped"]) + out.dropped,
            float(done["seconds"]),
            out_of_memory=bool(done["oom"]),
            disk_full=bool(done.get("disk_full")),
            crowded=bool(done.get("crowded")),
        )

    def live_for(self, seconds: float) -> None:
        """Let the sandbox end ``seconds`` from now. Raises LinkBroken."""
        self._send(b"L", 0, json.dumps(seconds).encode())

    def break_off(self, why: str) -> None:
        """Give the connection up; whoever waits for a command gets LinkBroken."""
        if self._broken is None:
            last = bytes(self._last_words).decode(errors="replace").strip()
            self._broken = f"{why}; its runner's last words: {last}" if last else why
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.break_off("the sandbox is closed")
        self._socket.close()

    def _send(self, kind: bytes, number: int, payload: bytes) -> None:
        if self._broken is not None:
            raise LinkBroken(self._broken)
        try:
            with self._sending:
                self._socket.sendall(FRAME.pack(kind, number, len(payload)) + payload)
        except OSError as error:
            self.break_off(f"the connection to the sandbox is gone ({error})")
            raise LinkBroken(self._broken) from error

    def _await(self, waiting: _Waiting, deadline: float) -> None:
        """Until ``waiting`` has its outcome: one thread reads for all, the others wait for it."""
        while waiting.outcome is None:
            with self._turn:
                while self._reading and waiting.outcome is None and self._broken is None:
                    self._turn.wait(0.5)
                if waiting.outcome is not None:
                    return
                if self._broken is not None:
                    raise LinkBroken(self._broken)
                self._reading = True
            try:
                heard = self._receive(deadline)
            finally:
                with self._turn:
                    self._reading = False
                    self._turn.notify_all()
            if not heard and time.monotonic() >= deadline and waiting.outcome is None:
                self.break_off(f"the sandbox did not answer within {_GRACE_S:.0f} s of a command's deadline")

    def _receive(self, deadline: float) -> bool:
        """Take in what comes next, waiting at most until ``deadline`` (or a second, so that others get their turn)."""
        try:
            wait = min(1.0, max(0.0, deadline - time.monotonic()))
            # an engine over TLS: what is decrypted already is invisible to select
            decrypted = getattr(self._socket, "pending", lambda: 0)()
            if not decrypted and not select.select([self._socket], [], [], wait)[0]:
                return time.monotonic() < deadline
            data = self._socket.recv(262144)
        except (OSError, ValueError) as error:
            self.break_off(f"the connection to the sandbox broke ({error})")
            return False
        if not data:
            self.break_off("the sandbox has ended")
            return False
        self._take(data)
        return True

    def _take(self, data: bytes) -> None:
        if self._demux is not None:
            self._demux.feed(data)
        else:
            self._frames += data
        while len(self._frames) >= FRAME.size:
            kind, number, length = FRAME.unpack_from(self._frames)
            if len(self._frames) < FRAME.size + length:
                return
            payload = bytes(self._frames[FRAME.size : FRAME.size + length])
            del self._frames[: FRAME.size + length]
            if kind == b"H":
                self.ready = json.loads(payload)
                continue
            waiting = self._waiting.get(number)
            if waiting is None:
                continue
            if kind == b"X":
                waiting.outcome = json.loads(payload)
            else:
                waiting.sinks[kind].feed(payload)


class LinkedSandbox(ShellSandbox):
    """Base of the backends whose process 1 is the runner. A backend provides ``_explain`` and ``close``."""

    _link: Link | None = None
    _closed = False

    @abc.abstractmethod
    def _explain(self, error: LinkBroken) -> SandboxError:
        """Why the connection to process 1 broke."""

    def _runner_line(self, uid: int | None, places: list[str], limits: dict[str, int] | None = None) -> list[str]:
        """argv of process 1, which runs commands as ``uid`` (None: as itself) and watches the disk at ``places``.

        ``limits`` hold for every process inside, as for ``setrlimit``, beside those on core dumps and file size.
        """
        options = {
            "uid": uid,
            "gid": uid,
            "places": places,
            "disk_mb": self.params.disk_mb,
            "lifetime": self.params.lifetime_s,
            "limits": {"RLIMIT_CORE": 0, "RLIMIT_FSIZE": self.params.disk_mb * 1024 * 1024, **(limits or {})},
        }
        return command_line(options)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Link]:
        if self._closed or self._link is None:
            raise SandboxDied(f"sandbox {self.id} is closed")
        try:
            yield self._link
        except LinkBroken as error:
            raise self._explain(error) from error

    def live_for(self, seconds: float) -> None:
        """Start the sandbox's lifetime anew. Raises SandboxDied."""
        with self._connected() as link:
            link.live_for(seconds)

    def _run(
        self,
        argv: list[str],
        *,
        timeout: float,
        limit: int,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
        merged: bool = False,
    ) -> Raw:
        environment = {"HOME": HOME, "USER": "agent", **(env or {})}
        with self._connected() as link:
            return link.run(
                argv, cwd=self.workdir, timeout=timeout, limit=limit, stdin=stdin, env=environment, merged=merged
            )


class _Demux:
    """The engine's stream: an 8-byte header (stream, length) before each payload; stdout carries frames, stderr last words."""

    def __init__(self, frames: bytearray, last_words: bytearray) -> None:
        self._frames, self._last_words = frames, last_words
        self._header = b""
        self._left = 0
        self._kind = 1

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._left:
                part = view[: self._left]
                if self._kind == 1:
                    self._frames += part
                else:
                    self._last_words += part
                    del self._last_words[:-_LAST_WORDS]
                self._left -= len(part)
                view = view[len(part) :]
                continue
            need = 8 - len(self._header)
            self._header += bytes(view[:need])
            view = view[need:]
            if len(self._header) == 8:
                self._kind, self._left = struct.unpack(">BxxxL", self._header)
                self._header = b""
