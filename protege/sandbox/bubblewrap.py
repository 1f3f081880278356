"""Sandboxes without a container engine: bubblewrap around a folder of this machine."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from protege.config import SandboxParams
from protege.core.instance import Instance
from protege.errors import ImageMissing, SandboxDied, SandboxError, SandboxUnavailable
from protege.files import digest, digest_tree
from protege.sandbox import images, rootfs
from protege.sandbox.base import WORKDIR
from protege.sandbox.link import CAPABILITIES, Link, LinkBroken, LinkedSandbox
from protege.sandbox.rootfs import HOME, cache_folder
from protege.sandbox.runner import LIFETIME_OVER
from protege.sandbox.scrub import ENSURE_GIT
from protege.sandbox.shell import PREPARE_GIT, PRIVATE, Raw

SITE = "/opt/site"
"""Where the packages of ``site`` appear inside; on PYTHONPATH."""
_FOLDERS = ("testbed", "tmp", "home", "private")
_log = logging.getLogger(__name__)
_uids = itertools.count(os.getpid() % 4000)


@functools.cache
def problem() -> str:
    """Why there is no sandbox of this kind here and what to do, in a sentence; "" where bubblewrap works."""
    engine = "or install and start a Docker engine (apt-get install docker.io)"
    if shutil.which("bwrap") is None:
        return f"bubblewrap is not installed: apt-get install bubblewrap, {engine}"
    probe = ["bwrap", "--ro-bind", "/", "/", "--unshare-pid", "--unshare-net", "--unshare-ipc", "/bin/true"]
    if subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode != 0:
        return f"bubblewrap may not make namespaces here: sysctl -w kernel.unprivileged_userns_clone=1, {engine}"
    return ""


def sandboxes_folder() -> Path:
    """Where the sandboxes of this user are; the file ``owner`` in each names the process that opened it."""
    return Path(tempfile.gettempdir()) / f"protege-{os.geteuid()}"


class BubblewrapProvider:
    """Opens sandboxes from ``testbeds/<instance_id>.tar.gz``. Safe to share between threads.

    ``site`` is a folder of Python packages (``pip install --target``) that commands can import; ``builder``
    may make a missing archive, as in :class:`protege.sandbox.docker.DockerProvider`.

    Raises:
        SandboxUnavailable: bubblewrap is not installed or may not make namespaces.
    """

    backend = "bubblewrap"
    limits = (
        "own view of files, processes and network; memory is limited for each process, not in all; "
        "disk is watched; CPU share is not limited; the kernel is shared"
    )

    def __init__(
        self,
        params: SandboxParams,
        testbeds: Path | None = None,
        site: Path | None = None,
        builder: Callable[[Instance], None] | None = None,
    ) -> None:
        if why := problem():
            raise SandboxUnavailable(why)
        self.params, self.builder = params, builder
        self.testbeds = Path(testbeds).resolve() if testbeds else None
        self.site = Path(site).resolve() if site else None
        self._digests: dict[tuple[str, int, int], str] = {}
        self._site_digest: str | None = None
        _reap(sandboxes_folder())

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
                f"bubblewrap has no archive in {self.testbeds} for {len(missing)} instance(s): {names}. It can only run "
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
            archive = hashlib.sha256(path.read_bytes()).hexdigest()
            self._digests[key] = digest(archive, rootfs.host_root()[0], self._site_digest)
        return self._digests[key]

    def open(self, instance: Instance) -> BubblewrapSandbox:
        image_digest = self.image_digest(instance)
        path = self._archive(instance)
        assert path is not None
        return BubblewrapSandbox(path, image_digest, self.params, site=self.site)


class BubblewrapSandbox(LinkedSandbox):
    """A temporary folder in which commands run. See :class:`protege.sandbox.base.Sandbox`."""

    backend = "bubblewrap"

    def __init__(self, archive: Path, image_digest: str, params: SandboxParams, *, site: Path | None = None) -> None:
        self.params, self.image_digest, self._site = params, image_digest, site
        self._runner: subprocess.Popen[bytes] | None = None
        # one user id for each sandbox, so that the limit on processes counts this sandbox's alone
        self._uid = 61000 + next(_uids) % 4000 if os.geteuid() == 0 else None
        folder = sandboxes_folder()
        folder.mkdir(exist_ok=True)
        folder.chmod(0o711)
        self._dir = Path(tempfile.mkdtemp(dir=folder, prefix="sandbox-"))
        (self._dir / "owner").write_text(images.owner(), encoding="utf-8")
        self.id = self._dir.name
        try:
            self._unpack(archive)
            self._prepare(archive)
            self._start_runner()
        except BaseException:
            self.close()
            raise

    def _unpack(self, archive: Path) -> None:
        self._dir.chmod(0o711)
        for name in _FOLDERS:
            (self._dir / name).mkdir()
        try:
            with tarfile.open(archive) as tar:
                tar.extractall(self._dir, filter="tar")
        except (tarfile.TarError, OSError, EOFError) as error:
            raise SandboxError(f"{archive} could not be unpacked: {error}") from error
        if self._uid is not None:
            for top in _FOLDERS:
                os.lchown(self._dir / top, self._uid, self._uid)
                for parent, folders, files in os.walk(self._dir / top):
                    for name in (*folders, *files):
                        os.lchown(os.path.join(parent, name), self._uid, self._uid)
        uid = self._uid if self._uid is not None else rootfs.AGENT_UID
        (self._dir / "passwd").write_text(
            f"root:x:0:0:root:/root:/bin/bash\nagent:x:{uid}:{uid}:agent:{HOME}:/bin/bash\n", encoding="utf-8"
        )

    def _wrap(self, private: str) -> list[str]:
        """bubblewrap's command line up to what it runs; ``private`` says how that folder is bound."""
        wrap = [shutil.which("bwrap") or "bwrap"]
        wrap += ["--ro-bind", str(rootfs.unpacked(cache_folder())), "/", "--proc", "/proc", "--dev", "/dev"]
        wrap += ["--bind", str(self._dir / "testbed"), WORKDIR, "--bind", str(self._dir / "tmp"), "/tmp"]
        wrap += ["--bind", str(self._dir / "home"), HOME, "--tmpfs", "/var/tmp", "--tmpfs", "/dev/shm"]
        wrap += [private, str(self._dir / "private"), PRIVATE, "--ro-bind", str(self._dir / "passwd"), "/etc/passwd"]
        wrap += ["--chdir", WORKDIR, "--hostname", "sandbox"]
        if self._site is not None:
            wrap += ["--ro-bind", str(self._site), SITE]
        wrap += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        if self._uid is None:
            return [*wrap, "--unshare-user", "--uid", str(rootfs.AGENT_UID), "--gid", str(rootfs.AGENT_UID)]
        return [*wrap, "--cap-drop", "ALL", *(part for name in CAPABILITIES for part in ("--cap-add", f"CAP_{name}"))]

    def _environment(self) -> dict[str, str]:
        """What a command finds in its environment; nothing of ours."""
        environment = {**rootfs.ENVIRONMENT, "HOME": HOME, "USER": "agent", "PROTEGE_SANDBOX": self.id}
        if self._site is not None:
            environment["PYTHONPATH"] = f"{WORKDIR}:{WORKDIR}/src:{SITE}"
        return environment

    def _prepare(self, archive: Path) -> None:
        """Scrub the repository and copy its ``.git`` to the private folder, which is read-only from then on."""
        command = [*self._wrap("--bind"), "--die-with-parent", "--"]
        if self._uid is not None:
            command += ["setpriv", f"--reuid={self._uid}", f"--regid={self._uid}", "--clear-groups", "--no-new-privs"]
            command += ["--inh-caps=-all", "--bounding-set=-all"]
        how: dict[str, Any] = {"env": self._environment(), "cwd": "/", "umask": 0o022, "timeout": 120}
        try:
            for script in (ENSURE_GIT, PREPARE_GIT):
                subprocess.run([*command, "/bin/bash", "-c", script], capture_output=True, check=True, **how)
        except subprocess.CalledProcessError as error:
            why = error.stderr[-500:].decode(errors="replace")
            raise SandboxError(f"{archive} holds no usable git repository: {why}") from error
        except (subprocess.TimeoutExpired, OSError) as error:
            raise SandboxError(f"bubblewrap sandbox {self.id} could not be prepared: {error}") from error

    def _start_runner(self) -> None:
        """Start process 1 of the sandbox's namespaces; it ends with its stdin, so with us."""
        limits = {"RLIMIT_DATA": self.params.memory_mb * 1024 * 1024}
        # from Linux 5.14 on the limit on processes counts within a user namespace
        if self._uid is not None or tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) >= (5, 14):
            limits["RLIMIT_NPROC"] = self.params.pids
        runner = self._runner_line(self._uid, [WORKDIR, "/tmp", HOME], limits)
        ours, theirs = socket.socketpair()
        try:
            with (self._dir / "last-words").open("wb") as last_words:
                # not --die-with-parent: the parent it means is the thread that starts it
                self._runner = subprocess.Popen(
                    [*self._wrap("--ro-bind"), "--as-pid-1", "--", *runner],
                    cwd="/",
                    env=self._environment(),
                    stdin=theirs.fileno(),
                    stdout=theirs.fileno(),
                    stderr=last_words,
                    start_new_session=True,
                )
        except OSError as error:
            ours.close()
            raise SandboxError(f"bubblewrap sandbox {self.id} could not be started: {error}") from error
        finally:
            theirs.close()
        self._link = Link(ours, multiplexed=False)
        try:
            self._link.wait_ready(self.params.start_timeout_s)
        except LinkBroken as error:
            raise self._explain(error) from error

    def _explain(self, error: LinkBroken) -> SandboxError:
        assert self._runner is not None
        name = f"bubblewrap sandbox {self.id}"
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._runner.wait(1.0)
        code = self._runner.returncode
        if code == LIFETIME_OVER:
            return SandboxDied(
                f"{name} died at the end of its lifetime of {self.params.lifetime_s:.0f} s (sandbox.lifetime_s)"
            )
        words = ""
        with contextlib.suppress(OSError):
            words = (self._dir / "last-words").read_text(encoding="utf-8", errors="replace")[-500:].strip()
        return SandboxDied(f"{name} died (exit {code}; {error}) {words}".rstrip())

    @contextlib.contextmanager
    def _connected(self) -> Iterator[Link]:
        # removed from outside, /testbed is empty inside, and its diff would delete every file
        if not (self._dir / "testbed").is_dir():
            raise SandboxDied(f"bubblewrap sandbox {self.id} is gone")
        with super()._connected() as link:
            yield link

    def run_script(self, script: str, *, timeout: float, limit: int) -> Raw:
        """Run a whole bash script, with its streams merged. For grading."""
        self.write("/tmp/eval.sh", script.encode())
        return self._run(["/bin/bash", "/tmp/eval.sh"], timeout=timeout, limit=limit, merged=True)

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
        _remove(self._dir)


def _reap(folder: Path) -> None:
    """Remove folders whose owner process is gone; its commands died with it."""
    for path in folder.glob("sandbox-*"):
        with contextlib.suppress(OSError):
            if images.owner_gone((path / "owner").read_text(encoding="utf-8")):
                _remove(path)


def _remove(path: Path) -> None:
    """Remove a folder whose contents may have been closed to us, or lie thousands of folders deep."""
    for command in (["rm", "-rf"], ["chmod", "-R", "u+rwX"], ["rm", "-rf"]):
        subprocess.run([*command, "--", str(path)], capture_output=True, check=False)
        if not path.exists():
            return
    _log.warning("%s could not be removed; the next start will try again", path)
