"""Run by test_recovery.py in a project's folder, with an engine of its own: attempts whose sandboxes are removed.

Prints one JSON object. The policy of each attempt is the saboteur: between two of its turns it kills its own container,
restarts the engine, or stops it for good, as its instance's id says.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.task_runners import ThreadPoolTaskRunner

import tasks  # noqa: F401  (sets Prefect's environment)
from protege.agent.tools import render_call
from protege.config import AgentParams, SandboxParams
from protege.core.instance import Instance
from protege.core.trajectory import Identity, Message, ToolCall
from protege.datasets.load import load_instances
from protege.policy.base import Completion
from protege.sandbox.base import Sandbox
from protege.sandbox.docker import DockerProvider
from tasks.evaluation import summary
from tasks.progress import Progress
from tasks.units import Attempt, Bench, Outcome, run_attempts
from tests.infra.engine_fixture import Engine

engine = Engine(sys.argv[1])
rows = {row.instance_id.rpartition("-")[2]: row for row in load_instances(Path("instances.jsonl"))}
started: Counter[str] = Counter()
restarted = threading.Lock()
restarts: list[float] = []


class Watched(DockerProvider):
    """Remembers which container it gave to whom."""

    opened: defaultdict[str, list[str]] = defaultdict(list)

    def open(self, instance: Instance) -> Sandbox:
        sandbox = super().open(instance)
        self.opened[instance.instance_id].append(sandbox.id)
        return sandbox


def restart_once() -> None:
    with restarted:
        if not restarts:
            began = time.monotonic()
            engine.restart()
            restarts.append(time.monotonic() - began)


def kill_first_grading() -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for item in provider.client.api.containers(filters={"label": "protege.kind=grade"}):
            if "calc-grade" in item["Names"][0]:
                provider.client.api.kill(item["Id"])
                return
        time.sleep(0.02)


class Saboteur:
    identity = Identity(name="saboteur", digest="0", kind="scripted")

    def start(self, instance: Instance, seed: int) -> Session:
        started[instance.instance_id.rpartition("-")[2]] += 1
        return Session(instance)


class Session:
    def __init__(self, instance: Instance) -> None:
        self.instance, self.what = instance, instance.instance_id.rpartition("-")[2]
        self.turn = 0

    def step(self, new_messages: Sequence[Message]) -> Completion:
        self.turn += 1
        if self.turn == 1:
            return self.say("bash", command="echo begun > /tmp/begun; sleep 0.3")
        if self.turn == 2:
            self.sabotage()
            return self.say("bash", command="sed -i 's/a - b/a + b/' calc.py; sleep 0.3")
        if self.what == "grade" and started["grade"] == 1:
            threading.Thread(target=kill_first_grading, daemon=True).start()
        return self.say("submit")

    def sabotage(self) -> None:
        if self.what == "always" or (self.what == "once" and started["once"] == 1):
            provider.client.api.kill(provider.opened[self.instance.instance_id][-1])
        elif self.what.startswith("restart"):
            restart_once()
        elif self.what == "gone":
            engine.stop()

    def say(self, tool: str, **arguments: str) -> Completion:
        return Completion(render_call(ToolCall(name=tool, arguments=arguments)))

    def tokens(self) -> None:
        return None


params = SandboxParams(memory_mb=256, pids=64, command_timeout_s=20, grade_timeout_s=60, lifetime_s=600)
provider = Watched(params)
bench = Bench(provider, AgentParams(time_limit_s=120), params, retries=2, patience_s=10)


@flow(validate_parameters=False)
def under_fire(names: list[str], bench: Bench) -> list[Outcome]:
    attempts = [Attempt(name, rows[name], Saboteur(), None, 1) for name in names]
    return run_attempts(attempts, bench, Progress("test", len(attempts)))


outcomes: list[Outcome] = []
runner = ThreadPoolTaskRunner(max_workers=4)
for wave in (["fine", "once", "always", "grade"], ["restart1", "restart2"]):
    outcomes += under_fire.with_options(task_runner=runner)(wave, bench)
hurried = replace(bench, patience_s=1, retries=1)
for wave in (["gone"], ["down"]):
    outcomes += under_fire.with_options(task_runner=runner)(wave, hurried)

result: dict[str, dict[str, object]] = {}
with get_client(sync_client=True) as client:
    for outcome in outcomes:
        t = outcome.trajectory
        run = client.read_task_run(outcome.task_run_id)
        result[t.trajectory_id] = {
            "exit": t.exit_status,
            "resolved": t.resolved,
            "verdict": t.verdict is not None,
            "failure": t.failure.model_dump() if t.failure else None,
            "task_runs": run.run_count,
            "rollouts": started[t.trajectory_id],
        }
counts = summary(outcomes)
Path("masked.json").write_text(
    json.dumps([o.trajectory.model_dump(mode="json") for o in outcomes if o.trajectory.failure]), encoding="utf-8"
)
print(json.dumps({"outcomes": result, "summary": counts, "restarts": restarts}))
