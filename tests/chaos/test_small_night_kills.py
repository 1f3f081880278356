"""SIGKILL at random instants of small nights, DVC's own bookkeeping included: no later night may notice."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest

from tests.nightly.conftest import server
from tests.nightly.project import Project, ask
from tests.nightly.test_night import of_the_night, wait

__all__ = ["server"]
pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PROTEGE_KILLS", "6"))


def test_small_nights_killed_anywhere_leave_dvc_and_the_record_right(tmp_path: Path, server: str) -> None:
    small = Project(tmp_path)
    small.env["PREFECT_API_URL"] = server
    small.set("rl", steps=5)
    began = time.monotonic()
    small.run("flows.nightly", "--night", "2026-11-01", timeout=300)
    window = time.monotonic() - began
    rng = random.Random(3)
    small.set("rl", steps=30)
    killed = 0
    while killed < KILLS:
        night = small.start("flows.nightly", "--night", "2026-11-02")
        # later and later, as what is finished is not done again; every second time the stage alone
        time.sleep(window * rng.uniform(0.2, 0.9))
        stages = [pid for pid in of_the_night(tmp_path) if pid != night.pid]
        victim = rng.choice(stages) if stages and killed % 2 else night.pid
        if night.poll() is not None:
            break
        os.kill(victim, signal.SIGKILL)
        killed += 1
        if victim != night.pid:
            night.communicate(timeout=300)  # the stage is tried again
        else:
            night.communicate()
            wait(lambda: not of_the_night(tmp_path), 40)
    small.run("flows.nightly", "--night", "2026-11-02", timeout=300)
    assert killed, "every night was too fast"
    assert "up to date" in small.run("dvc", "status")
    records = sorted((tmp_path / "data/nights").glob("2026-11-02*/night.json"))
    assert all(small.json(str(path.relative_to(tmp_path)))["finished"] for path in records)
    assert small.json("data/champion/champion.json")["promote"] is True
    assert len(small.done()) <= 3 + 3 + killed, "what was finished was not done again"
    unfinished = {"flow_runs": {"state": {"type": {"any_": ["RUNNING", "PENDING"]}}}}
    assert ask(f"{server}/flow_runs/filter", unfinished) == []
