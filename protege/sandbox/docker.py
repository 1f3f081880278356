"""Sandboxes as Docker containers: no network, no capabilities, hard limits, an unprivileged user."""

from __future__ import annotations

import contextlib
import logging
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from protege.config import SandboxParams
from protege.core.instance import Instance
from protege.errors import ImageMissing, SandboxDied, SandboxError, SandboxOutOfMemory
from protege.sandbox import budget, images
from protege.sandbox.link import CAPABILITIES, NO_PYTHON, Link, LinkBroken, LinkedSandbox
from protege.sandbox.rootfs import AGENT_UID, HOME
from protege.sandbox.runner import LIFETIME_OVER
from protege.sandbox.scrub import CHECK_GIT, ENSURE_GIT, HOLDS_MORE
from protege.sandbox.shell import PREPARE_GIT, Raw

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from docker import DockerClient

_log = logging.getLogger(__name__)

HAND_OVER = f"mkdir -p {HOME}; chown -R {AGENT_UID}:{AGENT_UID} /testbed {HOME}"


def container_limits(params: SandboxParams, kind: str) -> dict[str, Any]:
    """Arguments of ``containers.create`` that every container of ours gets; ``kind`` is its label: sandbox or grade."""
    return {
        "network_mode": "none",
        "mem_limit": f"{params.memory_mb}m",
        "memswap_limit": f"{params.memory_mb}m",
        "nano_cpus": int(params.cpus * 1e9),
        "pids_limit": params.pids,
        "security_opt": ["no-new-privileges"],
        "stop_signal": "SIGKILL",
        "log_config": {"type": "none"},
        "labels": {images.LABEL: "1", "protege.run": images.owner(), "protege.kind": kind},
    }


class DockerProvider:
    """Opens containers from the instances' images. Safe to share between threads.

    ``builder`` is called by :meth:`check` for an instance whose image is missing, and may make it.
    """

    backend = "docker"
    limits = (
        "no network, no capabilities, an unprivileged user, limits on memory, processes and CPU; the kernel is shared"
    )

    def __init__(
        self,
        params: SandboxParams,
        testbeds: Path | None = None,
        builder: Callable[[Instance], None] | None = None,
        client: DockerClient | None = None,
    ) -> None:
        self.params, self.testbeds, self.builder = params, testbeds, builder
        self.client = client or images.docker_client(params.start_timeout_s)
        self._lock = threading.Lock()
        self._fit: dict[str, str] = {}  # image digest -> what to start from
        images.reap_orphans(self.client)

    def image_digest(self, instance: Instance) -> str:
        """The engine's id of the instance's image. Raises ImageMissing."""
        found = images.image_id(self.client, instance.image)
        if found is None:
            raise ImageMissing(_missing_text([instance]))
        return found

    def check(self, instances: list[Instance]) -> None:
        missing = [item for item in instances if not images.has_image(self.client, item.image)]
        if missing and self.builder is not None:
            for item in missing:
                self.builder(item)
            missing = [item for item in missing if not images.has_image(self.client, item.image)]
        if missing:
            raise ImageMissing(_missing_text(missing))
        keep = {item.image for item in instances}
        budget.claim(keep)
        for image in keep:
            budget.touch(self.client, image)
        if self.params.images_gb > 0 and instances:
            budget.prune(self.client, int(self.params.images_gb * budget.GB), keep)

    def open(self, instance: Instance) -> DockerSandbox:
        digest = self.image_digest(instance)
        budget.claim([instance.image])
        budget.touch(self.client, instance.image)
        derived = budget.agent_tag(digest)
        with self._lock:
            fit = self._fit.get(digest)
        try:
            image, look = fit or instance.image, fit is None
            sandbox = DockerSandbox(self.client, image, digest, self.params, instance.instance_id, look=look)
            with self._lock:
                self._fit.setdefault(digest, instance.image)
            return sandbox
        except _Unfit as error:
            _log.info("deriving %s from %s, once: %s", derived, instance.image, error)
        with self._lock:
            if not images.has_image(self.client, derived):
                scrub = f"/bin/bash -c {shlex.quote(ENSURE_GIT)}"
                images.build_layer(images.docker_client(600.0), derived, instance.image, commands=[scrub, HAND_OVER])
            self._fit[digest] = derived
        return DockerSandbox(self.client, derived, digest, self.params, instance.instance_id)


class NoPython(SandboxError):
    """The image has no Python 3 for the runner."""

    retryable = False


class _Unfit(SandboxError):
    """/testbed or the home folder is not the agent user's, or the repository holds more than HEAD's own history.

    A container without capabilities cannot change the first, and the second would hand out the fix.
    """

    retryable = False


def _missing_text(missing: list[Instance]) -> str:
    lines = [f"  {item.instance_id}: {images.how_to_get(item.image)}" for item in missing[:20]]
    more = f"\n  … and {len(missing) - 20} more" if len(missing) > 20 else ""
    return f"{len(missing)} instance image(s) are not on this machine; get each with:\n" + "\n".join(lines) + more


