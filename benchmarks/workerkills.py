"""SIGKILL to the Prefect worker in the middle of a night that it runs (deployment ``nightly``, pool of type process).

As benchmarks/nightkills.py, for the one victim that is not part of the night's own tree. The worker is killed once in
every stage that lasts long enough and started again at once, as a service manager does; a night that ended badly is
asked for once more. Nobody reads what the night prints after that, so its progress is that of its runs in Prefect.

Run by benchmarks/nightkills.py.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any

from benchmarks.night_cells import NIGHT, Cell, Result, store
from benchmarks.night_lab import CHAMPION, STAGES, Lab

PATIENCE_S = 1200.0
LIVING = {"RUNNING", "PENDING", "SCHEDULED", "CANCELLING"}


def start_worker(made: Lab) -> subprocess.Popen[bytes]:
    """The worker as infra/compose.yaml runs it; ready when its deployment is known."""
    with made.log.open("ab") as out:
        return subprocess.Popen(
            ["sh", "infra/worker.sh"],
            cwd=made.home,
            env=made.env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )


def deployment(made: Lab) -> str | None:
    with (
        suppress(urllib.error.HTTPError),
        urllib.request.urlopen(f"{made.url}/deployments/name/nightly/nightly", timeout=30) as answer,
    ):
        found = json.load(answer)
        # the schedule's own night would come in between
        for schedule in found["schedules"]:
            request = urllib.request.Request(
                f"{made.url}/deployments/{found['id']}/schedules/{schedule['id']}", b'{"active": false}',
                {"content-type": "application/json"}, method="PATCH",
            )  # fmt: skip
            urllib.request.urlopen(request, timeout=30).close()
        return str(found["id"])
    return None


def stage_runs(made: Lab, since: float) -> dict[str, list[dict[str, Any]]]:
    """Runs by stage; the second kind of evaluation, the champion's, begins when the report is there."""
    found: dict[str, list[dict[str, Any]]] = {stage: [] for stage in (*STAGES, "nightly")}
    for run in made.runs(since):
        late = run["flow"] == "evaluate" and any(r["state_type"] == "COMPLETED" for r in found["report"])
        found[CHAMPION if late else run["flow"]].append(run)
    return found


def killed_worker(made: Lab, times: dict[str, float], wanted: Result) -> list[Cell]:
    """A night whose worker is killed once in every stage."""
    made.restore()
    since, deadline = time.time() - 1, time.monotonic() + PATIENCE_S
    worker, commands, cells, todo = start_worker(made), 0, [], list(STAGES)  # type: ignore[var-annotated]
    while time.monotonic() < deadline and (own := deployment(made)) is None:
        time.sleep(0.5)
    assert own is not None, made.log.read_text()[-3000:]
    while time.monotonic() < deadline:
        runs = stage_runs(made, since)
        nights = runs["nightly"]
        if any(run["state_type"] == "COMPLETED" for run in nights):
            break
        if not any(run["state_type"] in LIVING for run in nights):
            commands += 1
            for cell in cells[-1:]:
                cell.commands = commands
            made.ask(f"deployments/{own}/create_flow_run", {"parameters": {"night": NIGHT}})
        stage = todo[0] if todo else None
        if stage and any(run["state_type"] == "COMPLETED" for run in runs[stage]):
            cells.append(Cell("worker", stage))
            todo.pop(0)
        elif stage and any(
            run["state_type"] == "RUNNING" and run["estimated_run_time"] >= min(times[stage] / 2, 15)
            for run in runs[stage]
        ):
            units = store(made.home)
            os.kill(worker.pid, signal.SIGKILL)
            worker.wait()
            after = f"{stage}: {runs[stage][-1]['estimated_run_time']:.0f} s after its start"
            cells.append(Cell("worker", stage, after, units=units))
            todo.pop(0)
            worker = start_worker(made)
        time.sleep(0.2)
    worker.terminate()
    worker.wait(60)
    time.sleep(5)
    runs = stage_runs(made, since)
    for cell in cells:
        cell.compare(wanted, made.home)
        ended = [run for run in runs[cell.stage] if run["state_type"] == "COMPLETED"]
        cell.redone += [f"stage {cell.stage}"] if len(ended) > 1 else []
        cell.states = [run["state_type"] for run in (*runs[cell.stage], *runs["nightly"])]
        cell.seconds = times[cell.stage]
        cell.lost_s = round(sum(run["total_run_time"] for run in runs[cell.stage]) - times[cell.stage], 1)
    cells[-1].strays = made.strays(None) + made.unfinished()
    return cells
