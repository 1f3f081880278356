"""Fixtures that the sandbox and grading tests share; imported by their conftest files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from protege.config import SandboxParams
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.docker import DockerProvider
from protege.sandbox.images import docker_client
from tests.sandbox.tiny import Tiny, build_image, make_tiny

PARAMS = SandboxParams(
    memory_mb=512,
    pids=64,
    command_timeout_s=20,
    grade_timeout_s=60,
    max_output_bytes=100_000,
    lifetime_s=600,
    images_gb=0,
)
BACKENDS = [pytest.param("docker", marks=pytest.mark.docker), "bubblewrap"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def docker_image(tiny: Tiny) -> Iterator[str]:
    build_image(tiny)
    yield tiny.instance.image
    client = docker_client()
    for tag in (tiny.instance.image, f"{tiny.instance.image}-site"):
        client.images.remove(tag, force=True)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROTEGE_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="session")
def make_provider(
    tiny: Tiny, cache: Path, request: pytest.FixtureRequest
) -> Callable[[str, SandboxParams], DockerProvider | BubblewrapProvider]:
    def make(backend: str, params: SandboxParams = PARAMS) -> DockerProvider | BubblewrapProvider:
        if backend == "docker":
            request.getfixturevalue("docker_image")
            return DockerProvider(params)
        return BubblewrapProvider(params, tiny.testbeds, tiny.site)

    return make


@pytest.fixture(params=BACKENDS)
def provider(request: pytest.FixtureRequest, make_provider):
    return make_provider(request.param)


@pytest.fixture
def sandbox(provider, tiny: Tiny):
    with provider.open(tiny.instance) as opened:
        yield opened
