"""When a bug's tests have run for too long: the processor's time decides, the clock only where nothing is computed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from protege.config import InstancesParams, SandboxParams
from protege.desk import desk
from protege.desk.modifiers import Candidate
from protege.desk.sources import ensure_site
from protege.desk.testrun import Gold, gold
from protege.desk.verify import Dropped, verify
from protege.sandbox.bubblewrap import BubblewrapProvider
from tests.desk.conftest import CORE

ROOT = Path(__file__).parents[2]
SUM = "        result = result + value * 2\n"
SPIN = "        while True:\n            pass\n"
WAIT = "        import time; time.sleep({seconds})\n"


@pytest.fixture
def shop(sdist, tmp_path: Path):
    """verify(line to put in the place of the sum, limit on the clock), for a package whose tests take no time."""
    package, path = sdist
    prepared = desk.prepare(package, tmp_path / "cache", path)
    site = ensure_site(ROOT / "data/desk/requirements-desk.txt", ROOT / ".cache/protege")
    provider = BubblewrapProvider(SandboxParams(), prepared.testbeds, site)

    def params(seconds: float) -> InstancesParams:
        return InstancesParams(splits={}, repeats=1, test_timeout_s=seconds)

    normal = gold(prepared, provider, params(60))

    def proved(line: str, clock: float, baseline: Gold = normal):
        buggy = CORE.replace(SUM, line)
        candidate = Candidate("pkg__1.0.x__0", "pkg", "1.0", "x", "pkg/core.py", "total", CORE, buggy, 2)
        return verify(candidate, prepared, baseline, provider, params(clock))

    return normal, proved


def reason(result: object) -> str:
    return result.reason if isinstance(result, Dropped) else "proved"


def test_the_clock_alone_does_not_drop_a_bug(shop):
    """As on a machine that does other work: long on the clock, little computed. Longer than 5 s and ten times the normal."""
    normal, proved = shop
    assert 0 < normal.cpu_seconds < 5
    quick = normal.model_copy(update={"seconds": 0.01, "cpu_seconds": 0.01})
    assert reason(proved(WAIT.format(seconds=1.8), 60, quick)) == "proved"


def test_a_bug_that_computes_for_ever_is_dropped_long_before_the_clock(shop):
    normal, proved = shop
    began = os.times().elapsed
    assert reason(proved(SPIN, 600, normal.model_copy(update={"cpu_seconds": 0.01}))) == "timeout"
    assert os.times().elapsed - began < 300


def test_a_bug_that_waits_for_ever_meets_the_clock(shop):
    assert reason(shop[1](WAIT.format(seconds=3600), 4)) == "timeout"
