from __future__ import annotations

import os
from pathlib import Path

import pytest

from tasks.outs import fresh_folder


def test_the_folder_is_swapped_in_whole(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with fresh_folder(out) as new:
        (new / "new").write_text("new")
        assert sorted(p.name for p in out.iterdir()) == ["old"]
    assert sorted(p.name for p in out.iterdir()) == ["new"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_failure_leaves_the_old_one_and_no_litter(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    with pytest.raises(RuntimeError), fresh_folder(out) as new:
        (new / "half").write_text("half")
        raise RuntimeError
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/old"]


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path) -> None:
    (tmp_path / ".out.abc.new").mkdir()
    with fresh_folder(tmp_path / "out"):
        pass
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    replace = os.replace

    def killed(source, target):
        if Path(target) == out:
            raise KeyboardInterrupt  # stands for SIGKILL: nothing after it may be needed
        replace(source, target)

    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt), fresh_folder(out):
        pass
    monkeypatch.undo()
    assert not out.exists()
    with pytest.raises(RuntimeError), fresh_folder(out):
        assert (out / "old").read_text() == "old"
        raise RuntimeError
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
