"""The night's page of what failed in it: an artifact of the night's own run, from which each failure is one click away."""

from __future__ import annotations

from dataclasses import dataclass
from uuid import UUID

from prefect.artifacts import create_markdown_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType, TaskRun
from prefect.client.schemas.sorting import FlowRunSort

from tasks.notify import link
from tasks.progress import say
from tasks.runs import STANDS_FOR_CHILD

KEY = "nightly-failures"
LISTED = 100
"""Failed task runs that the page names for one stage."""
_LOST = [StateType.FAILED, StateType.CRASHED]


@dataclass(frozen=True)
class StageRun:
    """A stage's run in this night (a stage that was tried again has several) and its failed task runs, at most LISTED."""

    run: FlowRun
    failed: list[TaskRun]


def stage_runs(client: SyncPrefectClient, night: UUID) -> list[StageRun]:
    """``night`` itself, then the runs that are its children, in the order in which they began."""
    children = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[night])),
        sort=FlowRunSort.START_TIME_ASC,
    )
    lost = TaskRunFilter(state=TaskRunFilterState(name=None, type=TaskRunFilterStateType(any_=_LOST)))
    found = []
    for run in [client.read_flow_run(night), *children]:
        own = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        tasks = client.read_task_runs(flow_run_filter=own, task_run_filter=lost, limit=LISTED)
        found.append(StageRun(run, [task for task in tasks if STANDS_FOR_CHILD not in task.tags]))
    return found


def page(night: str, stages: list[tuple[str, StageRun]], ui: str) -> str:
    """Markdown of :func:`stage_runs` with their names: what failed, each linked to its task run, then all runs."""
    failed = sum(len(stage.failed) for _, stage in stages)
    lines = [f"# Night of {night}: " + (f"{failed} failed" if failed else "nothing failed")]
    lines += ["", "Failures of infrastructure. A trajectory that does not resolve its instance is not one of them."]
    for name, stage in stages:
        if stage.failed:
            more = f" (the first {LISTED})" if len(stage.failed) == LISTED else ""
            lines += [
                "",
                f"## {name}: {len(stage.failed)} failed{more}",
                "",
                f"The run itself is {_ended(stage.run)}.",
                "",
            ]
            lines += [
                f"- [{task.name}]({ui}/runs/task-run/{task.id}): {_reason(task)}"
                for task in sorted(stage.failed, key=lambda t: t.name)
            ]
    lines += ["", "## Runs of the stages", ""]
    lines += [f"- [{name}]({ui}/runs/flow-run/{stage.run.id}) {_ended(stage.run)}" for name, stage in stages[1:]]
    if not stages[1:]:
        lines += ["None: nothing that a stage depends on has changed."]
    return "\n".join(lines) + "\n"


def _ended(run: FlowRun) -> str:
    said = f": {run.state.message}" if run.state and run.state.message and not run.state.is_completed() else ""
    return (run.state_name or "has no state").lower() + said.replace("\n", " ")[:300]


def _reason(task: TaskRun) -> str:
    message = (task.state.message if task.state else None) or ""
    first = next((line for line in message.splitlines() if line.strip()), "no message")
    tries = f" ({task.run_count} attempts)" if task.run_count > 1 else ""
    return first.removeprefix("Task run encountered an exception ")[:300] + tries


def publish(night: str, flow_run_id: str) -> None:
    """Make the page an artifact of the running flow. It never fails the night."""
    try:
        with get_client(sync_client=True) as client:
            found = stage_runs(client, UUID(flow_run_id))
        above = f"{found[0].run.name}: "
        named = [(stage.run.name.removeprefix(above), stage) for stage in found]
        failed = [f"{name} {len(stage.failed)}" for name, stage in named if stage.failed]
        ui = link("").removesuffix("/runs/flow-run/")
        create_markdown_artifact(
            page(night, named, ui), key=KEY, description=f"failed: {', '.join(failed)}" if failed else "nothing failed"
        )
    except Exception as error:  # whatever it is, the night is worth more than its page
        say("nightly", f"could not write the page of what failed: {type(error).__name__}: {error}")
