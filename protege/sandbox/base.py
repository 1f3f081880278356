"""The Sandbox protocol that every backend implements, and its parameters.

A new backend is one file with a class that provides these methods; ``tests/sandbox_conformance`` is
the proof that it does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from protege.core.instance import Instance

WORKDIR = "/testbed"


@dataclass(frozen=True)
class ExecResult:
    """What one command did.

    ``output`` is stdout and stderr interleaved, decoded as UTF-8 with replacement, cut to the sandbox's
    ``max_output_bytes``; ``dropped_bytes`` says how much was cut. ``exit_code`` is the command's own
    (128 + n for signal n); on ``timed_out`` it is 124 and every process of the command has been killed.
    ``out_of_memory`` and ``disk_full`` say that the sandbox's limits, and not the command's own doing, ended a process.
    """

    exit_code: int
    output: str
    timed_out: bool = False
    dropped_bytes: int = 0
    seconds: float = 0.0
    out_of_memory: bool = False
    disk_full: bool = False


class Sandbox(Protocol):
    """One disposable machine with the instance's repository at ``workdir``.

    Commands of several threads run side by side; a time-out then ends only what its own command started.
    """

    id: str
    backend: str
    workdir: str
    image_digest: str

    def exec(
        self,
        command: str,
        *,
        timeout: float | None = None,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> ExecResult:
        """Run ``command`` with ``bash -c`` in ``workdir`` as the unprivileged agent user.

        A non-zero exit or a time-out is a result. Raises SandboxDied (or SandboxOutOfMemory) when the
        sandbox itself is gone, SandboxError for other engine failures.
        """
        ...

    def read(self, path: str) -> bytes:
        """Bytes of a file. Raises FileNotFoundError, IsADirectoryError, or PermissionError as the agent user would."""
        ...

    def write(self, path: str, data: bytes) -> None:
        """Create or replace a file, with missing parents, as the agent user. Keeps the mode of an existing file."""
        ...

    def diff(self) -> str:
        """``git diff`` of ``workdir`` against the commit it was opened at, new files included, binary files left out.

        Taken with the repository's own hooks, filters, external diff tools and configuration switched off.
        """
        ...

    def live_for(self, seconds: float) -> None:
        """Start the sandbox's lifetime anew. Raises SandboxDied."""
        ...

    def close(self) -> None:
        """Remove the sandbox and everything in it. Idempotent; never raises."""
        ...

    def __enter__(self) -> Sandbox: ...

    def __exit__(self, *exc: object) -> None: ...


class SandboxProvider(Protocol):
    """Opens sandboxes of one backend. Safe to share between threads."""

    backend: str

    def open(self, instance: Instance) -> Sandbox:
        """A fresh sandbox for ``instance``. Raises SandboxError, SandboxUnavailable or ImageMissing."""
        ...

    def check(self, instances: list[Instance]) -> None:
        """Raise ImageMissing, naming every image that is not on hand and how to get it, before any work starts."""
        ...

    def image_digest(self, instance: Instance) -> str:
        """Content digest of what ``open`` would start from; part of every cache key."""
        ...
