"""Stage rl: GRPO from the SFT model, rollouts through the same attempts as everywhere, weights served each step."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

from protege.config import Params
from protege.core.instance import Instance
from protege.core.loops import longest_run
from protege.core.reward import Reward, score
from protege.core.trajectory import Trajectory
from protege.datasets.load import load_instances
from protege.expert.registry import expert_named, judge_of
from protege.files import digest, read_json, write_atomic, write_json
from protege.identity import code_of
from protege.policy.served import ServedPolicy
from protege.train.busy import Busy
from protege.train.cpu.speed import yield_between_threads
from protege.train.grpo import RolloutRequest, RolloutResult, stage, train_grpo
from tasks.bench import open_bench
from tasks.outs import fresh_folder
from tasks.progress import Progress, say
from tasks.serving import Serving
from tasks.settings import HOME
from tasks.stage import ended, run_stage
from tasks.units import Attempt, Bench, run_attempts

ROWS = Path("data/instances/rl.jsonl")
START = Path("data/models/sft")
MODEL = Path("data/models/rl")
OUT = Path("data/rl")
WORK = HOME / "checkpoints" / "rl"
RECORDS = WORK / "records"
"""What finished steps leave; it belongs to the training whose checkpoints lie beside it, and outlives a kill as they do."""


@flow(name="rl", validate_parameters=False)
def rl(params: Params) -> State[Any]:
    yield_between_threads()
    p = params.rl
    context = min(params.agent.context_tokens, p.max_tokens)
    rows = {instance.instance_id: instance for instance in load_instances(ROWS)}
    agent = params.agent.model_copy(update={"context_tokens": context})
    bench = open_bench(params, list(rows.values()), p.retries, agent)
    with Serving(
        START, params, workers=p.workers, seed=p.seed, context=context, progress=lambda line: say("rl", line)
    ) as serving:
        rollouts = Rollouts(params, bench, rows, serving)
        metrics = train_grpo(
            START,
            sorted(rows),
            MODEL,
            p,
            rollout=rollouts,
            sync=rollouts.sync,
            checkpoint_dir=WORK,
            steps_path=RECORDS / "steps.jsonl",
            dtype=params.model.dtype,
            identity=rollouts.identity(),
            progress=lambda line: say("rl", line),
            measures=rollouts.measures,
        )
    write_outs(p.steps)
    write_json("data/metrics/rl.json", metrics)
    table = "\n".join(["| metric | value |", "|---|---:|", *(f"| {k} | {v} |" for k, v in metrics.items())])
    create_markdown_artifact(table + "\n", key="rl", description="GRPO")
    lost = f", {n} rollouts lost to infrastructure" if (n := metrics["masked_rollouts"]) else ""
    return ended("rl", f"reward {metrics['reward_first']:.3f} -> {metrics['reward_last']:.3f}{lost}")


class Rollouts:
    """The rollout callable of train_grpo: attempts with the weights that were synced last, graded and scored."""

    def __init__(self, params: Params, bench: Bench, rows: dict[str, Instance], serving: Serving) -> None:
        self.params, self.bench, self.rows, self.serving = params, bench, rows, serving
        self.expert = expert_named(params.rl.expert, params.expert, params.api, params.oracle)
        self.judge = judge_of(params.judge, params.api)
        self.policy: ServedPolicy | None = None
        self.ready = lambda: None
        self.busy, self.reward_seconds = Busy(), 0.0
        self.figures: dict[str, float] = {}

    def identity(self) -> str:
        """What decides a rollout and its reward besides the weights and the seed."""
        bench, params = self.bench, self.params
        return digest(
            [[row.digest, bench.provider.image_digest(row)] for row in self.rows.values()],
            bench.agent.deciding(),
            bench.sandbox.deciding(),
            bench.provider.backend,
            self.expert.identity.model_dump() if self.expert else None,
            self.judge.identity.model_dump(),
            params.reward.deciding(),
            self.serving.deciding(params.rl.temperature),
            code_of(
                "protege.agent.loop", "protege.grading.grade", "protege.core.reward", type(bench.provider).__module__
            ),
        )

    def sync(self, folder: Path) -> None:
        """New weights; the server loads them when a rollout first needs it."""
        if self.policy is not None:
            self.policy.close()
        self.policy, self.ready = self.serving.policy(folder, "rl", self.params.rl.temperature)
        self.policy.complete = self.busy.wrap(self.policy.complete)  # type: ignore[method-assign]

    def measures(self) -> dict[str, float]:
        """Of the last step's rollouts: the server's share of time with a request in flight, and the scoring's seconds."""
        return {**self.figures, "reward_seconds": round(self.reward_seconds, 2)}

    def __call__(self, requests: list[RolloutRequest]) -> Sequence[RolloutResult]:
        assert self.policy is not None, "train_grpo syncs weights before it asks for rollouts"
        step = requests[0].step
        attempts = [
            Attempt(
                trajectory_id=f"{r.instance_id}.rl.step{r.step:04d}.{r.group_index}",
                instance=self.rows[r.instance_id],
                policy=self.policy,
                expert=self.expert,
                seed=r.seed,
                judge=self.judge,
                deciding=self.serving.deciding(self.params.rl.temperature),
                prepare=self.ready,
            )
            for r in requests
        ]
        self.busy.restart()
        outcomes = run_attempts(attempts, self.bench, Progress(f"rl step {step + 1}", len(attempts)))
        self.figures, began = self.busy.figures(), time.monotonic()
        scored = self._scored([outcome.trajectory for outcome in outcomes], step)
        self.reward_seconds = time.monotonic() - began
        return scored

    def _scored(self, trajectories: Sequence[Trajectory], step: int) -> list[RolloutResult]:
        p = self.params.rl
        phase = stage(step, p.steps, p.stage_two_from)
        results, lines = [], []
        for trajectory in trajectories:
            reward: Reward | None = None
            if trajectory.failure is None and trajectory.verdict is not None and trajectory.tokens is not None:
                gold = self.rows[trajectory.instance_id].patch
                reward = score(trajectory, trajectory.verdict, gold, 1 if phase == 1 else 2, self.params.reward)
            results.append(result_of(trajectory, reward))
            lines.append(line_of(trajectory, reward, step))
            trajectory.save(RECORDS / f"step-{step:04d}")
        write_json(RECORDS / f"step-{step:04d}.rewards.json", lines)
        return results


