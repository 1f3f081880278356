"""Run by test_server.py against a real Prefect server: three attempts, of which one is finished already."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.task_runners import ThreadPoolTaskRunner

import tasks  # noqa: F401  (sets Prefect's environment)
from protege.config import AgentParams, SandboxParams
from protege.core.instance import Instance
from protege.core.trajectory import Trajectory, Verdict, patch_digest
from protege.desk.teacher import ScriptedTeacher
from protege.errors import SandboxDied, SandboxUnavailable
from protege.files import Store
from protege.sandbox.base import Sandbox
from tasks.keys import grade_key
from tasks.progress import Progress
from tasks.units import Attempt, Bench, run_attempts


class NoSandbox:
    """A provider whose engine is down, for good or for now."""

    backend = "docker"

    def __init__(self) -> None:
        self.opened: Counter[str] = Counter()

    def open(self, instance: Instance) -> Sandbox:
        self.opened[instance.instance_id] += 1
        if instance.instance_id == "hopeless":
            raise SandboxUnavailable("no engine")
        raise SandboxDied("the engine hung up")

    def check(self, instances: list[Instance]) -> None: ...

    def image_digest(self, instance: Instance) -> str:
        return "sha256:1"


def instance(name: str) -> Instance:
    return Instance(
        instance_id=name,
        repo="r",
        base_commit="c",
        problem_statement="p",
        patch="",
        test_patch="",
        FAIL_TO_PASS=(),
        PASS_TO_PASS=(),
        image="i",
        eval_script="",
        log_parser="pytest",
    )


provider, teacher = NoSandbox(), ScriptedTeacher()
bench = Bench(provider, AgentParams(), SandboxParams(warm=0), retries=1, store=Store(Path("store")))
attempts = {name: Attempt(name, instance(name), teacher, None, 1) for name in ("finished", "broken", "hopeless")}

done = attempts["finished"]
trajectory = Trajectory(
    trajectory_id="under another name",
    instance_id="finished",
    instance_digest=done.instance.digest,
    repo="r",
    policy=teacher.identity,
    expert=None,
    seed=1,
    messages=[],
    turns=[],
    exit_status="submitted",
    patch="a patch",
)
verdict = Verdict(
    instance_id="finished",
    instance_digest=done.instance.digest,
    patch_digest=patch_digest("a patch"),
    resolved=True,
    applied=True,
)
bench.store.put("trajectory", done.key(bench), trajectory.model_dump(mode="json"))
bench.store.put(
    "verdict",
    grade_key(done.instance, "a patch", "sha256:1", bench.sandbox, "docker"),
    verdict.model_dump(mode="json"),
)


@flow
def three() -> list:
    return run_attempts(list(attempts.values()), bench, Progress("test", 3))


outcomes = {
    o.trajectory.trajectory_id: o for o in three.with_options(task_runner=ThreadPoolTaskRunner(max_workers=3))()
}
result: dict[str, object] = {}
with get_client(sync_client=True) as client:
    for name, outcome in outcomes.items():
        run = client.read_task_run(outcome.task_run_id)
        t = outcome.trajectory
        assert run.name == name
        said: dict[str, object] = {"exit": t.exit_status, "state": run.state_name, "runs": run.run_count}
        if t.failure:
            said |= {"boundary": t.failure.boundary, "attempts": t.failure.attempts}
        else:
            said |= {"resolved": t.resolved, "cached": outcome.cached}
        result[name] = said
    pages = client.read_artifacts()
result["artifacts"] = sorted({p.key for p in pages if p.key})
result["page"] = max((p for p in pages if p.key == "failure-broken"), key=lambda p: p.created).data
result["opened"] = dict(provider.opened)
result["stored"] = len(list(Path("store/trajectory").rglob("*.json")))
print(json.dumps(result))
