"""Sandboxes without a container engine: bubblewrap where present, else plain processes.

``ProcessProvider.limits`` says in words what the mode at hand does not protect against.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from protege.errors import ImageMissing, SandboxDied, SandboxError, SandboxUnavailable
from protege.files import digest, digest_tree
from protege.instance import Instance
from protege.sandbox import images, rootfs
from protege.sandbox.base import WORKDIR, SandboxParams
from protege.sandbox.confine import bubblewrap, kernel, kill_tree, limits_text, pump, reachable_by_others, remove_tree
from protege.sandbox.link import Link, LinkBroken, command_line
from protege.sandbox.runner import LIFETIME_OVER
from protege.sandbox.scrub import ENSURE_GIT
from protege.sandbox.shell import PREPARE_GIT, PRIVATE, Buffer, Raw, ShellSandbox

SITE = "/opt/site"
"""Where the packages of ``site`` appear inside; on PYTHONPATH."""

_HOME = "/home/agent"
_log = logging.getLogger(__name__)
_uids = itertools.count(os.getpid() % 4000)


def cache_folder() -> Path:
    """PROTEGE_CACHE, else ``.cache/protege`` in the working folder."""
    return Path(os.environ.get("PROTEGE_CACHE", ".cache/protege")).resolve()


class ProcessProvider:
    """Opens sandboxes from ``testbeds/<instance_id>.tar.gz``. Safe to share between threads.

    ``site`` is a folder of Python packages (``pip install --target``) that commands can import; ``builder``
    may make a missing archive, as in :class:`protege.sandbox.docker.DockerProvider`.

    Raises:
        SandboxUnavailable: without bubblewrap, when started by root and nobody else can reach the interpreter.
    """

    backend = "process"

    def __init__(
        self,
        params: SandboxParams,
        testbeds: Path | None = None,
        site: Path | None = None,
        builder: Callable[[Instance], None] | None = None,
        *,
        isolate: bool = True,
    ) -> None:
        self.params, self.builder = params, builder
        self.testbeds = Path(testbeds).resolve() if testbeds else None
        self.site = Path(site).resolve() if site else None
        self.bwrap = bubblewrap() if isolate else None
        self.limits = limits_text(self.bwrap is not None)
        if self.bwrap is None and os.geteuid() == 0 and not reachable_by_others(Path(sys.base_prefix) / "bin"):
            raise SandboxUnavailable(
                f"no bubblewrap here, and the interpreter in {sys.base_prefix} is closed to unprivileged users: apt-get install bubblewrap"
            )
        self._digests: dict[tuple[str, int, int], str] = {}
        self._site_digest: str | None = None
        _reap(_folder())

    def _archive(self, instance: Instance) -> Path | None:
        return self.testbeds / f"{instance.instance_id}.tar.gz" if self.testbeds else None

    def _missing(self, instances: list[Instance]) -> list[Instance]:
        return [item for item in instances if not ((path := self._archive(item)) and path.is_file())]

    def check(self, instances: list[Instance]) -> None:
        missing = self._missing(instances)
        if missing and self.builder is not None:
            for item in missing:
                self.builder(item)
            missing = self._missing(missing)
        if missing:
            names = ", ".join(item.instance_id for item in missing[:20])
            raise ImageMissing(
                f"the process sandbox has no archive in {self.testbeds} for {len(missing)} instance(s): {names}. It can only run "
                f"instances of the desk suite; for others start a Docker engine and run: {images.how_to_get(missing[0].image)}"
            )

    def image_digest(self, instance: Instance) -> str:
        """SHA-256 over the archive, the root and the site packages. Raises ImageMissing."""
        self.check([instance])
        path = self._archive(instance)
        assert path is not None
        info = path.stat()
        key = (str(path), info.st_mtime_ns, info.st_size)
        if key not in self._digests:
            if self._site_digest is None:
                self._site_digest = digest_tree(self.site, ("**/*.py", "**/*.so")) if self.site else ""
            root = rootfs.host_root()[0] if self.bwrap else sys.version
            self._digests[key] = digest(hashlib.sha256(path.read_bytes()).hexdigest(), root, self._site_digest)
        return self._digests[key]

    def open(self, instance: Instance) -> ProcessSandbox:
        image_digest = self.image_digest(instance)
        path = self._archive(instance)
        assert path is not None
        return ProcessSandbox(path, image_digest, self.params, site=self.site, bwrap=self.bwrap)


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"protege-{os.geteuid()}"


def _reap(folder: Path) -> None:
    """Remove folders whose owner process is gone; its commands died with it."""
    for path in folder.glob("sandbox-*"):
        with contextlib.suppress(OSError):
            if images.owner_gone((path / "owner").read_text()):
                remove_tree(path)


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
        self.params, self.image_digest, self._site, self._bwrap = params, image_digest, site, bwrap
        self._closed = False
        self._runner: subprocess.Popen[bytes] | None = None
        self._link: Link | None = None
        self._expires = time.monotonic() + params.lifetime_s
        # one user id for each sandbox, so that the limit on processes counts this sandbox's alone
        self._uid = 61000 + next(_uids) % 4000 if os.geteuid() == 0 else None
        folder = _folder()
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        self._dir = Path(tempfile.mkdtemp(dir=folder, prefix="sandbox-"))
        (self._dir / "owner").write_text(images.owner())
        self.id = self._dir.name
        try:
            self._unpack(archive)
            for script in (ENSURE_GIT, PREPARE_GIT):
                argv = ["/bin/bash", "-c", self._localise(script)]
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
            f"root:x:0:0:root:/root:/bin/bash\nagent:x:{uid}:{uid}:agent:{_HOME}:/bin/bash\n"
        )
        self.tmp = "/tmp"
        if self._bwrap is None:
            self.workdir, self.tmp = str(self._dir / "testbed"), str(self._dir / "tmp")

    def _localise(self, script: str) -> str:
        if self._bwrap is not None:
            return script
        return script.replace(PRIVATE, str(self._dir / "private")).replace(WORKDIR, self.workdir)

    def _start_runner(self) -> None:
        """Start process 1 of the sandbox's namespaces; it ends with its stdin, so with us."""
        ours, theirs = socket.socketpair()
        options = {
            "uid": self._uid,
            "gid": self._uid,
            "places": [WORKDIR, "/tmp", _HOME],
            "disk_mb": self.params.disk_mb,
            "lifetime": self.params.lifetime_s,
            "limits": self._limits(),
        }
        try:
            # not --die-with-parent: the parent it means is the thread that starts it
            self._runner = subprocess.Popen(
                [*self._wrap("ro"), "--as-pid-1", "--", *command_line(options)],
                cwd="/",
                env=self._environment(None),
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
        argv = [self._localise(part) if PRIVATE in part else part for part in argv]
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
        self.write(path, self._localise(script).encode())
        return self._run(["/bin/bash", path], timeout=timeout, limit=limit, merged=True)

    def _limits(self) -> dict[str, int]:
        """What every process inside is held to, as for ``setrlimit``."""
        limits = {
            "RLIMIT_CORE": 0,
            "RLIMIT_DATA": self.params.memory_mb * 1024 * 1024,
            "RLIMIT_FSIZE": self.params.disk_mb * 1024 * 1024,
        }
        if self._uid is not None or kernel() >= (5, 14):
            limits["RLIMIT_NPROC"] = self.params.pids
        return limits

    def _wrap(self, private: str) -> list[str]:
        """bubblewrap's command line up to what it runs; ``private`` is "ro", or "rw" while the sandbox is prepared."""
        assert self._bwrap is not None
        wrap = [self._bwrap, "--ro-bind", str(rootfs.unpacked(cache_folder())), "/", "--proc", "/proc", "--dev", "/dev"]
        wrap += ["--bind", str(self._dir / "testbed"), WORKDIR, "--bind", str(self._dir / "tmp"), "/tmp"]
        wrap += ["--bind", str(self._dir / "home"), _HOME, "--tmpfs", "/var/tmp", "--tmpfs", "/dev/shm"]
        wrap += ["--ro-bind" if private == "ro" else "--bind", str(self._dir / "private"), PRIVATE]
        wrap += ["--ro-bind", str(self._dir / "passwd"), "/etc/passwd", "--chdir", WORKDIR, "--hostname", "sandbox"]
        if self._site is not None:
            wrap += ["--ro-bind", str(self._site), SITE]
        wrap += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        if self._uid is None:
            return [*wrap, "--unshare-user", "--uid", str(rootfs.AGENT_UID), "--gid", str(rootfs.AGENT_UID)]
        wrap += ["--cap-drop", "ALL"]
        for name in ("SETUID", "SETGID", "SETPCAP", "KILL", "DAC_READ_SEARCH"):
            wrap += ["--cap-add", f"CAP_{name}"]
        return wrap

    def _argv(self, argv: list[str], private: str) -> list[str]:
        limits = self._limits()
        script = f"umask 022; ulimit -c 0; ulimit -d {limits['RLIMIT_DATA'] // 1024}; ulimit -f {limits['RLIMIT_FSIZE'] // 1024}; "
        if "RLIMIT_NPROC" in limits:
            script += f"ulimit -u {limits['RLIMIT_NPROC']}; "
        limited = ["/bin/bash", "-c", script + 'exec "$@"', "bash", *argv]
        if self._bwrap is None:
            return limited
        if self._uid is None:
            return [*self._wrap(private), "--", *limited]
        drop = ["setpriv", f"--reuid={self._uid}", f"--regid={self._uid}", "--clear-groups", "--no-new-privs"]
        drop += ["--inh-caps=-all", "--bounding-set=-all"]
        return [*self._wrap(private), "--die-with-parent", "--", *drop, *limited]

    def _environment(self, env: dict[str, str] | None) -> dict[str, str]:
        base = dict(rootfs.ENVIRONMENT)
        base.update({"HOME": _HOME, "USER": "agent", "PROTEGE_SANDBOX": self.id})
        if self._site is not None:
            site = SITE if self._bwrap else str(self._site)
            base["PYTHONPATH"] = f"{self.workdir}:{self.workdir}/src:{site}"
        if self._bwrap is None:
            base["HOME"], base["TMPDIR"] = str(self._dir / "home"), str(self._dir / "tmp")
            base["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{base['PATH']}"
        base.update(env or {})
        return base

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
        if self._bwrap is None and self._uid is not None:
            user = {"user": self._uid, "group": self._uid, "extra_groups": []}
        try:
            process = subprocess.Popen(
                self._argv(argv, private),
                cwd=self.workdir if self._bwrap is None else "/",
                env=self._environment(env),
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
            kill_tree(process, f"PROTEGE_SANDBOX={self.id}", self._uid, self._bwrap is not None)
        seconds = time.monotonic() - started
        if not ended:
            return Raw(124, out.value(), err.value(), True, out.dropped, seconds)
        code = process.returncode
        if code < 0 and self._bwrap is not None:
            raise SandboxDied(f"process sandbox {self.id}: bubblewrap was killed by signal {-code}")
        stderr = err.value()
        if self._bwrap is not None and code == 1 and stderr.startswith(b"bwrap: "):
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
