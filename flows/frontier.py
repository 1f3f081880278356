"""Optional stage frontier: one model under several rules of asking and qualities of expert, on the eval split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact

from flows.report import commit
from protege.config import Params, system
from protege.datasets.load import load_instances
from protege.errors import BadParams
from protege.expert.registry import expert_named, judge_of
from protege.frontier.systems import cast
from protege.report.frontier import write_frontier
from tasks.bench import open_bench
from tasks.evaluation import outcome, write_evaluation
from tasks.keys import sample_seed
from tasks.outs import fresh_folder
from tasks.progress import Progress, say
from tasks.serving import Serving
from tasks.stage import ended, run_stage
from tasks.units import Attempt, Outcome, run_attempts

ROWS = Path("data/instances/eval.jsonl")
MODELS = Path("data/models")
OUT = Path("data/frontier")


def samples_of(params: Params) -> int:
    """Rollouts of each instance for each system. Raises BadParams."""
    p, e = params.frontier, params.evaluate
    named = e.samples if isinstance(e.samples, int) else e.samples.get(p.model, 1)
    count = p.samples or named
    if count > 1 and not e.temperature:
        raise BadParams("frontier.samples above 1 are all the same at temperature 0; set evaluate.temperature")
    return count


@flow(name="frontier", validate_parameters=False)
def frontier(params: Params) -> State[Any]:
    p, e, count = params.frontier, params.evaluate, samples_of(params)
    rows = load_instances(ROWS)
    expert = expert_named(p.expert, params.expert, params.api, params.oracle)
    assert expert is not None, "section frontier has an expert"
    judge = judge_of(params.judge, params.api)
    progress = Progress("frontier", len(rows) * len(p.systems) * count)
    folder_of_model = MODELS / p.model
    with (
        Serving(
            folder_of_model,
            params,
            workers=e.workers,
            seed=e.seed,
            progress=lambda line: say("frontier", line),
        ) as serving,
        fresh_folder(OUT) as folder,
    ):
        policy, ready = serving.policy(folder_of_model, p.model, e.temperature)
        casts = [cast(system(spec), policy, expert, params.agent) for spec in p.systems]
        outcomes: dict[str, list[Outcome]] = {}
        # One batch for each set of limits: the server's batch stays full while the slowest rollouts end.
        for agent in [params.agent, *(c.agent for c in casts if c.agent != params.agent)]:
            batch = [c for c in casts if c.agent == agent and c.system.name not in outcomes]
            attempts = [
                Attempt(
                    trajectory_id=f"{instance.instance_id}.{p.model}-{c.system.name}.{sample}",
                    instance=instance,
                    policy=c.policy,
                    expert=c.expert,
                    seed=sample_seed(e.seed, instance.instance_id, sample),
                    judge=judge,
                    # As in stage evaluate, whose rollouts of the same systems are found by it.
                    deciding=serving.deciding(e.temperature),
                    prepare=ready,
                )
                for c in batch
                for sample in range(count)
                for instance in rows
            ]
            done = run_attempts(attempts, open_bench(params, rows, e.retries, agent), progress) if attempts else []
            each = len(rows) * count
            for index, c in enumerate(batch):
                outcomes[c.system.name] = done[index * each : (index + 1) * each]
        policy.close()
        for name, own in outcomes.items():
            counts = write_evaluation(folder / name, f"{p.model}-{name}", own)
            say("frontier", f"{name}: {outcome(counts)}")
        write_frontier(
            folder,
            params.report,
            {
                "model": f"{p.model} ({policy.identity.digest[:12]})",
                "expert": f"{expert.identity.name} ({expert.identity.digest[:12]})",
                "budget": f"{params.agent.expert_quota} calls a rollout",
                "samples": f"{count} for each instance, temperature {e.temperature:g}, seed {e.seed}",
                "profile": params.profile,
                "commit": commit(),
            },
        )
    create_markdown_artifact(
        (OUT / "frontier.md").read_text(), key="frontier", description="Pass@1 against expert tokens"
    )
    return ended("frontier", f"{OUT / 'frontier.md'}, {OUT / 'plot.png'}")


if __name__ == "__main__":
    run_stage("frontier", frontier, lambda params: params.evaluate.workers)
