"""Docker images: the base that everything stands on, and thin layers above it.

Everything made here carries the label ``protege=1``.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protege.errors import SandboxError, SandboxUnavailable
from protege.sandbox import rootfs

if TYPE_CHECKING:
    from docker import DockerClient

LABEL = "protege"
REGISTRY_BASE = "python:3.11-slim"
_DOCKERFILE = Path(__file__).resolve().parents[2] / "infra" / "docker" / "base.Dockerfile"
_log = logging.getLogger(__name__)
_lock = threading.Lock()


def docker_client(timeout: float = 120.0) -> DockerClient:
    """A client of the engine that DOCKER_HOST (or the default socket) names.

    Raises:
        SandboxUnavailable: no engine answers.
    """
    import docker
    from docker.errors import DockerException

    try:
        client = docker.from_env(timeout=int(timeout), max_pool_size=64)
        client.ping()
    except (DockerException, OSError) as error:
        raise SandboxUnavailable(
            f"no Docker engine answers ({error}); install and start one, or install bubblewrap and set sandbox.backend to bubblewrap"
        ) from error
    return client


def has_image(client: DockerClient, tag: str) -> bool:
    return image_id(client, tag) is not None


def image_id(client: DockerClient, tag: str) -> str | None:
    """The engine's id (``sha256:…``) of a local image, or None."""
    import requests.exceptions
    from docker.errors import DockerException, ImageNotFound

    try:
        return str(client.api.inspect_image(tag)["Id"])
    except ImageNotFound:
        return None
    except (DockerException, requests.exceptions.RequestException, OSError) as error:
        raise SandboxError(f"the Docker engine could not inspect {tag}: {error}") from error


def base_image(client: DockerClient, source: str | None = None) -> str:
    """Tag (``protege-base:<digest12>``) of the base image, built when missing.

    ``source`` (default: PROTEGE_BASE_IMAGE, else "auto") is one of: "host", the root of :mod:`rootfs`, in
    seconds and without a network; "auto", python:3.11-slim where it is on this machine or its registry
    answers within seconds, else "host"; or the name of a Debian-based image with Python 3.11.

    Raises:
        SandboxUnavailable: the host lacks a program that the root needs.
        SandboxError: the engine could not build it, or a named image cannot be had.
    """
    source = source or os.environ.get("PROTEGE_BASE_IMAGE") or "auto"
    with _lock:
        if source == "auto":
            return _from_image(client, REGISTRY_BASE) if _obtainable(client, REGISTRY_BASE) else _from_host(client)
        return _from_host(client) if source == "host" else _from_image(client, source)


def _obtainable(client: DockerClient, name: str) -> bool:
    if has_image(client, name):
        return True
    try:
        docker_client(timeout=5).images.get_registry_data(name)
    except Exception:  # whatever went wrong, it is not to be had
        return False
    return True


