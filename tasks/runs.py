"""Flow runs that know their process: created as children of the night's run, and set to Crashed when their process is gone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

from prefect import Flow, Task
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import FlowRunCreate
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRunPolicy, State, StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Crashed, Pending, to_state_create

from tasks.lineage import gone, machine, this_process
from tasks.settings import HOME

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

PARENT = "PROTEGE_PARENT_RUN"
"""Environment variable: the id of the flow run whose child the next stage's run is."""
STANDS_FOR_CHILD = "stage"
"""Tag of a task run that stands for a child run in its parent and only repeats the child's state."""
_PAGE = 200
UNFINISHED = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]


def create_run(flow: Flow[Any, Any], parameters: dict[str, Any], called: str = "") -> FlowRun:
    """A pending run of ``flow`` that carries this process as labels; a child of the run in $PROTEGE_PARENT_RUN if there is one.

    Its name is the flow's and ``called``, after the parent's: "night of 2026-11-22: evaluate champion with oracle".

    The labels are part of the creation: there is no instant at which a kill would leave a run that nobody can account for.
    """
    with get_client(sync_client=True) as client:
        parent = os.environ.get(PARENT)
        name = f"{flow.name} {called}".strip()
        body = FlowRunCreate(
            name=f"{client.read_flow_run(UUID(parent)).name}: {name}" if parent else name,
            flow_id=client.create_flow(flow),
            parameters=flow.serialize_parameters(parameters),
            parent_task_run_id=_tracker(client, flow, UUID(parent)) if parent else None,
            state=to_state_create(Pending()),
            empirical_policy=FlowRunPolicy(retries=flow.retries or 0),
            labels=own_labels(),
        )
        answer = client.request("POST", "/flow_runs/", json=body.model_dump(mode="json", exclude_unset=True))
        return client.read_flow_run(UUID(answer.json()["id"]))


def _tracker(client: SyncPrefectClient, flow: Flow[Any, Any], parent: UUID) -> UUID:
    """The task run that stands for the child in its parent; the server keeps its state like the child's."""
    task: Task[..., Any] = Task(name=flow.name, fn=flow.fn)
    made = client.create_task_run(
        task,
        flow_run_id=parent,
        dynamic_key=str(uuid4()),
        name=flow.name,
        state=Pending(),
        extra_tags=[STANDS_FOR_CHILD],
    )
    return made.id


def stage_environment(**more: str) -> dict[str, str]:
    """The environment of a process that this flow run starts: the same server, and the run as its parent."""
    # what Prefect tells a process of its own run must not reach another run's
    env = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT__")}
    if (url := PREFECT_API_URL.value()) is not None:
        env["PREFECT_API_URL"] = str(url)
    if own := flow_run.id:
        env[PARENT] = str(own)
    return {**env, **more}


def own_labels() -> dict[str, Any]:
    return {"protege.home": str(HOME.resolve()), **{f"protege.{k}": v for k, v in this_process().items()}}


def label_run(flow_run_id: str) -> None:
    """Put this process into the labels of a run that a schedule created."""
    with get_client(sync_client=True) as client:
        client.update_flow_run_labels(UUID(flow_run_id), own_labels())


def name_run(flow_run_id: str, name: str) -> None:
    """Give a run that a schedule created, under a random name, its own."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(UUID(flow_run_id), name=name)


def reap(others_than: Sequence[str] = ()) -> list[str]:
    """Set this project's unfinished runs on this machine whose process is gone to Crashed, with their tasks; returns names.

    A run of another machine, of another project, or without labels is left alone.
    """
    reaped = []
    with get_client(sync_client=True) as client:
        for run in _unfinished(client):
            labels = _labels(run)
            if not _ours(run) or str(run.id) in others_than or not gone(labels):
                continue
            state: State[Any] = Crashed(
                message=f"its process {labels['pid']} on {labels['machine']} is gone; found by the next start"
            )
            client.set_flow_run_state(run.id, state, force=run.state_type == StateType.PAUSED)
            _crash_tasks(client, run.id)
            reaped.append(str(run.name))
        for run in _ended_with_tasks(client):
            if _ours(run) and gone(_labels(run)):
                _crash_tasks(client, run.id)
    return reaped


def _labels(run: FlowRun) -> dict[str, Any]:
    return {k.removeprefix("protege."): v for k, v in run.labels.items() if k.startswith("protege.")}


def _ours(run: FlowRun) -> bool:
    labels = _labels(run)
    return labels.get("machine") == machine() and labels.get("home") == str(HOME.resolve())


def _ended_with_tasks(client: SyncPrefectClient) -> list[FlowRun]:
    """Runs that are over, of which Prefect takes a task for living: an interrupted flow says its own state, not all of theirs."""
    over = FlowRunFilter(
        state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CRASHED, StateType.FAILED]))
    )
    living = TaskRunFilter(state=TaskRunFilterState(name=None, type=TaskRunFilterStateType(any_=UNFINISHED)))
    tasks = client.read_task_runs(flow_run_filter=over, task_run_filter=living, limit=_PAGE)
    return [client.read_flow_run(found) for found in {task.flow_run_id for task in tasks} if found is not None]


def _unfinished(client: SyncPrefectClient) -> list[FlowRun]:
    wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=UNFINISHED)))
    found: list[FlowRun] = []
    while len(page := client.read_flow_runs(flow_run_filter=wanted, limit=_PAGE, offset=len(found))) == _PAGE:
        found += page
    return [*found, *page]


def _crash_tasks(client: SyncPrefectClient, flow_run_id: UUID) -> None:
    runs = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    wanted = TaskRunFilter(state=TaskRunFilterState(name=None, type=TaskRunFilterStateType(any_=UNFINISHED)))
    before: set[UUID] = set()
    while tasks := client.read_task_runs(flow_run_filter=runs, task_run_filter=wanted, limit=_PAGE):
        if before >= {task.id for task in tasks}:
            return  # the server will not have it; the flow run's state says enough
        before = {task.id for task in tasks}
        for task in tasks:
            client.set_task_run_state(task.id, Crashed(message="the process of its flow run is gone"), force=True)
