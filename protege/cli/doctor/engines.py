"""What commands of an agent run in: the Docker engine, else bubblewrap."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from protege.cli.doctor.finding import DISK_GIB, GIB, Finding, Place, Status

ANSWER_S = 3


def docker(place: Place) -> Iterator[Finding]:
    """Does an engine answer, which one, and does it run a container?"""
    from protege.errors import SandboxError, SandboxUnavailable
    from protege.sandbox.images import docker_client

    backend = place.backend
    try:
        client = docker_client(ANSWER_S)
    except SandboxUnavailable as error:
        from protege.sandbox.bubblewrap import problem

        host = place.env.get("DOCKER_HOST")
        fix = "unset DOCKER_HOST" if host else "make engine" if backend != "bubblewrap" else ""
        why = f"no engine answers at {host}" if host else str(error.__cause__ or error).splitlines()[0]
        statuses: dict[str, Status] = {"docker": "fail", "auto": "fail" if problem() else "warn", "bubblewrap": "ok"}
        yield Finding("Docker", statuses[backend], f"{why} (sandbox.backend is {backend})", fix)
        return
    try:
        info = client.info()
        yield Finding("Docker", "ok", describe(info))
        yield from _storage(info)
        yield from _runs(client)
    except (SandboxError, OSError) as error:
        yield Finding("Docker", "fail", f"the engine answers, but: {error}", "docker info")
    finally:
        client.close()


def describe(info: dict[str, Any]) -> str:
    driver, version = info.get("Driver", "?"), info.get("CgroupVersion", "1")
    text = f"{info.get('ServerVersion', '?')}, storage {driver}, cgroup v{version}, {info.get('NCPU', '?')} cores"
    lacking = [name for key, name in (("MemoryLimit", "memory"), ("PidsLimit", "processes"), ("CpuCfsQuota", "CPU"))
               if info.get(key) is False]  # fmt: skip
    return text + (f"; it cannot limit {', '.join(lacking)}" if lacking else "")


def _storage(info: dict[str, Any]) -> Iterator[Finding]:
    if info.get("Driver") == "vfs":
        slow = "vfs copies every layer: slow, and images take many times their size"
        yield Finding("Docker storage", "warn", slow, "docker info --format '{{.Driver}}'")
    folder = Path(str(info.get("DockerRootDir") or "/var/lib/docker"))
    if folder.is_dir() and os.access(folder, os.X_OK):
        free = shutil.disk_usage(folder).free / GIB
        if free < DISK_GIB[1]:
            status: Status = "fail" if free < DISK_GIB[0] else "warn"
            yield Finding("Docker storage", status, f"{free:.1f} GiB free in {folder}", "docker image prune")


def _runs(client: Any) -> Iterator[Finding]:
    """A container from an image that is here already, with the limits that ours get."""
    from docker.errors import DockerException
    from requests.exceptions import RequestException

    from protege.sandbox import images

    name = "Docker container"
    there = client.images.list(filters={"label": images.LABEL}) or client.images.list(filters={"dangling": False})
    if not there:
        yield Finding(name, "ok", "not tried: there is no image yet; the stage `instances` makes them")
        return
    labels = {images.LABEL: "1", "protege.run": images.owner(), "protege.kind": "doctor"}
    try:
        container = client.containers.create(
            there[0].id, entrypoint=["/bin/sh", "-c", "true"], network_mode="none", mem_limit="64m", labels=labels
        )
        try:
            container.start()
            status = container.wait(timeout=ANSWER_S)["StatusCode"]
        finally:
            container.remove(force=True)
    except (DockerException, RequestException, OSError) as error:
        yield Finding(name, "fail", f"the engine cannot run one: {str(error).splitlines()[0]}", "docker info")
        return
    if status:
        yield Finding(name, "fail", f"`true` in {there[0].short_id} ended with status {status}", "docker info")
    else:
        yield Finding(name, "ok", "one was made, run and removed")


def bubblewrap(place: Place) -> Iterator[Finding]:
    """Bubblewrap and user namespaces: what is used without Docker."""
    from protege.sandbox.bubblewrap import problem

    if not (why := problem()):
        yield Finding("bubblewrap", "ok", "works here")
        return
    found, _, fix = why.partition(": ")
    yield Finding("bubblewrap", "fail" if place.backend == "bubblewrap" else "warn", found, fix.partition(", or ")[0])
