"""One Prefect server for the tests of this folder; each project of theirs works against it from a folder of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.infra.own_server import own_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of its API."""
    with own_server(tmp_path_factory.mktemp("server")) as url:
        yield url
