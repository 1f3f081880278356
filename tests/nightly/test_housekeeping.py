from __future__ import annotations

import os
import time
from pathlib import Path

from protege.config import SandboxParams
from tasks.housekeeping import prune_files, prune_images


def test_only_old_logs_and_units_of_work_go(tmp_path: Path) -> None:
    old = time.time() - 31 * 86_400
    for name in ("store/verdict/ab/new.json", "store/verdict/ab/old.json", "logs/old.log", "checkpoints/old.bin"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        if "old" in name:
            os.utime(path, (old, old))
    assert prune_files(0, tmp_path) == "not asked for"
    assert prune_files(30, tmp_path) == "2 removed"
    left = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["new.json", "old.bin"], "a checkpoint is work in progress, whatever its age"


def test_images_are_left_where_there_is_no_budget_or_no_engine() -> None:
    assert prune_images(SandboxParams(backend="bubblewrap")) == "not asked for"
    assert prune_images(SandboxParams(backend="docker", images_gb=0)) == "not asked for"