def _from_host(client: DockerClient) -> str:
    from docker.errors import APIError, BuildError

    tag = f"protege-base:{rootfs.host_root()[0][:12]}"
    if has_image(client, tag):
        return tag
    _log.info("making the base image %s from this host's Python and Debian files", tag)
    changes = [f"ENV {key}={json.dumps(value)}" for key, value in rootfs.ENVIRONMENT.items()]
    changes += ["WORKDIR /testbed", 'CMD ["/bin/bash"]', f"LABEL {LABEL}=1 protege.kind=base"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "root.tar"
        rootfs.write_tar(path)
        repository, _, name = tag.partition(":")
        try:
            reply = client.api.import_image_from_file(
                str(path), repository=repository, tag=f"{name}-root", changes=changes
            )
            # an import cannot set the stop signal, without which every stop of PID 1 costs seconds
            text = f"FROM {tag}-root\nSTOPSIGNAL SIGKILL\n"
            client.images.build(fileobj=io.BytesIO(text.encode()), tag=tag, rm=True)
            client.images.remove(f"{tag}-root")
        except (APIError, BuildError) as error:
            raise SandboxError(f"the Docker engine could not import the base image: {error}") from error
    if not has_image(client, tag):
        raise SandboxError(f"the Docker engine did not import the base image: {str(reply)[-500:]}")
    return tag


def _from_image(client: DockerClient, name: str) -> str:
    from docker.errors import APIError, BuildError, DockerException

    if not has_image(client, name):
        try:
            client.images.pull(name)
        except DockerException as error:
            raise SandboxError(f"the base image {name} is neither on this machine nor to be pulled: {error}") from error
    text = _DOCKERFILE.read_text()
    key = hashlib.sha256(f"{image_id(client, name)}\n{text}".encode()).hexdigest()[:12]
    tag = f"protege-base:{key}"
    if has_image(client, tag):
        return tag
    _log.info("making the base image %s from %s", tag, name)
    try:
        client.images.build(
            fileobj=io.BytesIO(text.encode()), tag=tag, buildargs={"BASE": name}, labels={LABEL: "1"}, rm=True
        )
    except (BuildError, APIError) as error:
        raise SandboxError(
            f"building {tag} from {name} failed: {error}; PROTEGE_BASE_IMAGE=host needs no network"
        ) from error
    return tag


def make_tar(files: dict[str, bytes], mode: int = 0o644, uid: int = rootfs.AGENT_UID) -> bytes:
    """A tar of ``{absolute or relative path: bytes}``, owned by ``uid``, with its parents left to the image."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(name.lstrip("/"))
            info.size, info.mode, info.uid, info.gid = len(data), mode, uid, uid
            tar.addfile(info, io.BytesIO(data))
    return raw.getvalue()


def build_layer(
    client: DockerClient,
    tag: str,
    parent: str,
    tar_bytes: bytes = b"",
    commands: list[str] | None = None,
    labels: dict[str, str] | None = None,
    env: dict[str, str] | None = None,
    timeout: float = 600.0,
) -> str:
    """Tag ``parent`` plus exactly one layer as ``tag``, and return the new image's id.

    ``tar_bytes`` (uncompressed or gzip; ownership and modes kept) is unpacked at ``/``, then ``commands`` run
    as root, in order, in ``/``, with ``sh -e`` and without a network; what they delete is gone from the image.
    The parent must have no entrypoint. ``env`` is added to the image's environment (``$NAME`` is expanded as in a Dockerfile).

    Raises:
        SandboxError: a command failed (the message holds the end of its output) or the engine did.
    """
    import docker.errors
    import requests.exceptions

    script = "\n".join(commands or [])
    container: Any = None
    try:
        container = client.containers.create(
            parent,
            command=["/bin/sh", "-exc", script],
            user="root",
            working_dir="/",
            network_mode="none",
            stop_signal="SIGKILL",
            labels={LABEL: "1", "protege.run": owner(), "protege.kind": "build"},
        )
        if tar_bytes and not container.put_archive("/", tar_bytes):
            raise SandboxError(f"building {tag}: the engine did not take the files")
        if script:
            container.start()
            status = container.wait(timeout=timeout)["StatusCode"]
            if status != 0:
                tail = container.logs(tail=30).decode(errors="replace")[-2000:]
                raise SandboxError(f"building {tag} from {parent}: the commands exited {status}:\n{tail}")
        changes = ['CMD ["/bin/bash"]', "WORKDIR /testbed", "USER root"]
        changes += [f"LABEL {key}={json.dumps(value)}" for key, value in {**(labels or {}), LABEL: "1"}.items()]
        changes += ['LABEL protege.run="" protege.kind=image']
        changes += [f"ENV {key}={json.dumps(value)}" for key, value in (env or {}).items()]
        repository, _, name = tag.rpartition(":") if ":" in tag.rsplit("/", 1)[-1] else (tag, ":", "latest")
        image = container.commit(repository=repository, tag=name, changes=changes, conf={"StopSignal": "SIGKILL"})
        return str(image.id)
    except (docker.errors.DockerException, requests.exceptions.RequestException) as error:
        raise SandboxError(f"building {tag} from {parent} failed: {error}") from error
    finally:
        if container is not None:
            try:
                container.remove(force=True, v=True)
            except (docker.errors.DockerException, requests.exceptions.RequestException):
                _log.warning("the build container %s is left behind; the next start reaps it", container.id[:12])


def _start_time(pid: int) -> str | None:
    """Kernel start time (clock ticks since boot) of a live process; pid and start time name it for good."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None


def _host() -> str:
    try:
        return f"{os.uname().nodename}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return os.uname().nodename


def owner() -> str:
    """Label value that names this process: ``<pid>.<start time>@<host>/<pid namespace>``."""
    return f"{os.getpid()}.{_start_time(os.getpid())}@{_host()}"


def owner_gone(label: str) -> bool:
    """Whether the process that an :func:`owner` label names has ended. False for labels of other machines."""
    process, _, host = label.partition("@")
    if host != _host():
        return False  # its process ids mean nothing here
    pid, _, start = process.partition(".")
    return not pid.isdigit() or _start_time(int(pid)) != start


def reap_orphans(client: DockerClient) -> int:
    """Remove our containers whose owner process is gone, and those of other machines that have exited.

    Returns how many were removed. Never raises: what cannot be removed now is tried again at the next start.
    """
    removed = 0
    try:
        containers = client.api.containers(all=True, filters={"label": f"{LABEL}=1"})
    except Exception as error:
        _log.warning("could not list old sandboxes: %s", error)
        return 0
    for item in containers:
        label = (item.get("Labels") or {}).get("protege.run", "")
        foreign = label.partition("@")[2] != _host()
        if (foreign and item.get("State") in {"exited", "dead"}) or owner_gone(label):
            try:
                client.api.remove_container(item["Id"], force=True, v=True)
                removed += 1
            except Exception as error:
                _log.info("could not remove the old sandbox %s: %s", item["Id"][:12], error)
    return removed


def remove_later(client: DockerClient, name: str, after: tuple[float, ...] = (1.0, 10.0, 60.0, 300.0)) -> None:
    """Remove container ``name`` in the background, again and again: a request that timed out may still be carried out."""

    def remove() -> None:
        for pause in after:
            time.sleep(pause)
            try:
                client.api.remove_container(name, force=True, v=True)
                return
            except Exception as error:  # not there yet, or the engine still hangs; the next start reaps it by label
                _log.debug("removing %s: %s", name, error)

    threading.Thread(target=remove, daemon=True, name=f"remove {name}").start()


def how_to_get(image: str) -> str:
    """The command that brings ``image``.

    A SWE-bench name without a namespace is what a local build is called; the registry has it under ``swebench/``,
    with ``_1776_`` for the double underscore that it does not allow.

    >>> how_to_get("sweb.eval.x86_64.psf__requests-1142:latest").split(" && ")[0]
    'docker pull swebench/sweb.eval.x86_64.psf_1776_requests-1142:latest'
    """
    if image.startswith("sweb.eval."):
        published = "swebench/" + image.replace("__", "_1776_")
        return f"docker pull {published} && docker tag {published} {image}"
    return f"docker pull {image}"
