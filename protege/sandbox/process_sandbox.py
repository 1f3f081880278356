"""A sandbox that is a folder of this machine; bubblewrap, where present, keeps its commands in."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

from protege.errors import SandboxDied, SandboxError
from protege.sandbox import images, rootfs
from protege.sandbox.base import WORKDIR, SandboxParams
from protege.sandbox.cell import Cell
from protege.sandbox.confine import kill_tree, pump, remove_tree
from protege.sandbox.link import Link, LinkBroken, command_line
from protege.sandbox.rootfs import HOME
from protege.sandbox.runner import LIFETIME_OVER
from protege.sandbox.scrub import ENSURE_GIT
from protege.sandbox.shell import PREPARE_GIT, PRIVATE, Buffer, Raw, ShellSandbox

_log = logging.getLogger(__name__)
_uids = itertools.count(os.getpid() % 4000)


def sandboxes_folder() -> Path:
    """Where the sandboxes of this user are; a folder of them names its owner process."""
    return Path(tempfile.gettempdir()) / f"protege-{os.geteuid()}"


class ProcessSandbox(ShellSandbox):
    """A temporary folder in which commands run. See :class:`protege.sandbox.base.Sandbox`.

    Without bubblewrap, processes left in the background end when their command ends.
    """

    backend = "process"

    def __init__(
        self,
        archive: Path,
        image_digest: str,
        params: SandboxParams,
        *,
        site: Path | None = None,
        bwrap: str | None = None,
    ) -> None:
        self.params, self.image_digest = params, image_digest
        self._closed = False
        self._runner: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._expires = time.monotonic() + params.lifetime_s
        # one user id for each sandbox, so that the limit on processes counts this sandbox's alone
        self._uid = 61000 + next(_uids) % 4000 if os.geteuid() == 0 else None
        folder = sandboxes_folder()
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        self._dir = Path(tempfile.mkdtemp(dir=folder, prefix="sandbox-"))
        (self._dir / "owner").write_text(images.owner())
        self.id = self._dir.name
        self._cell = Cell(self.id, self._dir, params, self._uid, site, bwrap)
        self.workdir, self.tmp = self._cell.workdir, self._cell.tmp
        try:
            self._unpack(archive)
            for script in (ENSURE_GIT, PREPARE_GIT):
                argv = ["/bin/bash", "-c", self._cell.localise(script)]
                raw = self._launch(argv, timeout=120, limit=65536, private="rw")
                if raw.exit_code != 0:
                    break
            if raw.exit_code != 0:
                raise SandboxError(
                    f"{archive} holds no usable git repository: {raw.stderr[-500:].decode(errors='replace')}"
                )
            if bwrap is not None:
                self._start_runner()
        except BaseException:
            self.close()
            raise

    def _unpack(self, archive: Path) -> None:
        self._dir.chmod(0o711)
        for name in ("testbed", "tmp", "home", "private"):
            (self._dir / name).mkdir()
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(self._dir, filter="tar")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SandboxError(f"{archive} could not be unpacked: {error}") from error
        if self._uid is not None:
            for top in ("testbed", "tmp", "home", "private"):
                os.lchown(self._dir / top, self._uid, self._uid)
                for parent, folders, files in os.walk(self._dir / top):
                    for name in (*folders, *files):
                        os.lchown(os.path.join(parent, name), self._uid, self._uid)
        uid = self._uid if self._uid is not None else rootfs.AGENT_UID
        (self._dir / "passwd").write_text(
            f"root:x:0:0:root:/root:/bin/bash\nagent:x:{uid}:{uid}:agent:{HOME}:/bin/bash\n"
        )

    def _start_runner(self) -> None:
        """Start process 1 of the sandbox's namespaces; it ends with its stdin, so with us."""
        ours, theirs = socket.socketpair()
        options = {
            "uid": self._uid,
            "gid": self._uid,
            "places": [WORKDIR, "/tmp", HOME],
            "disk_mb": self.params.disk_mb,
            "lifetime": self.params.lifetime_s,
            "limits": self._cell.limits(),
        }
        try:
            # not --die-with-parent: the parent it means is the thread that starts it
            self._runner = subprocess.Popen(
                [*self._cell.wrap("ro"), "--as-pid-1", "--", *command_line(options)],
                cwd="/",
                env=self._cell.environment(None),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=(self._dir / "last-words").open("wb"),
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"process sandbox {self.id}: bubblewrap could not be started: {error}") from error
        finally:
            theirs.close()
        self._link = Link(ours, multiplexed=False)
        try:
            self._link.wait_ready(self.params.start_timeout_s)
        except LinkBroken as error:
            raise self._explain(error) from error

    def _explain(self, error: LinkBroken) -> SandboxError:
        assert self._runner is not None
        name = f"process sandbox {self.id}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._runner.wait(1.0)
        code = self._runner.returncode
        if code == LIFETIME_OVER:
            return SandboxDied(
                f"{name} died at the end of its lifetime of {self.params.lifetime_s:.0f} s (sandbox.lifetime_s)"
            )
        words = ""
        with contextlib.suppress(OSError):
            words = (self._dir / "last-words").read_text(errors="replace")[-500:].strip()
        return SandboxDied(f"{name} died (exit {code}; {error}) {words}".rstrip())

    def live_for(self, seconds: float) -> None:
        """Start the sandbox's lifetime anew. Raises SandboxDied."""
        self._expires = time.monotonic() + seconds
        if self._link is not None:
            try:
                self._link.live_for(seconds)
            except LinkBroken as error:
                raise self._explain(error) from error

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
        self._check_alive()
        if self._link is not None:
            try:
                return self._link.run(
                    argv, cwd=self.workdir, timeout=timeout, limit=limit, stdin=stdin, env=env, merged=merged
                )
            except LinkBroken as error:
                raise self._explain(error) from error
        argv = [self._cell.localise(part) if PRIVATE in part else part for part in argv]
        if merged:
            argv = ["/bin/bash", "-c", 'exec 2>&1; exec "$@"', "bash", *argv]
        return self._launch(argv, timeout=timeout, limit=limit, stdin=stdin, env=env, private="ro")

    def _check_alive(self) -> None:
        if self._closed or not (self._dir / "testbed").is_dir():
            raise SandboxDied(f"process sandbox {self.id} is gone")
        if time.monotonic() > self._expires:
            raise SandboxDied(
                f"process sandbox {self.id} is older than {self.params.lifetime_s:.0f} s (sandbox.lifetime_s)"
            )

    def run_script(self, script: str, *, timeout: float, limit: int) -> Raw:
        """Run a whole bash script that speaks of /testbed, with its streams merged. For grading."""
        path = f"{self.tmp}/eval.sh"
        self.write(path, self._cell.localise(script).encode())
        return self._run(["/bin/bash", path], timeout=timeout, limit=limit, merged=True)

    def _launch(
        self,
        argv: list[str],
        *,
        timeout: float,
        limit: int,
        private: str,
        stdin: bytes | None = None,
        env: dict[str, str] | None = None,
    ) -> Raw:
        started = time.monotonic()
        user: dict[str, Any] = {}
        if self._cell.bwrap is None and self._uid is not None:
            user = {"user": self._uid, "group": self._uid, "extra_groups": []}
        try:
            process = subprocess.Popen(
                self._cell.argv(argv, private),
                cwd=self.workdir if self._cell.bwrap is None else "/",
                env=self._cell.environment(env),
                stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                bufsize=0,
                **user,
            )
        except OSError as error:
            raise SandboxError(f"process sandbox {self.id}: the command could not be started: {error}") from error
        out, err = Buffer(limit), Buffer(65536)
        try:
            ended = pump(process, stdin, started + timeout, out, err)
        finally:
            kill_tree(process, f"PROTEGE_SANDBOX={self.id}", self._uid, self._cell.bwrap is not None)
        seconds = time.monotonic() - started
        if not ended:
            return Raw(124, out.value(), err.value(), True, out.dropped, seconds)
        code = process.returncode
        if code < 0 and self._cell.bwrap is not None:
            raise SandboxDied(f"process sandbox {self.id}: bubblewrap was killed by signal {-code}")
        stderr = err.value()
        if self._cell.bwrap is not None and code == 1 and stderr.startswith(b"bwrap: "):
            raise SandboxError(f"process sandbox {self.id}: {stderr[-500:].decode(errors='replace')}")
        return Raw(code if code >= 0 else 128 - code, out.value(), stderr, False, out.dropped, seconds)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._link is not None:
            self._link.close()
        if self._runner is not None:
            try:
                self._runner.wait(5.0)  # it ends with its stdin
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self._runner.pid, signal.SIGKILL)
                self._runner.wait()
        try:
            remove_tree(self._dir)
        except OSError as error:
            _log.warning("process sandbox %s could not be removed (the next start will): %s", self.id, error)
