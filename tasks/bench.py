"""The sandboxes that a stage works in, checked before any work starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from protege.config import AgentParams, Params, SandboxParams
from protege.core.instance import Instance
from protege.desk.desk_images import make_builder
from protege.desk.sources import ensure_site
from protege.errors import SandboxUnavailable
from protege.sandbox.bubblewrap import BubblewrapProvider, problem
from protege.sandbox.docker import DockerProvider
from protege.sandbox.images import docker_client
from protege.sandbox.open import open_provider
from tasks.settings import HOME
from tasks.units import Bench

TESTBEDS = Path("data/instances/testbeds")


def open_sandboxes(params: SandboxParams, testbeds: Path | None) -> DockerProvider | BubblewrapProvider:
    """Sandboxes that start from ``testbeds``; a desk instance's missing image is built from its testbed."""
    builder: Callable[[Instance], None] | None = None
    site: Path | None = None
    if params.backend != "bubblewrap" and testbeds is not None:
        try:
            builder = make_builder(docker_client(), testbeds, cache=HOME)
        except SandboxUnavailable:
            pass  # open_provider says so, or falls back
    if builder is None and testbeds is not None and not problem():  # open_provider says what is missing
        site = ensure_site(cache=HOME)
    return open_provider(params, testbeds=testbeds, site=site, builder=builder)


def open_bench(params: Params, instances: Sequence[Instance], retries: int, agent: AgentParams | None = None) -> Bench:
    """A bench for ``instances``. Raises ImageMissing, naming every image that is not on hand."""
    provider = open_sandboxes(params.sandbox, TESTBEDS)
    provider.check(list(instances))
    return Bench(provider=provider, agent=agent or params.agent, sandbox=params.sandbox, retries=retries)
