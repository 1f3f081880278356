from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from protege.config import InstancesParams
from protege.desk import side_by_side
from protege.desk.modifiers import candidates
from protege.desk.side_by_side import Wanted, make_candidates
from protege.desk.sources import unpack

PARAMS = InstancesParams(splits={})


@pytest.fixture
def wanted(sdist, tmp_path: Path) -> dict[str, Wanted]:
    tree = unpack(*sdist, tmp_path / "tree")
    return {
        "few": Wanted(sdist[0], tree, PARAMS, seed=1, limit=2),
        "all": Wanted(sdist[0], tree, PARAMS),
        "other": Wanted(sdist[0], tree, PARAMS, seed=2),
    }


@pytest.mark.parametrize("workers", [1, 2])
def test_processes_make_what_one_makes_in_the_order_asked(wanted, workers: int):
    told: dict[str, str] = {}
    found = make_candidates(wanted, workers, told.__setitem__)
    assert list(found) == ["few", "all", "other"] and len(found["few"]) == 2
    for name, one in wanted.items():
        assert found[name] == candidates(one.package, one.tree, one.params, one.seed, one.limit)
        assert told[name] == f"{len(found[name])} candidates"


def test_few_candidates_start_no_process(wanted, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(side_by_side, "ProcessPoolExecutor", None)
    few = {name: Wanted(one.package, one.tree, one.params, limit=2) for name, one in wanted.items()}
    assert [len(found) for found in make_candidates(few, 2).values()] == [2, 2, 2]


def test_what_one_raises_is_raised(wanted, tmp_path: Path):
    (tmp_path / "broken" / "pkg").mkdir(parents=True)
    (tmp_path / "broken" / "pkg" / "core.py").write_bytes(b"\xff\xfe nothing that decodes")
    one = wanted["all"]
    wanted["broken"] = Wanted(one.package, tmp_path / "broken", PARAMS)
    with pytest.raises(UnicodeDecodeError):
        make_candidates(wanted, 2)


def test_processes_end_with_a_parent_that_is_killed():
    program = (
        "import multiprocessing, time\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "from protege.desk.side_by_side import _end_with_parent\n"
        "if __name__ == '__main__':\n"
        "    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), initializer=_end_with_parent)\n"
        "    print(pool.submit(time.monotonic).result() > 0, flush=True)\n"
        "    time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "True\n"
        children = psutil.Process(parent.pid).children()
        assert children
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 60
        while (left := [c for c in children if c.is_running()]) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left
    finally:
        parent.kill()
        for child in children:
            if child.is_running():
                child.kill()