def result_of(trajectory: Trajectory, reward: Reward | None) -> RolloutResult:
    """Masked (no tokens) without a reward: an infrastructure failure is never a zero."""
    if reward is None or trajectory.tokens is None:
        return RolloutResult(tokens=None, reward=0.0)
    terms = {name: float(value) for name, value in reward.model_dump().items() if name != "stage"}
    terms |= {"steps": float(len(trajectory.turns)), "longest_run": float(longest_run(trajectory))}
    return RolloutResult(tokens=trajectory.tokens, reward=reward.total, terms=terms)


def line_of(trajectory: Trajectory, reward: Reward | None, step: int) -> dict[str, Any]:
    """One line of rewards.jsonl; ``masked`` says that infrastructure kept it out of its group."""
    head = {"step": step, "trajectory_id": trajectory.trajectory_id, "instance_id": trajectory.instance_id}
    if reward is None:
        return {
            **head,
            "masked": True,
            "boundary": trajectory.failure.boundary if trajectory.failure else "model_server",
        }
    calls = [{"warrant": c.warrant, "follow": c.follow} for c in trajectory.expert_calls]
    return {**head, "masked": False, **reward.model_dump(), "calls": calls}


def write_outs(steps: int) -> None:
    """data/rl from the records of the finished steps."""
    with fresh_folder(OUT) as folder:
        write_atomic(folder / "steps.jsonl", (RECORDS / "steps.jsonl").read_bytes())
        lines = []
        for step in range(steps):
            lines += read_json(RECORDS / f"step-{step:04d}.rewards.json")
            kept = {line["trajectory_id"] for line in lines if line["step"] == step}
            for name in sorted(kept):
                Trajectory.load(RECORDS / f"step-{step:04d}" / f"{name}.json").save(folder / "trajectories")
        write_atomic(folder / "rewards.jsonl", "".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    run_stage("rl", rl, lambda params: params.rl.workers)
