"""Sandboxes without a container engine: bubblewrap where present, else plain processes.

``ProcessProvider.limits`` says in words what the mode at hand does not protect against.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from protege.core.instance import Instance
from protege.errors import ImageMissing, SandboxUnavailable
from protege.files import digest, digest_tree
from protege.sandbox import images, rootfs
from protege.sandbox.base import SandboxParams
from protege.sandbox.cell import cache_folder
from protege.sandbox.confine import bubblewrap, limits_text, reachable_by_others, remove_tree
from protege.sandbox.process_sandbox import ProcessSandbox, sandboxes_folder

__all__ = ["ProcessProvider", "ProcessSandbox", "bubblewrap", "cache_folder"]


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


def _reap(folder: Path) -> None:
    """Remove folders whose owner process is gone; its commands died with it."""
    for path in folder.glob("sandbox-*"):
        with contextlib.suppress(OSError):
            if images.owner_gone((path / "owner").read_text()):
                remove_tree(path)
