"""In a real browser, on Prefect's own pages: how far it is from a night to what went wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.infra.own_server import own_server
from tests.nightly.project import Project, ask
from tests.nightly.small import LOST, NO_SERVER
from tests.report.test_browser import browser

__all__ = ["browser"]
pytestmark = pytest.mark.slow
SLOW_MS = 30_000
"""The machine may be busy: how long a page may take to show what is on it."""


@pytest.fixture
def night(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page of a night whose evaluation lost an instance to infrastructure."""
    small = Project(tmp_path)
    (tmp_path / "lose").touch()
    with own_server(tmp_path_factory.mktemp("server")) as url:
        small.env["PREFECT_API_URL"] = url
        small.run("flows.nightly", "--night", "2026-11-26", timeout=300)
        (run,) = ask(f"{url}/flow_runs/filter", {"flows": {"name": {"any_": ["nightly"]}}})
        yield f"{url.removesuffix('/api')}/runs/flow-run/{run['id']}"


def test_from_the_night_to_a_failed_instances_log_in_three_clicks(browser: Any, night: str) -> None:
    context = browser.new_context(viewport={"width": 1300, "height": 1000})
    context.set_default_timeout(SLOW_MS)
    try:
        page = context.new_page()
        page.goto(night)
        page.get_by_text("Artifacts", exact=True).last.click()
        page.get_by_role("link", name="nightly-failures").first.click()
        with context.expect_page() as opened:  # Prefect opens the links of an artifact in a tab of their own
            page.get_by_role("link", name=LOST).first.click()
        run = opened.value
        run.wait_for_url("**/runs/task-run/*")
        run.get_by_text(f"Task run failed with exception: ModelServerError('{NO_SERVER}')").first.wait_for()
    finally:
        context.close()
