"""In a real browser, on Prefect's own pages: how far it is from a night to what went wrong in it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.inspect.test_browser import browser
from tests.nightly.project import Project, ask
from tests.nightly.small import LOST, NO_SERVER

__all__ = ["browser"]
pytestmark = pytest.mark.slow
SLOW_MS = 60_000
"""The machine may be busy: how long a page may take to show what is on it."""


@pytest.fixture
def night(tmp_path: Path, server: str) -> Iterator[str]:
    """The page of a night whose evaluation lost an instance to infrastructure."""
    small = Project(tmp_path)
    small.env["PREFECT_API_URL"] = server
    (tmp_path / "lose").touch()
    small.run("flows.nightly", "--night", "2026-11-26")
    wanted = {"flows": {"name": {"any_": ["nightly"]}}, "sort": "EXPECTED_START_TIME_DESC"}
    run = next(r for r in ask(f"{server}/flow_runs/filter", wanted) if r["parameters"]["night"] == "2026-11-26")
    yield f"{server.removesuffix('/api')}/runs/flow-run/{run['id']}"


def test_from_the_night_to_a_failed_instances_log_in_three_clicks(browser: Any, night: str) -> None:
    page = browser.new_page(viewport={"width": 1300, "height": 1000})
    page.set_default_timeout(SLOW_MS)
    try:
        page.goto(night)
        page.get_by_text("Subflow Runs", exact=True).click()
        evaluation = page.locator("a[href*='/runs/flow-run/'][href*='task-runs'], a").filter(has_text="1 Task run")
        evaluation.first.click()
        page.get_by_role("link", name=LOST).first.click()
        page.wait_for_url("**/runs/task-run/*")
        log = page.get_by_text(NO_SERVER)
        log.first.wait_for()
        assert "ModelServerError" in page.locator("body").inner_text()
    finally:
        page.close()
