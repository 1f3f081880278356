"""The night: every DVC stage through DVC, then the champion is kept or replaced, and people are told.

python -m flows.nightly [--night 2026-11-22]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from prefect import Flow, State, flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import CancelledRun
from prefect.flow_engine import run_flow
from prefect.runtime import flow_run
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelled
from prefect.tasks import exponential_backoff

from protege.config import Params, load
from protege.errors import BadInput, ProtegeError
from protege.policy.model_folder import model_digest
from protege.report.metrics import System
from tasks import dvcstages, housekeeping, nightpage, promotion
from tasks.child import PATIENCE_S
from tasks.failures import worth_retrying
from tasks.nights import Night, begin, now, seed_params, unfinished
from tasks.notify import link, notify
from tasks.progress import outlive_reader, say
from tasks.runs import create_run, heed_cancel, label_run, name_run, reap
from tasks.server import ensure, ui
from tasks.stage import INFRASTRUCTURE_FAILED, INPUT_FAILED, StillRuns, ended, only_run


def tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """The hook of a run that failed or crashed: the message goes out all the same."""
    try:
        night = unfinished() if flow.name == "nightly" else None
    except BadInput:  # the record is what failed it, as the state says
        night = None
    done = ", ".join(f"{name} {outcome}" for name, outcome in night.stages.items()) if night else ""
    what = "crashed" if state.is_crashed() else "failed"
    whose = f"Night of {night.night}" if night else f"Run {flow_run.name} of {flow.name}"
    notify(f"{whose}: {what}: {state.message}", done, link(str(flow_run.id)), outcome=what)


def alone(work: Callable[[Callable[[str], None]], State[Any]]) -> State[Any]:
    """What ``work`` returns, or Cancelled where another night runs: that is no failure, and nobody is woken for it."""
    try:
        with only_run("nightly") as write:
            return work(write)
    except StillRuns as error:
        pid, _, doing = error.holder.partition(" ")
        return Cancelled(message=f"refused: {doing or 'another night'} still runs (process {pid or 'unknown'})")


@flow(name="nightly", on_failure=[tell_failure], on_crashed=[tell_failure])
def nightly(night: str | None = None) -> State[Any]:
    """Run the night of date ``night`` (default: one that was cut off lately, else today's); its state says the verdict."""
    outlive_reader()
    label_run(str(flow_run.id))
    params = load()
    promotion.check_params(params)

    def work(write: Callable[[str], None]) -> State[Any]:
        lost = reap([str(flow_run.id)])
        if lost:
            say(
                "nightly",
                f"set {len(lost)} earlier run(s) whose process is gone to Crashed or Cancelled: {', '.join(lost)}",
            )
        p = params.nightly
        record = begin(night, p.timezone, p.fresh, p.window)
        write(f"the night of {record.night}")
        name_run(str(flow_run.id), f"night of {record.night}")
        say("nightly", f"night of {record.night}, instances.seed {record.seed if p.fresh else params.instances.seed}")
        seed_params(record.seed, record.earlier)
        seeded = load()
        try:
            _run_stages(seeded, dvcstages.stage_order(), record)
            record.keep_files()
            verdict = settle(seeded, record)
        finally:
            nightpage.publish(record.night, str(flow_run.id))
        notes = keep_house(seeded)
        if not record.told:
            text = promotion.table(record.decided or {}) + "".join(f"- {n}\n" for n in notes)
            record.told = notify(verdict, text, link(str(flow_run.id)), night=record.night, outcome="finished")
        record.finished = now()
        record.save()
        return ended("nightly", verdict)

    return alone(work)


@flow(name="stages", on_failure=[tell_failure], on_crashed=[tell_failure])
def stages(targets: list[str]) -> State[Any]:
    """The stages that ``targets`` need, through DVC, on the params.yaml as it is: no new instances, no promotion."""
    outlive_reader()
    label_run(str(flow_run.id))
    name_run(str(flow_run.id), f"stages {', '.join(targets)}")
    params = load()

    def work(write: Callable[[str], None]) -> State[Any]:
        write(f"the run of {', '.join(targets)}")
        reap([str(flow_run.id)])
        _run_stages(params, dvcstages.stage_order(targets), None)
        return ended("stages", f"{', '.join(targets)}: done")

    return alone(work)


def _run_stages(params: Params, order: list[str], record: Night | None) -> None:
    p = params.nightly
    run = dvcstages.retrying(p.retries, p.backoff_s)
    for stage in order:
        try:
            # the task returns a State, and the caller would get that
            state = run.with_options(task_run_name=f"dvc {stage}")(stage, p.retries, return_state=True)
            outcome = state.result()
        except ProtegeError as error:
            if record:
                record.failed = str(error)
                record.outcome(stage, "failed")
                record.keep_files()
            raise
        if record:
            record.outcome(stage, outcome)


@task(
    name="evaluate the champion",
    persist_result=False,
    cache_policy=NO_CACHE,
    retry_condition_fn=worth_retrying,
)
def champion_task(params: Params) -> System:
    return promotion.evaluate_champion(params.nightly)


def settle(params: Params, record: Night) -> str:
    """Decide once, then promote; a night that was cut off in between only does what is missing. Returns the verdict."""
    p = params.nightly
    candidate = promotion.MODELS / p.model
    digest = model_digest(candidate)
    if record.decided is None or record.decided["candidate"]["digest"] != digest:
        was = promotion.champion_digest()
        champion = None
        if was not in (None, digest):
            champion = champion_task.with_options(
                retries=p.retries, retry_delay_seconds=exponential_backoff(p.backoff_s)
            )(params)
        decision, record.decided = promotion.judge(params, champion, was)
        record.save()
        create_markdown_artifact(
            promotion.page(record.night, decision, record.decided),
            key="nightly",
            description=f"{decision.headline}: {'; '.join(decision.reasons)}",
        )
    if record.decided["promote"]:
        promotion.promote(candidate, record.night, record.decided)
        record.promoted = True
        record.save()
    kept = "there is still no champion" if record.decided.get("base") else "the champion stays"
    what = "the new model is the champion" if record.promoted else kept
    return f"Night of {record.night}: {what}: {'; '.join(record.decided['reasons'])}"


def keep_house(params: Params) -> list[str]:
    """Track, push, shrink. Nothing here fails the night: what went wrong is a line of the message."""
    p = params.nightly
    address = dvcstages.remote_address(p.remote)
    notes: list[str] = []

    def do(name: str, step: Callable[[], str | None]) -> bool:
        try:
            said, good = step(), True
        except (ProtegeError, OSError) as error:
            said, good = f"{type(error).__name__}: {error}", False
        if said:
            notes.append(f"{name}: {said}")
            say("nightly", notes[-1])
        return good

    do("champion tracked by DVC", promotion.track)
    pushed = bool(address) and do("push", lambda: dvcstages.transfer("push", address))
    do("DVC's cache", lambda: dvcstages.collect_garbage(p.gc, pushed))
    do("images", lambda: housekeeping.prune_images(params.sandbox))
    do("old logs and units of work", lambda: housekeeping.prune_files(p.keep_days))
    return notes


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m flows.nightly", description="Run a night now.")
    parser.add_argument("--night", help="its date (2026-11-22); default: one that was cut off lately, else today's")
    asked = parser.parse_args(argv).night
    try:
        load()
        url = ensure()
        print(f"nightly: Prefect UI {ui(url)}", flush=True)
        with temporary_settings({PREFECT_API_URL: url}):
            given = {"night": asked}
            run = create_run(nightly, given)
            with heed_cancel(run, 3 * PATIENCE_S):  # its stage is given some time, too
                run_flow(nightly, flow_run=run, parameters=given)
    except CancelledRun as error:
        print(f"nightly: {error}", file=sys.stderr, flush=True)
        return INPUT_FAILED
    except ProtegeError as error:
        print(f"nightly: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return INPUT_FAILED if error.boundary == "input" else INFRASTRUCTURE_FAILED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
