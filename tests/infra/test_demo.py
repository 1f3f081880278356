from __future__ import annotations

import fcntl
import subprocess
import sys
from pathlib import Path

import pytest

from infra.demo import run_stages
from infra.processes import end_stages, running_stages
from protege.errors import BadInput
from tasks.child import StageFailed
from tasks.stage import only_run
from tests.nightly.project import Project

ROOT = Path(__file__).parents[2]
SLEEPER = "from tasks.stage import only_run\nimport sys, time\nwith only_run('sft'):\n print('in', flush=True)\n time.sleep(60)\n"


PIPELINE = """
stages:
  model:
    cmd: python -c "import time; time.sleep(0.2); open('model', 'w')"
    outs: [model]
  sft:
    cmd: python -c "import sys; sys.exit(not __import__('os').path.exists('good'))"
    deps: [model]
"""


def test_stages_are_timed_and_a_failure_is_passed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Project(tmp_path, PIPELINE)
    monkeypatch.setenv("PATH", made.env["PATH"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(StageFailed, match="stage sft"):
        run_stages([])
    (tmp_path / "good").touch()
    (tmp_path / "model").unlink()
    (tmp_path / "dvc.lock").unlink()
    times = run_stages([])
    assert set(times) == {"model", "sft"} and times["model"] >= 0.15
    assert run_stages([]) == {}


def test_a_stage_that_lives_on_is_not_run_twice_and_down_ends_it(in_tmp: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", SLEEPER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )
    try:
        assert child.stdout is not None and child.stdout.readline() == "in\n"
        run_dir = in_tmp / ".cache/protege/run"
        assert running_stages(run_dir) == {"sft": child.pid}
        with pytest.raises(BadInput, match=str(child.pid)), only_run("sft"):
            pass
        assert end_stages(run_dir) == ["sft"]
        assert child.wait(timeout=60) != 0
        assert running_stages(run_dir) == {}
        with only_run("sft"):
            pass
    finally:
        child.kill()


def test_a_lock_file_without_a_holder_is_no_running_stage(tmp_path: Path) -> None:
    (tmp_path / "stage-rl.lock").write_text("1")
    assert running_stages(tmp_path) == {}
    with (tmp_path / "stage-rl.lock").open() as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert running_stages(tmp_path) == {"rl": 1}
