"""The pages in a real browser, from file:// with the network off: nothing of a trajectory runs, filters and folds work."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protege.config import ReportParams
from protege.report.inspect.pages import entries, open_context, write_pages
from protege.report.inspect.sources import trajectories_in
from protege.report.page import write_report
from tests.report.samples import HOSTILE, folder

RATIO = """
() => {
  const parse = (text) => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255).map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) { const c = parse(getComputedStyle(at).backgroundColor); if (c[3] > 0) return c; }
    return matchMedia("(prefers-color-scheme: dark)").matches ? [0, 0, 0, 1] : [255, 255, 255, 1];
  };
  const low = new Set();
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!own || !node.checkVisibility() || node.closest("svg")) continue;
    const [a, b] = [light(parse(getComputedStyle(node).color)), light(behind(node))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < 4.5) low.add(`${node.tagName}.${node.className} ${((a + 0.05) / (b + 0.05)).toFixed(2)}`);
  }
  return [...low];
}
"""


def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    if os.environ.get("CI"):
        pytest.fail("CI needs chromium: apt-get install chromium")
    pytest.skip("no chromium here: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # a root user has no sandbox of Chromium's; the pages are ours
        started = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield started
        started.close()


class Tab:
    """A page without network that remembers what it said and asked for."""

    def __init__(self, browser: Any, width: int = 1200, scheme: str = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog: {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: Path) -> Any:
        self.page.goto(path.as_uri())
        return self.page

    def overflow(self) -> int:
        return self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


@pytest.fixture
def tab(browser: Any) -> Iterator[Tab]:
    made = Tab(browser)
    yield made
    made.context.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the index and pages of tests/report/samples.py."""
    root = tmp_path_factory.mktemp("pages")
    data = folder(root) / "evaluation"
    write_pages(entries(trajectories_in(data), data, []), open_context(data), root / "out", "Samples")
    return root / "out"


def test_nothing_of_a_hostile_trajectory_runs_and_all_of_it_is_seen(tab: Tab, pages: Path) -> None:
    for path in (pages / "rl-none" / "hostile.html", pages / "index.html"):
        page = tab.open(path)
        assert page.evaluate("window.ran") is None
        assert tab.said == [] and {url.split("#")[0] for url in tab.asked} == {path.as_uri()}
        assert page.locator("img, a[href^='javascript'], svg[onload]").count() == 0
        tab.asked.clear()
    page = tab.open(pages / "rl-none" / "hostile.html")
    said = HOSTILE.split("<!--")[0]
    for where in (".banner", "h1 + p", ".turn .thought", ".exchange pre", ".diff", "pre"):
        assert any(said in text for text in page.locator(where).all_text_contents()), where
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u200b]", page.content())


def test_the_policy_alone_keeps_scripts_out(tab: Tab, pages: Path, tmp_path: Path) -> None:
    text = (pages / "rl-none" / "hostile.html").read_text()
    path = tmp_path / "injected.html"
    path.write_text(text.replace("<main>", "<main><script>window.ran=1</script><img src=x onerror='window.ran=2'>"))
    page = tab.open(path)
    assert page.locator("img").count() == 1  # it is there, and neither it nor the script did anything
    assert page.evaluate("window.ran") is None and any("Content Security Policy" in line for line in tab.said)


def test_turns_fold_and_unfold(tab: Tab, pages: Path) -> None:
    page = tab.open(pages / "rl-oracle" / "loop.rl-oracle.html")
    first = page.locator("#turn-1 details.observation")
    assert page.locator("details[open]").count() == 1  # the failed tests, which are few
    assert not first.locator("pre").is_visible()
    first.locator("summary").click()
    assert first.locator("pre").is_visible()
    page.get_by_role("button", name="Unfold all").click()
    assert page.locator(".turn details:not([open])").count() == 0
    page.get_by_role("button", name="Fold all", exact=True).click()
    assert page.locator(".turn details[open]").count() == 0
    assert page.locator(".turn.expert").count() == 1 and page.locator(".turn.expert .exchange").is_visible()
    assert page.locator("[data-run='12'].loops .turn").count() == 12
    page.locator("svg.strip a").nth(13).click()
    assert page.url.endswith("#turn-14") and tab.said == []


def test_filters_filter_and_rows_lead_to_pages_and_back(tab: Tab, pages: Path) -> None:
    page = tab.open(pages / "index.html")
    rows = page.locator("#rows tbody tr:visible")
    results = [row.get_attribute("data-result") for row in rows.all()]
    assert results == ["infrastructure", "not graded", "unresolved", "unresolved", "resolved"]

    def shown() -> int:
        assert page.locator("#shown").text_content() == f"{rows.count()} of 5 shown"
        return rows.count()

    for box, count in (("looped", 2), ("asked", 2), ("infrastructure", 1)):
        page.get_by_label(box, exact=True).check()
        assert shown() == count, box
        page.get_by_label(box, exact=True).uncheck()
    page.get_by_label("Search").fill("1024 mb")
    assert shown() == 1
    page.get_by_label("Search").fill("")
    page.get_by_label("Result").select_option("resolved")
    assert shown() == 1
    page.get_by_label("Result").select_option("")
    page.get_by_label("System").select_option("rl + oracle")
    assert shown() == 1
    rows.first.get_by_role("link").click()
    assert page.url == (pages / "rl-oracle" / "loop.rl-oracle.html").as_uri()
    page.go_back()
    assert page.url.endswith("/index.html#system=rl+%2B+oracle") and shown() == 1
    rows.first.get_by_role("link").click()
    page.get_by_role("link", name="All trajectories").click()
    assert page.url == (pages / "index.html").as_uri() and shown() == 5
    page.goto((pages / "index.html").as_uri() + "#result=unresolved&asked=1&words=loop")
    assert shown() == 1 and tab.said == []


@pytest.mark.parametrize(("width", "scheme"), [(400, "light"), (400, "dark"), (1200, "light"), (1200, "dark")])
def test_pages_can_be_read_on_a_phone_and_in_the_dark(browser: Any, pages: Path, width: int, scheme: str) -> None:
    tab = Tab(browser, width, scheme)
    for name in ("index.html", "rl-oracle/loop.rl-oracle.html", "rl-none/lost.rl-none.html", "rl-none/hostile.html"):
        page = tab.open(pages / name)
        assert tab.overflow() == 0, name
        assert page.evaluate(RATIO) == [], name
    tab.context.close()


def test_from_the_report_to_a_failed_instance_in_one_click(tab: Tab, pages: Path, tmp_path: Path) -> None:
    write_report(folder(tmp_path), tmp_path / "report", ReportParams(), {})
    page = tab.open(tmp_path / "report" / "index.html")
    page.locator("tr[data-result='infrastructure'] a").first.click()
    assert "Failed: the infrastructure's failure" in str(page.locator(".banner").text_content())
    page.get_by_role("link", name="All trajectories").click()
    page.get_by_role("link", name="Report").click()
    assert page.url == (tmp_path / "report" / "index.html").as_uri() and tab.said == []
