"""Two clones of one tree, each on its own: what they make is the same, byte for byte where DVC follows bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from protege.core.trajectory import load_trajectories
from protege.files import digest_tree
from tests.e2e.test_pipeline import Project

pytestmark = pytest.mark.slow
STAGES = ("model", "instances", "trajectories", "validate", "sft")
SAME = ("data/models/base", "data/instances", "data/validation", "data/sft")
CLOCK = {"started_at", "seconds", "model_seconds", "tool_seconds", "log_tail"}


def test_two_clones_make_the_same(tmp_path: Path) -> None:
    clones = []
    for name in ("one", "two"):
        clone = Project(tmp_path / name)
        clone.env["DOCKER_HOST"] = f"unix://{tmp_path}/no-engine.sock"
        try:
            for stage in STAGES:
                clone.run(f"flows.{stage}")
        finally:
            subprocess.run([sys.executable, "-m", "tasks.server", "stop"], cwd=clone.folder, env=clone.env, timeout=120)
        clones.append(found(clone.folder))
    assert clones[0] == clones[1]


def found(folder: Path) -> dict[str, Any]:
    """Digests of what the stages made, and the trajectories without what a clock says."""
    made: dict[str, Any] = {}
    for name in SAME:
        path = folder / name
        assert path.exists(), name
        made[name] = digest_tree(path) if path.is_dir() else path.read_bytes()
    weights = sorted((folder / "data/models/sft").glob("*.safetensors"))
    assert weights
    made["sft"] = [path.read_bytes() for path in weights]
    made["trajectories"] = [without_clock(t.model_dump()) for t in load_trajectories(folder / "data/trajectories/sft")]
    assert made["trajectories"]
    return made


def without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_clock(item) for key, item in value.items() if key not in CLOCK}
    return [without_clock(item) for item in value] if isinstance(value, list | tuple) else value
