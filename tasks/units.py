"""One attempt at one instance (roll out, then grade in a fresh sandbox) as a retryable, cached Prefect task.

Both halves are kept in the content-addressed Store as soon as they are done, so that a killed stage does
only what is missing. Prefect shows an attempt whose halves were both found there as ``Cached``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.futures import as_completed
from prefect.states import Completed
from prefect.tasks import exponential_backoff

from protege.agent.loop import roll_out
from protege.config import AgentParams, SandboxParams
from protege.core.instance import Instance
from protege.core.trajectory import Failure, Trajectory, Verdict
from protege.errors import ProtegeError, SandboxError
from protege.expert.base import Expert
from protege.expert.judge import Judge, judged
from protege.files import Store
from protege.grading.grade import grade
from protege.policy.base import Policy
from protege.sandbox.bubblewrap import BubblewrapProvider
from protege.sandbox.docker import DockerProvider
from protege.sandbox.pool import WarmPool
from tasks.failures import Circumstances, report_failure, worth_retrying
from tasks.keys import grade_key, rollout_key
from tasks.progress import Progress
from tasks.runner import Opaque, in_worker_processes, keeping_ready, waits_for
from tasks.settings import HOME

BACKOFF_S = 2


@dataclass(frozen=True)
class Bench:
    """What every attempt of a stage shares. ``patience_s``: how long a failed attempt waits for an engine that is away."""

    provider: DockerProvider | BubblewrapProvider
    agent: AgentParams
    sandbox: SandboxParams
    retries: int
    store: Store = field(default_factory=lambda: Store(HOME / "store"))
    logs: Path = HOME / "logs" / "grading"
    pool: WarmPool | None = None
    patience_s: float = 60.0


@dataclass(frozen=True)
class Attempt:
    """One rollout to be done.

    ``deciding`` is what else decides its outcome (sampling temperature, …); ``prepare`` is called before a
    rollout that is really done, each time (it sees to the model server).
    """

    trajectory_id: str
    instance: Instance
    policy: Policy
    expert: Expert | None
    seed: int
    judge: Judge | None = None
    deciding: dict[str, object] = field(default_factory=dict)
    prepare: Callable[[], None] = lambda: None

    def key(self, bench: Bench) -> str:
        return rollout_key(
            self.instance,
            bench.provider.image_digest(self.instance),
            self.policy.identity,
            self.expert.identity if self.expert else None,
            self.judge.identity if self.judge else None,
            bench.agent,
            bench.sandbox,
            bench.provider.backend,
            self.seed,
            self.deciding,
        )


@dataclass(frozen=True)
class Outcome:
    """A trajectory with its verdict (or its infrastructure failure), and the Prefect task run it came from."""

    trajectory: Trajectory
    task_run_id: str
    cached: bool


def stored_rollout(attempt: Attempt, bench: Bench) -> Trajectory | None:
    """The finished rollout, under this attempt's name, or None."""
    return _stored("trajectory", attempt, bench)


def _stored(kind: str, attempt: Attempt, bench: Bench) -> Trajectory | None:
    found = bench.store.get(kind, attempt.key(bench))
    return Trajectory.model_validate({**found, "trajectory_id": attempt.trajectory_id}) if found is not None else None


def _known_rollout(attempt: Attempt, bench: Bench) -> Trajectory | None:
    """:func:`stored_rollout`, or None while the engine, which names the image, is away."""
    try:
        return stored_rollout(attempt, bench)
    except SandboxError:
        return None


def _rolled_out(attempt: Attempt, bench: Bench) -> tuple[Trajectory, bool]:
    if (found := stored_rollout(attempt, bench)) is not None:
        return found, True
    # kept before it is judged: a judge that fails, or another judge, must not cost the rollout
    unjudged = replace(attempt, judge=None)
    trajectory = _stored("rollout", unjudged, bench)
    if trajectory is None:
        attempt.prepare()
        trajectory = roll_out(
            attempt.instance,
            attempt.policy,
            attempt.expert,
            bench.pool or bench.provider,
            bench.agent,
            attempt.seed,
            trajectory_id=attempt.trajectory_id,
            command_timeout_s=bench.sandbox.command_timeout_s,
        )
        bench.store.put("rollout", unjudged.key(bench), trajectory.model_dump(mode="json"))
    if attempt.judge is not None:
        trajectory = judged(trajectory, attempt.judge)
    bench.store.put("trajectory", attempt.key(bench), trajectory.model_dump(mode="json"))
    return trajectory, False


def _graded(instance: Instance, patch: str, bench: Bench) -> tuple[Verdict, bool]:
    key = grade_key(instance, patch, bench.provider.image_digest(instance), bench.sandbox, bench.provider.backend)
    if (found := bench.store.get("verdict", key)) is not None:
        return Verdict.model_validate(found), True
    verdict = grade(instance, patch, bench.provider, log_dir=bench.logs)
    bench.store.put("verdict", key, verdict.model_dump(mode="json"))
    return verdict, False


@task(
    name="attempt",
    retry_condition_fn=worth_retrying,
    persist_result=False,
    cache_policy=NO_CACHE,
)
def attempt_task(opaque_attempt: Opaque[Attempt], opaque_bench: Opaque[Bench]) -> Any:
    """Roll out and grade; the value is a Trajectory with its Verdict."""
    attempt, bench = opaque_attempt.value, opaque_bench.value
    try:
        trajectory, found = _rolled_out(attempt, bench)
        verdict, known = _graded(attempt.instance, trajectory.patch, bench)
    except ProtegeError as error:
        report_failure(attempt.trajectory_id, error, bench.retries, _circumstances(attempt, bench))
        if error.boundary == "sandbox":
            _await_engine(bench)
        raise
    graded = trajectory.model_copy(update={"verdict": verdict})
    return Completed(name="Cached", data=graded) if found and known else graded


