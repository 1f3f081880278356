"""What every measurement needs: a throw-away instance image, the machine's state, statistics, and a sure clean-up."""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protege.config import SandboxParams
from protege.sandbox import images
from tests.sandbox.tiny import Tiny, build_image, make_tiny

PARAMS = SandboxParams(
    **{
        "memory_mb": 512,
        "pids": 128,
        "command_timeout_s": 60,
        "lifetime_s": 3600,
        # a measurement must not prune anybody's images
        **({"images_gb": 0} if "images_gb" in SandboxParams.model_fields else {}),
    }
)


@dataclass
class Lab:
    """The instance, its image, and SWE-ReX's image above it (empty until it is asked for)."""

    tiny: Tiny
    folder: Path
    client: Any
    label: str
    rex_image: str = ""
    stopped: threading.Event = field(default_factory=threading.Event)
    _bridge: bool | None = None
    _images: list[str] = field(default_factory=list)

    @property
    def image(self) -> str:
        return self.tiny.instance.image

    @property
    def labels(self) -> list[str]:
        """Arguments of a ``docker run`` that let :func:`open_lab` find the container again."""
        return ["--label", self.label]

    def containers(self) -> list[str]:
        """Ids of all containers, whoever started them, that were made from our images."""
        found: set[str] = set()
        for tag in self._images:
            found |= {item["Id"] for item in self.client.api.containers(all=True, filters={"ancestor": tag})}
        return sorted(found)

    def settle(self, timeout: float = 120.0) -> None:
        """Wait until no container of the last round is left: some peers remove theirs in the background."""
        deadline = time.monotonic() + timeout
        while self.containers() and time.monotonic() < deadline:
            time.sleep(0.2)

    @property
    def bridge(self) -> bool:
        """Whether the engine can give a container its default network; a daemon without one is not rare in CI."""
        if self._bridge is None:
            command = ["docker", "run", "--rm", *self.labels, self.image, "true"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120)
            self._bridge = done.returncode == 0
            if not self._bridge:
                say(f"the engine has no working bridge network: {done.stderr.strip().splitlines()[0][-160:]}")
        return self._bridge

    def with_swerex(self) -> str:
        """An image with SWE-ReX's server on the PATH, as its DockerDeployment expects to find it; made once."""
        if not self.rex_image:
            self.rex_image = f"{self.image}-swerex"
            self._images.append(self.rex_image)
            images.build_layer(self.client, self.rex_image, self.image, _swerex_tar())
        return self.rex_image

    def clean(self) -> None:
        self.stopped.set()
        for _ in range(20):  # what a worker was starting when it was interrupted comes up a little later
            found = self.containers()
            for container in found:
                with contextlib.suppress(Exception):
                    self.client.api.remove_container(container, force=True, v=True)
            if not found:
                break
            time.sleep(0.5)
        for tag in reversed(self._images):
            if images.has_image(self.client, tag):
                with contextlib.suppress(Exception):
                    self.client.images.remove(tag, force=True)
        shutil.rmtree(self.folder, ignore_errors=True)


