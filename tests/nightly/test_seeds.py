"""``make seeds`` with real processes on the small pipeline: each seed trained once, cut off, gone on with, everything put back."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import yaml

from tests.nightly.project import Project
from tests.nightly.small import PIPELINE
from tests.nightly.test_night import of_the_night, wait

pytestmark = pytest.mark.slow
SEEDED = PIPELINE.replace("[rl.steps,", "[rl.steps, rl.seed,")


@pytest.fixture
def project(tmp_path: Path, server: str) -> Project:
    made = Project(tmp_path, SEEDED)
    made.env["PREFECT_API_URL"] = server
    made.set("rl", steps=10)
    return made


def test_every_seed_is_trained_once_and_what_was_there_is_put_back(project: Project) -> None:
    project.run("dvc", "repro")
    before = {name: (project.folder / name).read_bytes() for name in ("params.yaml", "dvc.lock")}
    hold = project.folder / "hold"
    hold.touch()
    cut_off = project.start("infra.seeds", "21", "22")
    wait(lambda: "held" in project.done())
    os.kill(cut_off.pid, signal.SIGKILL)
    hold.unlink()
    cut_off.wait()
    assert b"seed: 21" in (project.folder / "params.yaml").read_bytes()
    wait(lambda: not of_the_night(project.folder))  # DVC and its stage end with it

    output = project.run("infra.seeds", "21", "22")
    assert "| rl, no expert | 25.0% |" in output and "2 trainings (seeds 21, 22)" in output
    done = [line for line in project.done() if line != "held"]
    assert done.count("rl") == 3, "params.yaml's own seed and two more, each once"
    assert {name: (project.folder / name).read_bytes() for name in before} == before
    assert "up to date" in project.run("dvc", "status"), "the outs are those of params.yaml again"
    for seed in (21, 22):
        assert f"seed: {seed}" in (project.folder / f"data/seeds/{seed}/params.yaml").read_text()

    project.run("infra.seeds", "22", "21")
    assert [line for line in project.done() if line != "held"] == done, "nothing is done twice"


def test_trainings_of_rl_share_one_sft_model(project: Project) -> None:
    project.run("dvc", "repro")
    output = project.run("infra.seeds", "--first-stage", "rl", "21")
    assert project.done().count("rl") == 2
    assert "seeds are of: rl, evaluate" in output
    kept = yaml.safe_load((project.folder / "data/seeds/21/params.yaml").read_text())
    assert kept["rl"]["seed"] == kept["evaluate"]["seed"] == 21 != kept["sft"]["seed"]


def test_a_stage_that_fails_is_said_and_leaves_params_as_they_were(project: Project) -> None:
    before = (project.folder / "params.yaml").read_bytes()
    (project.folder / "break").touch()
    output = project.run("infra.seeds", "21", status=1)
    assert "seed 21 stopped" in output and "goes on from there" in output
    assert (project.folder / "params.yaml").read_bytes() == before
    assert not (project.folder / ".cache/protege/before-seeds").exists()
