"""A pipeline of three stages that takes seconds, for tests of the night around it. Everything around the two flows is the
real thing: run_stage, DVC, Prefect; what they compute is little, and follows from params.yaml alone. As in a real night,
``model`` changes in the first one only.

python -m tests.nightly.small model|rl|evaluate
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from prefect import State, flow

from protege.config import Params
from protege.core.trajectory import Identity, Trajectory, Verdict
from protege.errors import ModelServerError, SandboxDied
from protege.files import digest, read_json, write_atomic, write_json
from protege.policy.model_folder import model_digest
from tasks.evaluation import Evaluation, asked
from tasks.outs import fresh_folder
from tasks.stage import ended, run_stage

PIPELINE = """
stages:
  model:
    cmd: python -m tests.nightly.small model
    params: [model.source]
    outs: [data/models/base]
  rl:
    cmd: python -m tests.nightly.small rl
    deps: [data/models/base]
    params: [rl.steps, instances.seed]
    outs: [data/models/rl, data/instances]
  evaluate:
    cmd: python -m tests.nightly.small evaluate
    deps: [data/models/rl, data/instances]
    params: [evaluate]
    outs: [data/evaluation]
"""
INSTANCES = 40
LOST, NO_SERVER = "tiny__calc-1.rl-none", "the model server ended with exit code 137"


def note(what: str) -> None:
    """A line in the project's log of what was done, whichever folder the stage runs in."""
    with open(os.environ["SMALL_LOG"], "a", encoding="utf-8") as log:
        log.write(what + "\n")


@flow(name="model", validate_parameters=False)
def model(params: Params) -> None:
    with fresh_folder("data/models/base") as folder:
        write_json(folder / "config.json", {"source": params.model.source})
    note("model")


@flow(name="rl", validate_parameters=False)
def rl(params: Params) -> None:
    """A model whose skill is ``rl.steps``: the share of forty instances that it resolves."""
    with fresh_folder("data/models/rl") as folder:
        write_json(folder / "config.json", {"skill": params.rl.steps})
        write_atomic(folder / "model.safetensors", digest("weights", params.rl.steps))
    with fresh_folder("data/instances") as folder:
        names = [f"small__{params.instances.seed}-{n}" for n in range(INSTANCES)]
        write_json(folder / "names.json", names)
    note("rl")


def lose(params: Params) -> None:
    """One real attempt, in a real sandbox's provider, whose model server is not there."""
    from protege.config import AgentParams
    from protege.desk.teacher import ScriptedTeacher
    from protege.sandbox.bubblewrap import BubblewrapProvider
    from tasks.progress import Progress
    from tasks.units import Attempt, Bench, run_attempts
    from tests.sandbox.tiny import make_tiny

    def prepare() -> None:
        raise ModelServerError(NO_SERVER)

    tiny = make_tiny(Path("data/tiny"))
    bench = Bench(
        BubblewrapProvider(params.sandbox, tiny.testbeds, tiny.site), AgentParams(), params.sandbox, retries=0
    )
    attempt = Attempt(LOST, tiny.instance, ScriptedTeacher(), None, 1, prepare=prepare)
    run_attempts([attempt], bench, Progress("evaluate", 1))


@flow(name="evaluate", validate_parameters=False)
def evaluate(params: Params, work: Evaluation) -> State[Any]:
    beside = Path(os.environ["SMALL_LOG"])
    while beside.with_name("hold").exists():
        note("held")
        time.sleep(0.2)
    if beside.with_name("break").exists():
        beside.with_name("break").unlink()
        raise SandboxDied("the engine went away")
    if beside.with_name("lose").exists():
        lose(params)
    ((model, source),), (expert,) = work.models.items(), work.experts
    policy = Identity(name=model, digest=model_digest(source), kind="served")
    skill = read_json(source / "config.json")["skill"]
    with fresh_folder(work.out) as folder:
        for number, name in enumerate(read_json("data/instances/names.json")):
            verdict = Verdict(
                instance_id=name, instance_digest=name, patch_digest="", resolved=number < skill, applied=True
            )
            Trajectory(
                trajectory_id=f"{name}.{work.system(model, expert)}", instance_id=name, instance_digest=name, repo="small",
                policy=policy, expert=None, seed=number, messages=[], turns=[], exit_status="submitted", verdict=verdict,
                image_digest="sha256:" + digest(name),
            ).save(folder / work.system(model, expert) / "trajectories")  # fmt: skip
    note(f"evaluate {skill}")
    return ended("evaluate", f"{skill} of {INSTANCES} resolved")


if __name__ == "__main__":
    stage, *rest = sys.argv[1:]
    if stage == "evaluate":
        run_stage(
            stage,
            evaluate,
            given=lambda p: {"params": p, "work": asked(rest, p.evaluate, Path("data/models"), Path("data"))},
            called=lambda given: given["work"].called,
        )
    else:
        run_stage(stage, {"model": model, "rl": rl}[stage])