class DockerSandbox(LinkedSandbox):
    """One container. See :class:`protege.sandbox.base.Sandbox`."""

    backend = "docker"

    def __init__(
        self,
        client: DockerClient,
        image: str,
        image_digest: str,
        params: SandboxParams,
        name: str = "",
        *,
        look: bool = True,
    ) -> None:
        self.params, self.image_digest = params, image_digest
        self._api = client.api
        self._stream: Any = None
        self.id = ""
        slug = "".join(c if c.isalnum() else "-" for c in name.lower())[:40].strip("-")
        places = [self.workdir, "/tmp", "/var/tmp", HOME]
        container_name = f"protege-{slug or 'sandbox'}-{uuid.uuid4().hex[:8]}"
        with _engine_errors(f"opening a sandbox from {image}", lambda: images.remove_later(client, container_name)):
            container = client.containers.create(
                image,
                entrypoint=self._runner_line(AGENT_UID, places),
                command=[],
                name=container_name,
                hostname="sandbox",
                user="0:0",
                working_dir="/",
                stdin_open=True,
                cap_drop=["ALL"],
                cap_add=list(CAPABILITIES),
                **container_limits(params, "sandbox"),
            )
            self.id = str(container.id)
        try:
            with _engine_errors(f"starting a sandbox from {image}"):
                self._attach()
                container.start()
            self._prepare(look)
        except BaseException:
            self.close()
            raise

    def _attach(self) -> None:
        """Connect to the runner before it runs, so that nothing it says is lost."""
        # the SDK's attach_socket waits for ever where the engine does not answer; its _post has the client's timeout
        url = self._api._url("/containers/{0}/attach", self.id)
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        headers = {"Connection": "Upgrade", "Upgrade": "tcp"}
        reply = self._api._post(url, params=params, headers=headers, stream=True)
        self._stream = self._api._get_raw_response_socket(reply)
        connection: socket.socket = getattr(self._stream, "_sock", self._stream)
        connection.setblocking(False)
        early = early_bytes(self._stream)
        self._link = Link(connection, multiplexed=True, early=early)

    def _prepare(self, look: bool) -> None:
        assert self._link is not None
        try:
            self._link.wait_ready(self.params.start_timeout_s)
        except LinkBroken as error:
            state = self._state()
            if state and state.get("ExitCode") == NO_PYTHON:
                raise NoPython(f"{self.image_digest}: {error}; the sandbox's runner needs one in the image") from error
            raise self._explain(error) from error
        if look:
            owners = f'[ "$(stat -c %u /testbed {HOME} | sort -u)" = {AGENT_UID} ]'
            if self._root_script(owners).exit_code != 0:
                raise _Unfit("/testbed and the home folder are to belong to the agent's user")
            if self._root_script(CHECK_GIT).exit_code == HOLDS_MORE:
                raise _Unfit("its repository holds more than the history of HEAD")
        raw = self._root_script(PREPARE_GIT)
        if raw.exit_code != 0:
            raise SandboxError(
                f"/testbed of image {self.image_digest} is no usable git repository: {raw.stderr[-500:].decode(errors='replace')}"
            )

    def _root_script(self, script: str) -> Raw:
        with self._connected() as link:
            return link.run(["/bin/bash", "-c", script], timeout=300, limit=65536, cwd="/", root=True)

    def _state(self) -> dict[str, Any] | None:
        """The engine's word on the container; None when it has none, or the engine does not answer."""
        try:
            return dict(self._api.inspect_container(self.id)["State"])
        except Exception:
            return None

    def _explain(self, error: LinkBroken) -> SandboxDied:
        """Why the connection to process 1 broke, by the container's end state."""
        name = f"sandbox {self.id[:12]}"
        for _ in range(20):  # the connection closes a moment before the engine has noted the end
            state = self._state()
            if state is None or not state.get("Running"):
                break
            time.sleep(0.05)
        if state is None:
            return SandboxDied(f"{name} is gone, or its Docker engine does not answer ({error})")
        if state.get("OOMKilled"):
            return SandboxOutOfMemory(f"{name} was killed at its memory limit of {self.params.memory_mb} MB")
        if state.get("ExitCode") == LIFETIME_OVER:
            return SandboxDied(
                f"{name} died at the end of its lifetime of {self.params.lifetime_s:.0f} s (sandbox.lifetime_s)"
            )
        if state.get("Running"):
            return SandboxDied(f"{name} runs but cannot be reached ({error})")
        return SandboxDied(f"{name} died (exit {state.get('ExitCode')} at {state.get('FinishedAt')}; {error})")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._link is not None:
            self._link.close()
        if self._stream is not None:
            with contextlib.suppress(Exception):
                self._stream.close()
        if not self.id:
            return
        try:
            self._api.remove_container(self.id, force=True, v=True)
        except Exception as error:
            if "No such container" not in str(error):
                _log.warning("sandbox %s could not be removed (the next start will): %s", self.id[:12], error)


def early_bytes(stream: Any) -> bytes:
    """What the HTTP client read beyond the response's headers, once ``stream``'s socket does not block.

    The SDK hands out the bare socket, but its header reader is buffered: output that came in one piece with the
    headers lies in that buffer and would be lost.
    """
    response = getattr(stream, "_response", None)
    reader = getattr(getattr(getattr(response, "raw", None), "_fp", None), "fp", None)
    if reader is None or not hasattr(reader, "peek"):
        return b""
    waiting = reader.peek()
    return reader.read(len(waiting)) if waiting else b""


@contextlib.contextmanager
def _engine_errors(doing: str, undo: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn whatever the engine or the transport throws into a SandboxError that says what was tried."""
    import docker.errors
    import requests.exceptions

    try:
        yield
    except docker.errors.ImageNotFound as error:
        raise ImageMissing(f"{doing}: {error}") from error
    except (docker.errors.DockerException, requests.exceptions.RequestException, OSError) as error:
        undo()
        raise SandboxError(f"{doing}: the Docker engine failed: {error}") from error
