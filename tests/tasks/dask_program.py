"""Run by test_runner.py: the same attempts by threads and by a local Dask cluster, against a real Prefect server."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from prefect import flow

import tasks  # noqa: F401  (sets Prefect's environment)
from protege.agent.tools import render_call
from protege.config import AgentParams, RunnerParams, SandboxParams
from protege.core.trajectory import Identity, ToolCall
from protege.expert.judge import HeuristicJudge
from protege.expert.oracle import OracleExpert
from protege.files import Store
from protege.policy.base import Completion
from protege.sandbox.bubblewrap import BubblewrapProvider
from tasks.progress import Progress
from tasks.runner import task_runner
from tasks.units import Attempt, Bench, run_attempts
from tests.sandbox.tiny import make_tiny

EDIT = ToolCall(name="bash", arguments={"command": "sed -i 's/a - b/a + b/' calc.py"})
SUBMIT = ToolCall(name="submit", arguments={})


class Solver:
    """Mends the bug, and says in which process it works."""

    identity = Identity(name="solver", digest="1", kind="scripted")

    def start(self, instance, seed):
        return Session()


class Session:
    def __init__(self) -> None:
        self.calls = [EDIT, SUBMIT]

    def step(self, new_messages):
        return Completion(f"process {os.getpid()}\n{render_call(self.calls.pop(0))}")

    def tokens(self):
        return None


def prepared() -> None:
    with Path("prepared").open("a", encoding="utf-8") as log:
        log.write(f"{os.getpid()}\n")


def main() -> None:
    tiny = make_tiny(Path("tiny").absolute())
    provider = BubblewrapProvider(SandboxParams(), tiny.testbeds, tiny.site)
    result: dict[str, object] = {"flow": os.getpid()}
    for kind in ("threads", "dask"):
        store = Store(Path(f"store-{kind}"))
        bench = Bench(provider, AgentParams(step_limit=4), SandboxParams(warm=1), retries=0, store=store)
        attempts = [
            Attempt(f"a{n}", tiny.instance, Solver(), OracleExpert(), n, HeuristicJudge(), prepare=prepared)
            for n in range(2)
        ]

        @flow
        def work(attempts=attempts, bench=bench, kind=kind) -> list:
            progress = Progress(kind, 2 * len(attempts))
            return [run_attempts(attempts, bench, progress) for _ in ("first", "again")]

        runner = task_runner(RunnerParams(kind=kind, processes=2 if kind == "dask" else 0), 2)
        ran = work.with_options(task_runner=runner, validate_parameters=False)()
        for name, outcomes in zip((kind, f"{kind} again"), ran, strict=True):
            result[name] = [
                {
                    "id": o.trajectory.trajectory_id,
                    "resolved": o.trajectory.resolved,
                    "patch": o.trajectory.patch,
                    "process": int(o.trajectory.turns[0].message.split()[1]) if o.trajectory.turns else 0,
                    "cached": o.cached,
                    "failure": o.trajectory.failure and o.trajectory.failure.message,
                }
                for o in outcomes
            ]
    result["prepared"] = [int(line) for line in Path("prepared").read_text(encoding="utf-8").split()]
    result["tokens"] = [path.name for path in Path(".cache/protege/run").glob("ready-*")]
    json.dump(result, sys.stdout)


if __name__ == "__main__":  # Dask's workers import this file
    main()
