"""How a command of a process sandbox is started: bubblewrap's command line, the limits, the environment."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from protege.sandbox import rootfs
from protege.sandbox.base import WORKDIR, SandboxParams
from protege.sandbox.confine import kernel
from protege.sandbox.link import CAPABILITIES
from protege.sandbox.rootfs import HOME
from protege.sandbox.shell import PRIVATE

SITE = "/opt/site"
"""Where the packages of ``site`` appear inside; on PYTHONPATH."""


def cache_folder() -> Path:
    """PROTEGE_CACHE, else ``.cache/protege`` in the working folder."""
    return Path(os.environ.get("PROTEGE_CACHE", ".cache/protege")).resolve()


@dataclass(frozen=True)
class Cell:
    """One sandbox's place on this machine: its ``folder`` holds testbed, tmp, home and private.

    ``uid`` is the user that commands run as, None where we are no root and have only ourselves; ``bwrap`` is None
    for plain processes, which see this machine's own paths.
    """

    name: str
    folder: Path
    params: SandboxParams
    uid: int | None
    site: Path | None
    bwrap: str | None

    @property
    def workdir(self) -> str:
        return WORKDIR if self.bwrap else str(self.folder / "testbed")

    @property
    def tmp(self) -> str:
        return "/tmp" if self.bwrap else str(self.folder / "tmp")

    def localise(self, script: str) -> str:
        """``script`` with the sandbox's own paths where commands see this machine's."""
        if self.bwrap is not None:
            return script
        return script.replace(PRIVATE, str(self.folder / "private")).replace(WORKDIR, self.workdir)

    def limits(self) -> dict[str, int]:
        """What every process inside is held to, as for ``setrlimit``."""
        limits = {
            "RLIMIT_CORE": 0,
            "RLIMIT_DATA": self.params.memory_mb * 1024 * 1024,
            "RLIMIT_FSIZE": self.params.disk_mb * 1024 * 1024,
        }
        if self.uid is not None or kernel() >= (5, 14):
            limits["RLIMIT_NPROC"] = self.params.pids
        return limits

    def wrap(self, private: str) -> list[str]:
        """bubblewrap's command line up to what it runs; ``private`` is "ro", or "rw" while the sandbox is prepared."""
        assert self.bwrap is not None
        wrap = [self.bwrap, "--ro-bind", str(rootfs.unpacked(cache_folder())), "/", "--proc", "/proc", "--dev", "/dev"]
        wrap += ["--bind", str(self.folder / "testbed"), WORKDIR, "--bind", str(self.folder / "tmp"), "/tmp"]
        wrap += ["--bind", str(self.folder / "home"), HOME, "--tmpfs", "/var/tmp", "--tmpfs", "/dev/shm"]
        wrap += ["--ro-bind" if private == "ro" else "--bind", str(self.folder / "private"), PRIVATE]
        wrap += ["--ro-bind", str(self.folder / "passwd"), "/etc/passwd", "--chdir", WORKDIR, "--hostname", "sandbox"]
        if self.site is not None:
            wrap += ["--ro-bind", str(self.site), SITE]
        wrap += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        if self.uid is None:
            return [*wrap, "--unshare-user", "--uid", str(rootfs.AGENT_UID), "--gid", str(rootfs.AGENT_UID)]
        wrap += ["--cap-drop", "ALL"]
        for name in CAPABILITIES:
            wrap += ["--cap-add", f"CAP_{name}"]
        return wrap

    def argv(self, argv: list[str], private: str) -> list[str]:
        """``argv`` within all that confines it."""
        limits = self.limits()
        script = f"umask 022; ulimit -c 0; ulimit -d {limits['RLIMIT_DATA'] // 1024}; ulimit -f {limits['RLIMIT_FSIZE'] // 1024}; "
        if "RLIMIT_NPROC" in limits:
            script += f"ulimit -u {limits['RLIMIT_NPROC']}; "
        limited = ["/bin/bash", "-c", script + 'exec "$@"', "bash", *argv]
        if self.bwrap is None:
            return limited
        if self.uid is None:
            return [*self.wrap(private), "--", *limited]
        drop = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", "--clear-groups", "--no-new-privs"]
        drop += ["--inh-caps=-all", "--bounding-set=-all"]
        return [*self.wrap(private), "--die-with-parent", "--", *drop, *limited]

    def environment(self, env: dict[str, str] | None) -> dict[str, str]:
        """What a command finds in its environment; nothing of ours."""
        base = dict(rootfs.ENVIRONMENT)
        base.update({"HOME": HOME, "USER": "agent", "PROTEGE_SANDBOX": self.name})
        if self.site is not None:
            site = SITE if self.bwrap else str(self.site)
            base["PYTHONPATH"] = f"{self.workdir}:{self.workdir}/src:{site}"
        if self.bwrap is None:
            base["HOME"], base["TMPDIR"] = str(self.folder / "home"), str(self.folder / "tmp")
            base["PATH"] = f"{Path(sys.base_prefix) / 'bin'}:{base['PATH']}"
        base.update(env or {})
        return base
