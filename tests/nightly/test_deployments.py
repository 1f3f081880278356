"""The files that deploy the night say what they should; what needs an engine or a registry is not run here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.schedules import CronSchedule

from infra.serve import FILE, FLOWS, deployments
from protege.cli.doctor import Place, project
from protege.errors import BadInput
from protege.schedule import cron_problem

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


def said_by(command: list[str], folder: Path) -> str:
    """What ``command`` says for people, on its way to an error of the user's."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "PROTEGE_"))}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**env, "PYTHONPATH": str(ROOT), "PREFECT_API_URL": "http://127.0.0.1:9/api"},  # never asked
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"0 2 * * *"', '"0 26 * * *"', "schedules[0].cron: '0 26 * * *' is no cron expression: the hour '26' is not from 0"),
        ("timezone: UTC", "timezone: Berlin", "schedules[0].timezone: 'Berlin' is no time zone"),
        ('cron: "0 2 * * *"', "cron: 2", "schedules[0].cron: 2 is no cron expression"),
    ],
    ids=["cron", "time zone", "no text"],
)  # fmt: skip
def test_a_wrong_schedule_is_one_sentence_with_file_key_and_value(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "prefect.yaml"
    text = FILE.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")
    whole = f"{file}: deployment nightly: {said}"
    with pytest.raises(BadInput) as caught:
        deployments(file=file)
    assert str(caught.value).startswith(whole) and "\n" not in str(caught.value)
    (finding,) = project.schedules(Place(tmp_path))
    assert finding.status == "fail" and finding.found.startswith(whole) and finding.fix


def test_cron_expressions_that_are_taken_are_those_that_prefect_takes() -> None:
    for cron in ("0 2 * * *", "*/15 8-18 1,15 jan-mar mon-fri", "@daily", "59 23 31 12 7"):
        assert cron_problem(cron) == "" and CronSchedule(cron=cron)
    for cron in ("60 2 * * *", "0 2 * *", "0 2 * * * * * *", "two", "0 2 0 * *", "*/0 * * * *", "R R * * *", ""):
        assert cron_problem(cron), cron
        with pytest.raises(ValueError):
            CronSchedule(cron=cron)


def test_a_wrong_time_zone_of_the_night_is_said_by_all_three(tmp_path: Path) -> None:
    shutil.copy(ROOT / "profiles/tiny.yaml", tmp_path / "params.yaml")
    (tmp_path / "machine.yaml").write_text("nightly:\n  timezone: Berlin\n", encoding="utf-8")
    (finding,) = project.params(Place(tmp_path))
    sentence = "machine.yaml: nightly.timezone: 'Berlin' is no time zone; write one such as UTC or Europe/Berlin"
    assert finding.status == "fail" and finding.found.endswith(sentence)
    for command, who in ((["-m", "infra.serve"], "serve"), (["-m", "flows.nightly"], "nightly")):
        assert said_by(command, tmp_path) == f"{who}: BadParams: {sentence}\n"