@contextlib.contextmanager
def open_lab() -> Iterator[Lab]:
    """Build the image, and remove all that was made with it at the end, be it an error, Ctrl-C or SIGTERM."""
    client = images.docker_client()
    folder = Path(tempfile.mkdtemp(prefix="protege-bench-"))
    tiny = make_tiny(folder / "tiny")  # its tag is a digest of the folder's name
    lab = Lab(tiny, folder, client, f"protege.bench={uuid.uuid4().hex}")
    lab._images = [f"{tiny.instance.image}-site", tiny.instance.image]
    before = os.environ.get("PROTEGE_CACHE")
    os.environ["PROTEGE_CACHE"] = str(folder / "cache")

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt(f"signal {number}")

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        build_image(tiny)
        yield lab
    finally:
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        say("cleaning up")
        lab.clean()
        os.environ.pop("PROTEGE_CACHE") if before is None else os.environ.update(PROTEGE_CACHE=before)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _swerex_tar() -> bytes:
    """``/opt/swerex`` (SWE-ReX and all it requires, from the running environment) and the command that starts it."""
    raw = io.BytesIO()
    libraries: set[Path] = set()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name in sorted(_closure("swe-rex")):
            for file in importlib.metadata.files(name) or ():
                path = Path(str(file.locate()))
                if ".." not in file.parts and file.suffix != ".pyc" and path.is_file():
                    tar.add(path, f"opt/swerex/{file}", filter=_as_root)
                    libraries |= _libraries(path) if path.suffix == ".so" else set()
        for library in sorted(libraries):
            tar.add(library.resolve(), str(library).lstrip("/"), filter=_as_root)
        # the deployment's start command names no port; on the host's network it has to be one that is free
        script = (
            b"#!/usr/bin/env python3\nimport os, sys\nsys.path.insert(0, '/opt/swerex')\nfrom swerex.server import main\n"
            b"sys.argv += ['--port', os.environ.get('SWEREX_PORT', '8000')]\nmain()\n"
        )
        info = tarfile.TarInfo("usr/local/bin/swerex-remote")
        info.size, info.mode = len(script), 0o755
        tar.addfile(info, io.BytesIO(script))
    return raw.getvalue()


def _libraries(module: Path) -> set[Path]:
    """Shared libraries of this host that a compiled module needs; the image, made from this host, may lack them."""
    text = subprocess.run(["ldd", str(module)], capture_output=True, text=True).stdout
    found = {Path(path) for path in re.findall(r"=> (/\S+)", text)}
    return {path for path in found if not path.name.startswith(("libc.", "libm.", "libpython"))}


def _as_root(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def _closure(name: str) -> set[str]:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    found: set[str] = set()
    open_ = [name]
    while open_:
        current = canonicalize_name(open_.pop())
        if current in found:
            continue
        found.add(current)
        for text in importlib.metadata.requires(current) or ():
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate({"extra": ""}):
                open_.append(needed.name)
    return found


def say(text: str) -> None:
    """Progress, on stderr, so that the tables on stdout stay clean."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def short(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (
        f"{type(error).__name__}: " + (lines[0] + (f" … {lines[-1]}" if len(lines) > 1 else ""))[:300] if lines else ""
    )


def percentile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest ranks; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """``{n, p50, p99, mean}`` of durations, in the unit given."""
    return {
        "n": len(seconds),
        "p50": percentile(seconds, 0.5),
        "p99": percentile(seconds, 0.99),
        "mean": sum(seconds) / len(seconds) if seconds else float("nan"),
    }


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table; figures to the right."""
    text = [
        [
            f"{cell:.3g}"
            if isinstance(cell, float) and abs(cell) < 100
            else f"{cell:.0f}"
            if isinstance(cell, float)
            else str(cell)
            for cell in row
        ]
        for row in rows
    ]
    widths = [max(len(line[n]) for line in [list(head), *text]) for n in range(len(head))]
    lines = [[str(cell) for cell in head], *text]
    shown = [
        "| "
        + " | ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(line, widths, strict=True)))
        + " |"
        for line in lines
    ]
    rule = "|" + "|".join("-" * (w + 1) + ("-" if n == 0 else ":") for n, w in enumerate(widths)) + "|"
    return "\n".join([shown[0], rule, *shown[1:]])


def machine(client: Any) -> dict[str, Any]:
    """What a reader needs to judge the figures by."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    info = client.info()
    root = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str:
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True).stdout.strip()

    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": [round(value, 2) for value in os.getloadavg()],
        "kernel": platform.release(),
        "python": platform.python_version(),
        "docker": f"{info.get('ServerVersion')} ({info.get('Driver')}, cgroup v{info.get('CgroupVersion')})",
        "other_containers": info.get("ContainersRunning"),
        "commit": git("rev-parse", "--short", "HEAD") + (" + local changes" if git("status", "--porcelain") else ""),
        "versions": {name: _version(name) for name in ("docker", "mini-swe-agent", "swe-rex", "swebench")},
        "started": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
