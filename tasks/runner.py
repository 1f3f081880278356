"""Which Prefect task runner a stage uses, and what makes its attempts fit for other processes.

Sandboxes, connections and the model server's handle cannot be sent to another process; what they were made from can.
Each worker process makes its own once. The model server stays with the stage's process, which sees to it for all.
"""

from __future__ import annotations

import contextlib
import copyreg
import functools
import logging
import math
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from prefect.context import FlowRunContext
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from protege.config import RunnerParams, SandboxParams
from protege.core.trajectory import Identity
from protege.errors import BadParams, ModelServerError, ProtegeError
from protege.policy.base import Policy
from protege.policy.served import ServedPolicy
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.docker import DockerProvider

LOOK_AGAIN_S = 5.0
PATIENCE_S = 600.0
T = TypeVar("T")
_log = logging.getLogger(__name__)


class Opaque(Generic[T]):
    """A parameter that neither Prefect nor Dask looks into for futures; they copy or unpack whatever else they are given.

    Prefect's ``quote`` does not do: Dask takes its named tuple apart.
    """

    def __init__(self, value: T) -> None:
        self.value = value


def task_runner(params: RunnerParams, workers: int) -> TaskRunner[Any]:
    """The runner that ``params`` ask for, with room for ``workers`` attempts at once.

    Raises:
        BadParams: kind is dask and prefect-dask is not installed.
    """
    if params.kind == "threads":
        return ThreadPoolTaskRunner(max_workers=workers)
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError as error:
        raise BadParams("runner.kind is dask, which needs: pip install prefect-dask==0.3.7") from error
    make_portable()
    if params.address is not None:
        return DaskTaskRunner(address=params.address)
    processes = max(1, min(workers, params.processes or os.cpu_count() or 1))
    cluster = {
        "n_workers": processes,
        "threads_per_worker": math.ceil(workers / processes),
        "dashboard_address": None,
        "memory_limit": 0,  # sandboxes have limits of their own; Dask would pause or kill whole workers
    }
    return DaskTaskRunner(cluster_kwargs=cluster)


def in_worker_processes() -> bool:
    """Whether the flow that runs now sends its tasks to other processes."""
    context = FlowRunContext.get()
    return context is not None and not isinstance(context.task_runner, ThreadPoolTaskRunner)


@contextlib.contextmanager
def keeping_ready(prepares: Sequence[Callable[[], None]], folder: Path) -> Iterator[Path]:
    """Call what sees to the model server now and every few seconds: a worker process cannot revive it.

    Yields a file in ``folder`` that is there only while the right weights are served: it is taken away before each
    look, so a server that was started again and has not got its weights yet is not mistaken for a ready one.

    Raises:
        BadParams: there is more than one to call, so the attempts want different models at once.
    """
    distinct = list({id(prepare): prepare for prepare in prepares}.values())
    if len(distinct) > 1:
        raise BadParams("runner.kind dask runs attempts of one model at a time; use threads for this stage")
    token = folder.absolute() / f"ready-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    token.parent.mkdir(parents=True, exist_ok=True)
    over, begun = threading.Event(), threading.Event()
    defects: list[BaseException] = []

    def look() -> None:
        try:
            while not over.is_set():
                token.unlink(missing_ok=True)
                with _told():
                    for prepare in distinct:
                        prepare()
                    token.touch()
                begun.set()
                over.wait(LOOK_AGAIN_S)
        except BaseException as error:
            defects.append(error)
            begun.set()

    thread = threading.Thread(target=look, name="model server", daemon=True)
    thread.start()
    begun.wait()
    try:
        if defects:
            raise defects[0]
        yield token
    finally:
        over.set()
        thread.join()
        token.unlink(missing_ok=True)


@contextlib.contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except ProtegeError as error:  # the attempts will say so, each with its retries
        _log.warning("the model server could not be made ready: %s", error)


@dataclass(frozen=True)
class Answering:
    """Called before a rollout in a worker process: wait until ``url`` answers and ``token`` vouches for its weights."""

    url: str
    token: Path

    def __call__(self) -> None:
        import httpx

        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.HTTPError):
                # in this order: the token is taken away before a server is started again
                if httpx.get(f"{self.url}/health", timeout=10.0).status_code == 200 and self.token.exists():
                    return
            time.sleep(0.5)
        raise ModelServerError(f"the model server at {self.url} did not become ready in {PATIENCE_S:.0f} s")


def waits_for(policy: Policy, token: Path) -> Callable[[], None]:
    """What a worker process calls before a rollout of ``policy``."""
    if isinstance(policy, ServedPolicy):
        return Answering(str(policy._client.base_url).rstrip("/"), token)
    return _nothing


def _nothing() -> None:
    """No server to wait for."""


def make_portable() -> None:
    """Teach pickle what sandbox providers and served policies are made from. Idempotent."""
    copyreg.pickle(DockerProvider, _reduce_docker)
    copyreg.pickle(BubblewrapProvider, _reduce_bubblewrap)
    copyreg.pickle(ServedPolicy, _reduce_served)


def _reduce_docker(provider: DockerProvider) -> tuple[Any, ...]:
    return _docker, (provider.params.model_dump_json(), provider.testbeds and str(provider.testbeds.absolute()))


def _reduce_bubblewrap(provider: BubblewrapProvider) -> tuple[Any, ...]:
    places = [str(place) if place else None for place in (provider.testbeds, provider.site)]
    return _bubblewrap, (provider.params.model_dump_json(), *places)


def _reduce_served(policy: ServedPolicy) -> tuple[Any, ...]:
    options = {
        "temperature": policy.temperature,
        "top_p": policy.top_p,
        "max_new_tokens": policy.max_new_tokens,
        "context_tokens": policy.context_tokens,
        "min_new_tokens": policy.min_new_tokens,
        "timeout_s": policy._client.timeout.read,
        "model_name": policy.model_name,
    }
    folder = str(Path(policy.format.name).absolute())
    return _served, (str(policy._client.base_url), folder, policy.identity.model_dump_json(), tuple(options.items()))


@functools.cache
def _docker(params: str, testbeds: str | None) -> DockerProvider:
    return DockerProvider(SandboxParams.model_validate_json(params), Path(testbeds) if testbeds else None)


@functools.cache
def _bubblewrap(params: str, testbeds: str | None, site: str | None) -> BubblewrapProvider:
    return BubblewrapProvider(
        SandboxParams.model_validate_json(params),
        Path(testbeds) if testbeds else None,
        Path(site) if site else None,
    )


@functools.cache
def _served(url: str, folder: str, identity: str, options: tuple[tuple[str, Any], ...]) -> ServedPolicy:
    return ServedPolicy(url, folder, Identity.model_validate_json(identity), **dict(options))
