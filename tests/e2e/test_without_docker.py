"""A machine without a container engine: the same flows, in bubblewrap, and the record says so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from protege.core.trajectory import load_trajectories
from tests.e2e.test_pipeline import Project

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path) -> Iterator[Project]:
    made = Project(tmp_path / "clone")
    made.env["DOCKER_HOST"] = f"unix://{tmp_path}/no-engine.sock"
    try:
        yield made
    finally:
        subprocess.run([sys.executable, "-m", "tasks.server", "stop"], cwd=made.folder, env=made.env, timeout=120)


def test_instances_are_proved_and_rollouts_graded_in_bubblewrap(project: Project) -> None:
    said = subprocess.run(
        ["bash", "infra/engine.sh", "up"],
        cwd=project.folder,
        env=project.env,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 0 and "bubblewrap" in said.stdout + said.stderr
    project.run("flows.instances")
    project.run("flows.trajectories")
    done = load_trajectories(project.folder / "data/trajectories/sft")
    assert {t.sandbox_backend for t in done} == {"bubblewrap"}
    graded = [t for t in done if t.verdict and t.verdict.backend == "bubblewrap"]
    assert any(t.resolved for t in graded)
    assert all(t.failure is None for t in done)
