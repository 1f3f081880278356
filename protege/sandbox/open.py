"""The one entry point: a provider for the backend that the params name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from protege.config import SandboxParams
from protege.core.instance import Instance
from protege.errors import SandboxUnavailable
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.docker import DockerProvider

_log = logging.getLogger(__name__)


def open_provider(
    params: SandboxParams,
    testbeds: Path | None = None,
    site: Path | None = None,
    builder: Callable[[Instance], None] | None = None,
) -> DockerProvider | BubblewrapProvider:
    """The provider for ``params.backend``; "auto" is Docker where an engine answers, else bubblewrap.

    ``testbeds`` (archives) and ``site`` (Python packages) are what bubblewrap starts from;
    ``builder`` is given each instance whose image or archive is missing, before ``check`` complains.

    Raises:
        SandboxUnavailable: the named backend cannot work on this machine.
    """
    if params.backend == "bubblewrap":
        return BubblewrapProvider(params, testbeds, site, builder)
    try:
        provider = DockerProvider(params, testbeds, builder)
    except SandboxUnavailable as error:
        if params.backend == "docker":
            raise
        fallback = BubblewrapProvider(params, testbeds, site, builder)
        _log.warning("no Docker engine answers, so commands run in bubblewrap: %s (%s)", fallback.limits, error)
        return fallback
    _log.info("commands run in Docker containers: %s", provider.limits)
    return provider
