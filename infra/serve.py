"""``make serve``: the deployments of prefect.yaml, their schedules and their runs, in one process on one machine.

python -m infra.serve [--every SECONDS | --recover]
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from httpx import HTTPStatusError
from prefect import Flow, serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterDeploymentId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import ConcurrencyLimitConfig, FlowRun, StateType
from prefect.deployments.runner import RunnerDeployment
from prefect.exceptions import ObjectNotFound
from prefect.schedules import Cron, Interval
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Crashed

from flows import nightly as flows
from protege import schedule
from protege.config import load
from protege.errors import BadInput, ProtegeError
from tasks.notify import notify
from tasks.runs import UNFINISHED, reap
from tasks.server import ensure, ui, watched
from tasks.stage import INFRASTRUCTURE_FAILED, INPUT_FAILED, only_run

FILE = Path(__file__).parents[1] / "prefect.yaml"
FLOWS: dict[str, Flow[..., Any]] = {"flows/nightly.py:nightly": flows.nightly, "flows/nightly.py:stages": flows.stages}
PENDING_S = 600.0
END_S = 30.0
AT_ONCE = 4
"""More than one, so that a run that would overlap is refused (and shown) now, not run late."""


def deployments(every: float | None = None, file: Path = FILE) -> list[RunnerDeployment]:
    """Those of prefect.yaml; ``every`` (s) replaces their cron schedules. Raises BadInput for one that cannot be served."""
    made = []
    found = schedule.read(file)
    if found.problems:
        raise BadInput("; ".join(found.problems))
    for d in found.listed:
        if d.get("entrypoint") not in FLOWS:
            raise BadInput(
                f"{file}: {d.get('name')}: unknown entrypoint {d.get('entrypoint')!r}; it should be one of {list(FLOWS)}"
            )
        schedules = [
            Interval(every) if every else Cron(s["cron"], timezone=s.get("timezone")) for s in d.get("schedules") or []
        ]
        deployment = FLOWS[d["entrypoint"]].to_deployment(
            d["name"],
            description=d.get("description"),
            parameters=d.get("parameters"),
            schedules=schedules,
            concurrency_limit=ConcurrencyLimitConfig.model_validate(d["concurrency_limit"]),
        )
        assert isinstance(deployment, RunnerDeployment), "not a coroutine: nothing here is asynchronous"
        made.append(deployment)
    return made


def keep_paused(made: Sequence[RunnerDeployment]) -> list[str]:
    """Pause in ``made`` what people have paused on the server, which serving would make active again; the names of those.

    A schedule that has changed since counts as paused where all of its deployment's were.
    """
    kept = []
    with get_client(sync_client=True) as client:
        for deployment in made:
            name = f"{deployment.flow_name}/{deployment.name}"
            try:
                known = client.read_deployment_by_name(name)
            except ObjectNotFound:
                continue
            paused = [s.schedule for s in known.schedules if not s.active]
            all_paused = bool(paused) and len(paused) == len(known.schedules)
            schedules = [s for s in deployment.schedules or () if all_paused or s.schedule in paused]
            for one in schedules:
                one.active = False
            deployment.paused = known.paused
            if known.paused or schedules:
                kept.append(name)
    return kept


def recover(names: list[str], pending_s: float) -> list[str]:
    """Account for what a kill left of ``names`` (flow/deployment): the names of the runs that were set to Crashed.

    A run whose starter was killed before its process began has no process to be known by: it counts as lost after
    ``pending_s``. Then the overlap limits that no live run holds are given back, or every later night would be refused.
    """
    lost = reap()
    with get_client(sync_client=True) as client:
        for name in names:
            try:
                deployment = client.read_deployment_by_name(name)
            except ObjectNotFound:
                continue
            runs = client.read_flow_runs(
                flow_run_filter=FlowRunFilter(
                    deployment_id=FlowRunFilterDeploymentId(any_=[deployment.id]),
                    state=FlowRunFilterState(name=None, type=FlowRunFilterStateType(any_=UNFINISHED)),
                )
            )
            alive = [run for run in runs if not _never_began(run, pending_s)]
            for run in runs:
                if run not in alive:
                    client.set_flow_run_state(run.id, Crashed(message="its starter was killed before it began"))
                    lost.append(str(run.name))
            if not alive:
                _free_slots(client, deployment.id)
    return lost


def _never_began(run: FlowRun, pending_s: float) -> bool:
    if run.state is None or run.state_type != StateType.PENDING or "protege.pid" in run.labels:
        return False
    return (datetime.now(UTC) - run.state.timestamp).total_seconds() >= pending_s


def _free_slots(client: SyncPrefectClient, deployment_id: UUID) -> None:
    try:
        client.request(
            "PATCH",
            "/v2/concurrency_limits/{id_or_name}",
            path_params={"id_or_name": f"deployment:{deployment_id}"},
            json={"active_slots": 0},
        )
    except ObjectNotFound:
        pass
    except HTTPStatusError as error:
        if error.response.status_code != 404:
            raise


def _tell(lost: list[str]) -> None:
    if lost:
        print(
            f"serve: set {len(lost)} run(s) that no process runs any more to Crashed or Cancelled: {', '.join(lost)}",
            flush=True,
        )


_LOST: list[ProtegeError] = []


def _server_lost(error: ProtegeError) -> None:
    """End with a status that systemd acts on. Without a server the runner may take minutes to end by itself."""
    _LOST.append(error)
    print(f"serve: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    notify(f"`make serve` has ended: {error}", "no night runs until it is started again", "", outcome="crashed")
    os.kill(os.getpid(), signal.SIGINT)
    end = threading.Timer(END_S, os._exit, [INFRASTRUCTURE_FAILED])
    end.daemon = True
    end.start()


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.serve")
    parser.add_argument(
        "--every", type=float, metavar="S", help="an interval in seconds in place of the cron schedules"
    )
    parser.add_argument("--recover", action="store_true", help="only account for runs whose process is gone")
    asked = parser.parse_args(argv)
    # for a server that is started here: the overlap limit's leases outlive it, else a restart would crash the night
    os.environ.setdefault(
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE", "prefect.server.concurrency.lease_storage.filesystem"
    )
    try:
        load()
        made = deployments(asked.every)
        url = ensure()
        with temporary_settings({PREFECT_API_URL: url}):
            names = [f"{d.flow_name}/{d.name}" for d in made]
            if asked.recover:  # other workers may be about to start a run
                _tell(recover(names, PENDING_S))
                return 0
            print(f"serve: {', '.join(d.name for d in made)}; Prefect UI {ui(url)}; Ctrl-C ends it", flush=True)
            with only_run("serve"), watched(url, _server_lost):
                _tell(recover(names, 0))
                for name in keep_paused(made):
                    print(f"serve: {name} stays paused, as it was set; resume it in the UI", flush=True)
                # not paused when this process ends: a night that was missed is made up for, once, when it comes back
                serve(*made, limit=AT_ONCE, pause_on_shutdown=False, print_starting_message=False)
                if _LOST:
                    return INFRASTRUCTURE_FAILED
    except ProtegeError as error:
        print(f"serve: {type(error).__name__}: {error}", file=sys.stderr)
        return INPUT_FAILED if error.boundary == "input" else INFRASTRUCTURE_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
