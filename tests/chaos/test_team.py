"""The team's set-up as processes: Prefect's server on PostgreSQL, and ``infra/worker.sh``, killed in the middle of a night.

infra/compose.yaml puts the same programs into containers; its images need a registry.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.postgres import binaries, postgres
from tests.helpers import hear_interrupts
from tests.infra.own_server import own_server
from tests.nightly.project import ROOT, Project, ask
from tests.nightly.test_night import of_the_night, runs, wait

pytestmark = pytest.mark.slow
CHECKOUT = ("infra", "flows", "tasks", "protege", "tests", "prefect.yaml")


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, int]]:
    """The server's API, and the port of its PostgreSQL."""
    with postgres() as (address, port):
        settings = {"PREFECT_API_DATABASE_CONNECTION_URL": address}
        with own_server(tmp_path_factory.mktemp("server"), **settings) as url:
            yield url, port


class Worker:
    """infra/worker.sh in a checkout of its own, in a process group of its own, as in a container."""

    def __init__(self, small: Project) -> None:
        self.log = (small.folder / "worker.log").open("ab")
        self.process = subprocess.Popen(
            ["sh", "infra/worker.sh"],
            cwd=small.folder,
            env={**small.env, "PREFECT_WORKER_QUERY_SECONDS": "1", "PREFECT_WORKER_WEBSERVER_PORT": "0"},
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=hear_interrupts,
        )

    def kill(self, all_of_it: bool) -> None:
        (os.killpg if all_of_it else os.kill)(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.log.close()


def kill_all(folder: Path) -> None:
    for process in of_the_night(folder):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def begin(url: str, night: str | None) -> dict[str, Any]:
    deployment = ask(f"{url}/deployments/name/nightly/nightly")
    return ask(f"{url}/deployments/{deployment['id']}/create_flow_run", {"parameters": {"night": night}})


def test_a_night_outlives_its_worker_and_goes_on_after_its_container_was_killed(
    team: tuple[str, int], tmp_path: Path
) -> None:
    url, port = team
    small = Project(tmp_path)
    small.env["PREFECT_API_URL"] = url
    small.set("rl", steps=10)
    for name in CHECKOUT:
        (tmp_path / name).symlink_to(ROOT / name)
    hold = tmp_path / "hold"

    def state(run: dict[str, Any]) -> str:
        return str(ask(f"{url}/flow_runs/{run['id']}")["state_type"])

    def served() -> bool:
        pools = [pool["name"] for pool in ask(f"{url}/work_pools/filter", {})]
        return "protege" in pools and bool(ask(f"{url}/work_pools/protege/workers/filter", {}))

    first = Worker(small)
    try:
        wait(served, 180)
        hold.touch()
        one = begin(url, "2026-11-23")
        wait(lambda: "held" in small.done())
        first.kill(all_of_it=False)  # the worker alone: the night's process is not its ghost
        second = Worker(small)
        hold.unlink()
        wait(lambda: state(one) == "COMPLETED")

        small.set("rl", steps=20)
        hold.touch()
        before = len(small.done())
        cut = begin(url, "2026-11-24")
        wait(lambda: "held" in small.done()[before:])
        second.kill(all_of_it=True)
        kill_all(tmp_path)  # as when its container is killed: everything at once
        hold.unlink()
        third = Worker(small)
        wait(lambda: state(cut) == "CRASHED")
        rest = begin(url, None)
        wait(lambda: state(rest) == "COMPLETED")
        third.kill(all_of_it=True)
    finally:
        hold.unlink(missing_ok=True)
        kill_all(tmp_path)
    done = [line for line in small.done() if line != "held"]
    assert done == ["model", "rl", "evaluate 10", "rl", "evaluate 20", "evaluate 10"], (
        "no finished stage was done twice"
    )
    assert not {"RUNNING", "PENDING"} & {run["state_type"] for run in runs(url, "nightly", "rl", "evaluate")}
    counted = subprocess.run(
        [
            binaries() / "psql",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "prefect",
            "-tAc",
            "select count(*) from flow_run",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert int(counted.stdout) >= 7, "the runs are in PostgreSQL"
