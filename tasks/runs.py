"""Flow runs that know their process: created as children of the night's run, and set to Crashed when their process is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from types import FrameType
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
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import Abort
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL
from prefect.states import Cancelled, Crashed, Pending, to_state_create

from protege.errors import Boundary, ProtegeError
from tasks.lineage import gone, machine, this_process
from tasks.settings import HOME

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

PARENT = "PROTEGE_PARENT_RUN"
"""Environment variable: the id of the flow run whose child the next stage's run is."""
STANDS_FOR_CHILD = "stage"
"""Tag of a task run that stands for a child run in its parent and only repeats the child's state."""
_PAGE = 200
LOOK_S = 5.0
"""So often a run's own state is read, for somebody may want it cancelled."""
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


class RunCancelled(ProtegeError):
    """Somebody has cancelled the run, in Prefect's UI or by its command. It is not tried again."""

    boundary: Boundary = "input"


class _CancelAsked(KeyboardInterrupt, Abort):
    """An interrupt for our code; for Prefect's engine an Abort, so that it does not call the run crashed."""


@contextmanager
def heed_cancel(run: FlowRun, patience_s: float) -> Iterator[None]:
    """Interrupt this process's work once ``run`` is set to Cancelling, then set it to Cancelled and raise RunCancelled.

    For a run that no runner of Prefect owns, which would do this. Work that is not over ``patience_s`` after the
    interrupt (a thread that waits) is killed. In the main thread only.
    """
    asked, over = threading.Event(), threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if asked.is_set() and not over.is_set():
            raise _CancelAsked
        if callable(before):
            before(number, frame)

    def watch() -> None:
        while not over.wait(LOOK_S):
            try:
                with get_client(sync_client=True) as client:
                    state = client.read_flow_run(run.id).state_type
            except Exception:  # a server that is away for a while; what else watches it says so
                continue
            if state == StateType.CANCELLING:
                asked.set()
                os.kill(os.getpid(), signal.SIGINT)
                if not over.wait(patience_s):
                    _set_cancelled(run)
                    os.kill(os.getpid(), signal.SIGKILL)
                return

    signal.signal(signal.SIGINT, interrupt)
    # with this context, which holds Prefect's settings
    threading.Thread(target=copy_context().run, args=(watch,), name="heeds a cancel", daemon=True).start()
    try:
        yield
    except BaseException:
        if not asked.is_set():
            raise
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
    if asked.is_set():
        _set_cancelled(run)
        raise RunCancelled(f"run {run.name} was cancelled in Prefect; what is done is kept")


def _set_cancelled(run: FlowRun) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelled(message="cancelled on request; its work has ended"), force=True)
        _crash_tasks(client, run.id)


def reap(others_than: Sequence[str] = ()) -> list[str]:
    """Set this project's unfinished runs on this machine whose process is gone to Crashed, with their tasks; returns names.

    One that was to be cancelled becomes Cancelled. What the server did not accept is not named. A run of another machine, of another project, or without labels is left alone.
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
            if asked := run.state_type == StateType.CANCELLING:  # from there the server takes nothing but Cancelled
                state = Cancelled(message=state.message)
            answer = client.set_flow_run_state(run.id, state, force=run.state_type == StateType.PAUSED)
            if answer.status != SetStateStatus.ACCEPT:  # it ended meanwhile, or the next start tries again
                continue
            _crash_tasks(client, run.id)
            reaped.append(f"{run.name} (Cancelled)" if asked else str(run.name))
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
