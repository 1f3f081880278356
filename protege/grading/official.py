"""The official harness, as a library: imported without its side effects, fit for threads, in containers with our limits."""

from __future__ import annotations

import functools
import logging
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protege.config import SandboxParams
from protege.files import digest
from protege.grading.evidence import Recorder
from protege.sandbox.docker import container_limits

if TYPE_CHECKING:
    from types import ModuleType

    from docker import DockerClient

MAX_LOG_BYTES = 32 * 1024 * 1024
"""What is kept of a test run's output; a run that prints more is unresolved, for its end marker is lost."""
_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID")
"""What root keeps in a grading container, where the harness applies patches and runs tests as root."""
_import_lock = threading.Lock()


@functools.cache
def harness() -> ModuleType:
    """The harness's module, imported without its side effect on logging, and made fit for threads.

    Three of its names are replaced, none of which takes part in a verdict: the log folder (relative to the
    working folder), the logger (one for each instance id, so that two gradings of it would mix), and the
    clean-up (three calls of a command-line client that need not be installed).
    """
    with _import_lock:
        root = logging.getLogger()
        level = root.level
        import swebench.harness.run_evaluation as module

        root.setLevel(level)
        for name in ("httpx", "httpcore", "datasets"):
            logging.getLogger(name).setLevel(logging.WARNING)
        original = module.setup_logger

        def setup_logger(instance_id: str, log_file: Path, mode: str = "w", add_stdout: bool = False) -> logging.Logger:
            logger: logging.Logger = original(f"{instance_id}.{digest(str(log_file))[:12]}", log_file, mode, add_stdout)
            return logger

        def cleanup_container(client: Any, container: Any, logger: Any) -> None:
            if container is not None:
                try:
                    container.reload()
                    client.died = container.status != "running"
                    client.changes = client.api.diff(container.id) or []
                    container.remove(force=True, v=True)
                except Exception as error:
                    logger.error(f"the container is left behind; the next start reaps it: {error}")

        module.RUN_EVALUATION_LOG_DIR = Path("/")
        module.setup_logger = setup_logger
        module.cleanup_container = cleanup_container
        module.print = lambda *args, **kwargs: None  # it prints each failed grading
        fit: ModuleType = module
        return fit


def limited_client(params: SandboxParams, facts: dict[str, Any], recorder: Recorder) -> DockerClient:
    """A client that adds our limits to the container it creates; ``facts`` learns what became of it."""
    import docker
    from docker.models.containers import Container, ContainerCollection, ExecResult

    class LimitedContainer(Container):  # type: ignore[misc]  # docker has no types
        def start(self, **kwargs: Any) -> None:
            super().start(**kwargs)
            # before the patch is there
            result = self.exec_run(["/bin/bash", "-c", recorder.install_script()], user="root")
            facts["sites"] = result.output.decode().split()

        def exec_run(self, cmd: Any, **kwargs: Any) -> Any:
            if kwargs.get("detach"):
                return super().exec_run(cmd, **kwargs)
            # bounded, and always UTF-8: a patch must not be able to stop the harness by what git prints of it
            api = self.client.api
            created = api.exec_create(self.id, cmd, user=kwargs.get("user", ""), workdir=kwargs.get("workdir"))["Id"]
            output = b"".join(bounded(api.exec_start(created, stream=True), facts, 8 * 1024 * 1024))
            code = api.exec_inspect(created)["ExitCode"]
            if code is None:
                raise RuntimeError(f"the engine lost the command {cmd!r}")
            return ExecResult(code, output.decode("utf-8", "replace").encode())

    class LimitedCollection(ContainerCollection):  # type: ignore[misc]
        model = LimitedContainer

        def create(self, image: str, command: Any = None, **kwargs: Any) -> Any:
            name = re.sub(r"[^a-zA-Z0-9_.-]+", "-", kwargs.pop("name", "eval"))[-100:].lstrip("-_.")
            kwargs.update(container_limits(params, "grade"))
            kwargs.update(name=f"protege-{name}", cap_drop=["ALL"], cap_add=list(_CAPABILITIES))
            return super().create(image, command, **kwargs)

    class LimitedClient(docker.DockerClient):  # type: ignore[misc]
        died = False
        changes: list[dict[str, Any]] = []  # noqa: RUF012 - as the base class has it

        @property
        def containers(self) -> Any:
            return LimitedCollection(client=self)

    client = LimitedClient.from_env(timeout=int(params.grade_timeout_s) + 120, max_pool_size=8)
    plain_start = client.api.exec_start

    def exec_start(*args: Any, **kwargs: Any) -> Any:
        reply = plain_start(*args, **kwargs)
        return bounded(reply, facts, MAX_LOG_BYTES) if kwargs.get("stream") else reply

    client.api.exec_start = exec_start
    return client


def bounded(stream: Iterable[bytes], facts: dict[str, Any], limit: int) -> Iterator[bytes]:
    """The stream's first ``limit`` bytes; the rest is read and dropped, so that the writer does not stall."""
    size = 0
    for chunk in stream:
        size += len(chunk)
        if size <= limit:
            yield chunk
        else:
            facts["overflow"] = True
