"""DVC's stages through its API: the same order, states and lock file as ``dvc repro`` by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from protege.errors import BadInput
from tasks.child import StageFailed
from tasks.dvcstages import project as dvc_project
from tasks.dvcstages import reproduce, stage_command, stage_order
from tests.nightly.project import Project

PIPELINE = """
stages:
  last:
    cmd: cp middle last
    deps: [middle]
    outs: [last]
  middle:
    cmd: python -c "print('at work'); open('middle', 'w').write(open('first').read())"
    deps: [first]
    outs: [middle]
  first:
    cmd: cp given first
    deps: [given]
    outs: [first]
  beside:
    cmd: python -c "import sys; print('lost'); sys.exit(1)"
    outs: [beside]
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Project:
    (tmp_path / "given").write_text("1")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/dvc.yaml").write_text(
        "stages:\n  other:\n    cmd: cp ../last other\n    deps: [../last]\n    outs: [other]\n"
    )
    made = Project(tmp_path, PIPELINE)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return made


def test_stages_come_after_what_they_need(here: Project) -> None:
    order = stage_order()
    assert sorted(order) == ["beside", "first", "last", "middle"], "a folder's own dvc.yaml runs when it is asked for"
    assert [name for name in order if name != "beside"] == ["first", "middle", "last"]
    assert stage_order(["sub/dvc.yaml:other"]) == ["first", "middle", "last", "sub/dvc.yaml:other"]
    assert stage_command("first") == ["cp", "given", "first"]
    for wrong in (lambda: stage_order(["no"]), lambda: stage_command("no")):
        with pytest.raises(BadInput, match="no stage"):
            wrong()
    Path("dvc.yaml").write_text(PIPELINE.replace("deps: [given]", "deps: [last]"), encoding="utf-8")
    with pytest.raises(BadInput, match="dvc.yaml"):
        stage_order()


def test_a_stage_is_as_if_dvc_had_run_it_by_hand(here: Project, capfd: pytest.CaptureFixture[str]) -> None:
    assert [reproduce(name) for name in ("first", "middle", "last")] == ["done"] * 3
    assert [reproduce(name) for name in ("first", "middle", "last")] == ["unchanged"] * 3
    assert capfd.readouterr() == ("at work\n", ""), "what the stages print, and nothing of DVC's"
    assert "didn't change, skipping" in here.run("dvc", "repro", "last")
    locked = Path("dvc.lock").read_text(encoding="utf-8")
    Path("dvc.lock").unlink()
    here.run("dvc", "repro", "--force", "last")
    assert Path("dvc.lock").read_text(encoding="utf-8") == locked
    Path("given").write_text("2", encoding="utf-8")
    assert [reproduce(name) for name in ("first", "middle", "last")] == ["done"] * 3
    assert Path("last").read_text(encoding="utf-8") == "2"


def test_half_a_lock_file_stops_no_night_and_nothing_is_done_again(
    here: Project, capfd: pytest.CaptureFixture[str]
) -> None:
    names = ["first", "middle", "last"]
    for name in names:
        reproduce(name)
    lock = Path("dvc.lock")
    whole = lock.read_bytes()
    capfd.readouterr()
    for cut in range(0, len(whole), 97):
        lock.write_bytes(whole[:cut])
        stage_order()
    for cut in (len(whole) // 2, len(whole) - 40):
        lock.write_bytes(whole[:cut])
        for name in names:
            reproduce(name)
        assert lock.read_bytes() == whole
    assert "at work" not in capfd.readouterr().out.splitlines()
    assert Path("dvc.lock.broken").is_file()


def test_a_failure_says_what_the_stage_said_and_leaves_dvc_free(here: Project) -> None:
    with pytest.raises(StageFailed, match="stage beside ended with status 1: lost") as caught:
        reproduce("beside")
    assert not caught.value.retryable
    with pytest.raises(StageFailed, match="middle: MissingDataSource|middle: .*first"):
        reproduce("middle")  # its dependency was never made
    assert reproduce("first") == "done"


def test_another_dvc_at_work_is_a_failure_that_may_pass(here: Project) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", "from dvc.repo import Repo\nwith Repo().lock:\n print('held', flush=True)\n input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    try:
        with dvc_project() as repo, pytest.raises(Exception, match="lock"):
            repo.lock.lock()
        with pytest.raises(StageFailed, match="lock") as caught:
            reproduce("first")
        assert caught.value.retryable
    finally:
        holder.communicate("\n", timeout=10)
    assert reproduce("first") == "done"
