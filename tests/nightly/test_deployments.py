"""The files that deploy the night say what they should; what needs an engine or a registry is not run here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule

from infra.serve import FILE, FLOWS, deployments

ROOT = Path(__file__).parents[2]


def compose() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "infra/compose.yaml").read_text())


def test_every_deployment_refuses_to_overlap_and_only_the_night_has_a_schedule() -> None:
    made = {d.name: d for d in deployments()}
    assert set(made) == {"nightly", "evaluate", "synthesize"}
    for deployment in made.values():
        assert deployment.concurrency_limit == 1
        assert deployment.concurrency_options is not None
        assert deployment.concurrency_options.collision_strategy.value == "CANCEL_NEW"
    assert [name for name, d in made.items() if d.schedules] == ["nightly"]
    (schedule,) = [s.schedule for s in made["nightly"].schedules or ()]
    assert isinstance(schedule, CronSchedule)
    assert (schedule.cron, schedule.timezone) == ("0 2 * * *", "UTC")


def test_what_a_worker_runs_is_what_is_served() -> None:
    raw = yaml.safe_load(FILE.read_text())
    pools = {d["work_pool"]["name"] for d in raw["deployments"]}
    assert {d["entrypoint"] for d in raw["deployments"]} == set(FLOWS) and pools == {"protege"}
    assert "--pool protege" in (ROOT / "infra/worker.sh").read_text()
    stages = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for d in raw["deployments"]:
        assert set(d.get("parameters", {}).get("targets", [])) <= stages


def test_each_service_has_a_health_check_and_what_it_keeps_has_a_name() -> None:
    file = compose()
    assert set(file["services"]) == {"postgres", "server", "worker", "vllm"}
    for name, service in file["services"].items():
        assert service["healthcheck"]["test"], name
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in file["volumes"] or source.startswith(("..", "/var/run/docker.sock")), volume
        for other, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, (name, other)
    assert ":?" in file["services"]["postgres"]["environment"]["POSTGRES_PASSWORD"], "no password of ours by default"


def test_the_images_are_of_the_versions_that_are_pinned() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    services = compose()["services"]
    for image, pin in (("server", "prefect"), ("vllm", "vllm")):
        version = services[image]["image"].partition(":")[2].removeprefix("v").partition("-")[0]
        assert f'"{pin}=={version}"' in project


def test_the_files_that_the_worker_copies_and_runs_are_there() -> None:
    for line in (ROOT / "infra/docker/worker.Dockerfile").read_text().splitlines():
        if line.startswith("COPY "):
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    assert subprocess.run(["sh", "-n", ROOT / "infra/worker.sh"], timeout=10).returncode == 0


@pytest.mark.parametrize("unit", ["protege", "protege-team"])
def test_the_units_are_taken_by_systemd(unit: str, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd-analyze here")
    text = (ROOT / f"infra/systemd/{unit}.service").read_text()
    text = text.replace("<user>", "root").replace("<checkout>", str(tmp_path))
    text = text.replace(
        "/usr/bin/docker", shutil.which("true") or "/bin/true"
    )  # whether it is installed is another matter
    (tmp_path / f"{unit}.service").write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", str(tmp_path / f"{unit}.service")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    said = [line for line in done.stderr.splitlines() if unit in line and "docker.service" not in line]
    assert not said, said
