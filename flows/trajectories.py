"""Stage trajectories: the teacher rolls out every sft instance; each rollout is graded; all are kept with their reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from prefect import State, flow

from protege.agent.loop import opening
from protege.config import ApiParams, Params
from protege.core.trajectory import Trajectory
from protege.datasets.load import load_instances
from protege.desk.conversation import ExerciseRow, save_rows
from protege.desk.conversation import rows as in_rows
from protege.desk.rehearse import Exercise
from protege.desk.teacher import ScriptedTeacher
from protege.errors import BadParams
from protege.expert.registry import expert_named, judge_of
from protege.expert.silent import SilentExpert
from protege.files import digest, write_json
from protege.policy.base import Policy
from protege.validation import is_kept
from tasks.bench import open_bench
from tasks.exercises import functions_of, make_exercises
from tasks.keys import rollout_seed
from tasks.outs import fresh_folder
from tasks.progress import Progress
from tasks.stage import ended, run_stage
from tasks.units import Attempt, run_attempts

ROWS = Path("data/instances/sft.jsonl")
OUT = Path("data/trajectories")
EXERCISES = OUT / "exercises.jsonl"


@flow(name="trajectories", validate_parameters=False)
def trajectories(params: Params) -> State[Any]:
    p = params.trajectories
    rows = load_instances(ROWS)
    bench = open_bench(params, rows, p.retries)
    teacher = teacher_named(p.teacher, params.api)
    expert = expert_named(p.expert, params.expert, params.api, params.oracle)
    if expert is not None and p.silence:
        expert = SilentExpert(expert, p.silence)
    judge = judge_of(params.judge, params.api)
    attempts = [
        Attempt(
            trajectory_id=f"{instance.instance_id}.{teacher.identity.name}.{number}",
            instance=instance,
            policy=teacher,
            expert=expert,
            seed=rollout_seed(p.seed, instance.instance_id, number),
            judge=judge,
        )
        for instance in rows
        for number in range(p.attempts)
    ]
    practice = exercises(params, opening(rows[0], params.agent)[0].content) if rows and params.exercises.count else []
    outcomes = run_attempts(attempts, bench, Progress("trajectories", len(attempts)))
    done = [outcome.trajectory for outcome in outcomes]
    with fresh_folder(OUT) as folder:
        copies = duplicates(done)
        for trajectory in done:
            trajectory.save(folder / ("duplicates" if trajectory.trajectory_id in copies else "sft"))
        if practice:
            save_rows(folder / EXERCISES.name, practice)
        told = summary(done)
        write_json(folder / "summary.json", told)
    counts = {**told["counts"], "exercises": sum(len(row.sources) for row in practice)}
    write_json("data/metrics/trajectories.json", counts)
    lost = counts["infrastructure"]
    return ended(
        "trajectories",
        f"{counts['kept']} of {counts['attempts']} kept" + (f", {lost} lost to infrastructure" if lost else ""),
    )


def exercises(params: Params, system: str) -> list[ExerciseRow]:
    """Conversations of edit exercises; none is about a function of the rl or eval split."""
    held = [row for split in ("rl", "eval") for row in load_instances(ROWS.with_name(f"{split}.jsonl"))]
    made: list[Exercise] = make_exercises.submit(params, functions_of(held)).result()
    return in_rows(made, params.exercises, system)


def teacher_named(name: str, api: ApiParams) -> Policy:
    """Raises BadParams for an unknown teacher, or for "api" without its environment or price."""
    if name == "scripted":
        return ScriptedTeacher()
    if name == "api":
        from protege.policy.chat import ChatPolicy

        return ChatPolicy(api)
    raise BadParams(f"trajectories.teacher: {name!r} is not known; it should be 'scripted' or 'api'")


def duplicates(done: Sequence[Trajectory]) -> set[str]:
    """Ids of the kept trajectories that say word for word what an earlier one says; they teach nothing new."""
    seen: set[str] = set()
    found = set()
    for trajectory in done:
        if is_kept(trajectory):
            said = digest(trajectory.instance_id, [(turn.message, turn.observation) for turn in trajectory.turns])
            if said in seen:
                found.add(trajectory.trajectory_id)
            seen.add(said)
    return found


def reason(trajectory: Trajectory, copies: Container[str] = ()) -> str:
    """Why a trajectory is kept or not, in one word or two."""
    if trajectory.trajectory_id in copies:
        return "duplicate"
    if trajectory.failure:
        return f"infrastructure: {trajectory.failure.boundary}"
    if is_kept(trajectory):
        return "kept"
    if trajectory.resolved:
        return f"resolved, but {trajectory.exit_status}"
    return f"unresolved: {trajectory.exit_status}"


def summary(done: Sequence[Trajectory]) -> dict[str, Any]:
    """Counts by reason and by plan, and one line for each trajectory."""
    copies = duplicates(done)
    why = {t.trajectory_id: reason(t, copies) for t in done}
    reasons = Counter(why.values())
    plans = Counter(t.plan or "none" for t in done)
    kept = Counter(t.plan or "none" for t in done if why[t.trajectory_id] == "kept")
    return {
        "counts": {
            "attempts": len(done),
            "kept": reasons["kept"],
            "rejected": len(done) - reasons["kept"],
            "infrastructure": sum(t.failure is not None for t in done),
        },
        "reasons": dict(sorted(reasons.items())),
        "plans": {plan: {"attempts": n, "kept": kept[plan]} for plan, n in sorted(plans.items())},
        "trajectories": [
            {
                "trajectory_id": t.trajectory_id,
                "instance_id": t.instance_id,
                "plan": t.plan,
                "reason": why[t.trajectory_id],
            }
            for t in done
        ],
    }


if __name__ == "__main__":
    run_stage("trajectories", trajectories, lambda params: params.trajectories.workers)