def _circumstances(attempt: Attempt, bench: Bench) -> Circumstances:
    instance = attempt.instance
    try:
        image, partial = bench.provider.image_digest(instance), stored_rollout(attempt, bench)
    except ProtegeError as error:
        return Circumstances(instance.instance_id, f"unknown: {error}", "")
    return Circumstances(instance.instance_id, image, partial.patch if partial else "")


def _await_engine(bench: Bench) -> None:
    """Return when the engine answers or ``bench.patience_s`` is over: a restart would else outlast all retries."""
    client = getattr(bench.provider, "client", None)
    deadline = time.monotonic() + bench.patience_s
    while client is not None and time.monotonic() < deadline:
        try:
            client.ping()
            return
        except Exception:  # whatever it is, the engine does not answer
            time.sleep(0.5)


def masked(attempt: Attempt, error: ProtegeError, attempts: int, bench: Bench) -> Trajectory:
    """What stands for an attempt that infrastructure kept from ending: counted apart, never scored, never stored."""
    boundary = error.boundary
    assert boundary != "input", "bad input stops the stage"
    failure = Failure(boundary=boundary, error=type(error).__name__, message=str(error), attempts=attempts)
    partial = _known_rollout(attempt, bench)  # there when only the grading failed
    if partial is not None:
        return partial.model_copy(update={"exit_status": "infrastructure", "failure": failure})
    return Trajectory(
        trajectory_id=attempt.trajectory_id,
        instance_id=attempt.instance.instance_id,
        instance_digest=attempt.instance.digest,
        repo=attempt.instance.repo,
        policy=attempt.policy.identity,
        expert=attempt.expert.identity if attempt.expert else None,
        seed=attempt.seed,
        messages=[],
        turns=[],
        exit_status="infrastructure",
        failure=failure,
        sandbox_backend=bench.provider.backend,
    )


def retrying(retries: int) -> Any:
    """The attempt as a task that is tried ``retries`` more times, after 2, 4, 8 … s."""
    # Prefect works the delays out for the number of retries that stands beside them: with none there would be none
    return attempt_task.with_options(
        retries=retries, retry_delay_seconds=exponential_backoff(BACKOFF_S), retry_jitter_factor=0.5
    )


def run_attempts(attempts: Sequence[Attempt], bench: Bench, progress: Progress) -> list[Outcome]:
    """All attempts on the flow's task runner, in the order given; to be called inside a flow.

    An attempt that fails for infrastructure reasons after its retries comes back masked; bad input and
    defects of ours end the stage.
    """
    if in_worker_processes():
        return _run_in_workers(attempts, bench, progress)
    with WarmPool(bench.provider, bench.sandbox) as pool:
        pool.plan([a.instance for a in attempts if _known_rollout(a, bench) is None])
        return _run_attempts(attempts, replace(bench, pool=pool), progress)


def _run_in_workers(attempts: Sequence[Attempt], bench: Bench, progress: Progress) -> list[Outcome]:
    """In other processes, which share this one's files and model server but neither its pool nor its handles."""
    shared = replace(bench, pool=None, store=Store(bench.store.root.absolute()), logs=bench.logs.absolute())
    unknown = [a.prepare for a in attempts if _known_rollout(a, bench) is None]
    with keeping_ready(unknown, HOME / "run") as token:
        theirs = [replace(a, prepare=waits_for(a.policy, token)) for a in attempts]
        return _run_attempts(theirs, shared, progress)


def _run_attempts(attempts: Sequence[Attempt], bench: Bench, progress: Progress) -> list[Outcome]:
    task_ = retrying(bench.retries)
    futures = {
        task_.with_options(task_run_name=a.trajectory_id).submit(Opaque(a), Opaque(bench)): index
        for index, a in enumerate(attempts)
    }
    outcomes: dict[int, Outcome] = {}
    for future in as_completed(list(futures)):
        index = futures[future]
        attempt = attempts[index]
        result = future.result(raise_on_failure=False)
        if isinstance(result, Trajectory):
            trajectory, cached = result, future.state.name == "Cached"
        elif isinstance(result, ProtegeError) and result.boundary != "input":
            trajectory = masked(attempt, result, 1 + bench.retries if result.retryable else 1, bench)
            cached = False
        elif isinstance(result, BaseException):
            raise result
        else:
            raise TypeError(f"{attempt.trajectory_id}: the task returned {type(result).__name__}")
        outcomes[index] = Outcome(trajectory, str(future.task_run_id), cached)
        progress.step(attempt.trajectory_id, describe(trajectory) + (" (cached)" if cached else ""))
    return [outcomes[index] for index in range(len(attempts))]


def describe(trajectory: Trajectory) -> str:
    """One phrase for a progress line."""
    if trajectory.failure:
        return (
            f"infrastructure failure at the {trajectory.failure.boundary} boundary: {trajectory.failure.message[:120]}"
        )
    calls = sum(call.answered for call in trajectory.expert_calls)
    verdict = "resolved" if trajectory.resolved else "not resolved"
    return f"{verdict}, {trajectory.exit_status}, {len(trajectory.turns)} steps, {calls} expert calls, {trajectory.seconds:.0f} s"
