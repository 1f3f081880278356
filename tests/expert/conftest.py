from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from protege.config import ApiParams, Price
from protege.expert.client import Client
from protege.expert.endpoint import Endpoint as Address
from protege.expert.ledger import Ledger
from tests.expert.endpoint import Endpoint

KEY = "sk-very-secret-0123456789"
PRICES = {"m": Price(input=1.0, output=10.0, cached=0.1)}


def quick(**changes: Any) -> ApiParams:
    """Limits under which a test takes milliseconds."""
    values = {"timeout_s": 2.0, "retries": 3, "backoff_s": 0.01, "backoff_max_s": 0.05, "prices": PRICES}
    return ApiParams.model_validate(values | changes)


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Endpoint]:
    """The expert's environment points at it."""
    with Endpoint() as server:
        for who in ("EXPERT", "POLICY"):
            monkeypatch.setenv(f"PROTEGE_{who}_BASE_URL", server.url)
            monkeypatch.setenv(f"PROTEGE_{who}_MODEL", "m")
            monkeypatch.setenv(f"PROTEGE_{who}_API_KEY", KEY)
        for part in ("BASE_URL", "MODEL", "API_KEY"):
            monkeypatch.delenv(f"PROTEGE_JUDGE_{part}", raising=False)
        yield server


@pytest.fixture
def ledger(tmp_path: Path) -> Callable[..., Ledger]:
    return lambda **changes: Ledger(quick(**changes), tmp_path / "ledger")


@pytest.fixture
def client(endpoint: Endpoint, tmp_path: Path) -> Callable[..., Client]:
    """A client of the endpoint under ``quick`` limits, with a ledger in the test's folder."""

    def make(role: str = "expert", **changes: Any) -> Client:
        params = quick(**changes)
        return Client(role, Address.from_environment("EXPERT"), params, Ledger(params, tmp_path / "ledger"))

    return make
