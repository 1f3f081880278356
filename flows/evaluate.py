"""Stage evaluate: every model with every expert on the eval split, through vLLM and the official harness.

python -m flows.evaluate [--model NAME=FOLDER [--as LABEL]] [--expert NAME] [--out FOLDER]   (the options measure the champion)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from prefect import State, flow
from prefect.artifacts import create_markdown_artifact
from prefect.settings import PREFECT_API_URL
from prefect.states import Completed

from protege.config import Params
from protege.datasets.load import load_instances
from protege.expert.registry import expert_named, judge_of
from protege.files import write_json
from tasks.bench import open_bench
from tasks.evaluation import Evaluation, asked, outcome, page, write_evaluation
from tasks.failures import slug
from tasks.keys import sample_seed
from tasks.outs import fresh_folder
from tasks.progress import Progress, say
from tasks.server import ui
from tasks.serving import Serving
from tasks.stage import run_stage
from tasks.units import Attempt, run_attempts

ROWS = Path("data/instances/eval.jsonl")
MODELS = Path("data/models")
OUT = Path("data")


@flow(name="evaluate", validate_parameters=False)
def evaluate(params: Params, work: Evaluation) -> State[Any]:
    p = params.evaluate
    rows = load_instances(ROWS)
    bench = open_bench(params, rows, p.retries)
    experts = {name: expert_named(name, params.expert, params.api, params.oracle) for name in work.experts}
    judge = judge_of(params.judge, params.api)
    progress = Progress("evaluate", len(rows) * len(work.experts) * sum(p.samples_of(model) for model in work.models))
    metrics: dict[str, dict[str, int]] = {}
    lines: list[str] = []
    with (
        Serving(
            next(iter(work.models.values())),
            params,
            workers=p.workers,
            seed=p.seed,
            progress=lambda line: say("evaluate", line),
        ) as serving,
        fresh_folder(work.out) as folder,
    ):
        for model, source in work.models.items():
            policy, ready = serving.policy(source, model, p.temperature)
            # All of a model's attempts at once: the server's batch stays full while the slowest ones end.
            attempts = [
                Attempt(
                    trajectory_id=f"{instance.instance_id}.{work.system(model, name)}"
                    + (f".{sample}" if sample else ""),
                    instance=instance,
                    policy=policy,
                    expert=expert,
                    seed=sample_seed(p.seed, instance.instance_id, sample),
                    judge=judge,
                    deciding=serving.deciding(p.temperature),
                    prepare=ready,
                )
                for name, expert in experts.items()
                for sample in range(p.samples_of(model))
                for instance in rows
            ]
            outcomes = run_attempts(attempts, bench, progress)
            each = len(rows) * p.samples_of(model)
            for index, expert_name in enumerate(experts):
                name = work.system(model, expert_name)
                own = outcomes[index * each : (index + 1) * each]
                counts = write_evaluation(folder / name, name, own)
                metrics[name] = {k: v for k, v in counts.items() if isinstance(v, int) and k != "cached"}
                create_markdown_artifact(
                    page(name, own, ui(str(PREFECT_API_URL.value()))),
                    key=f"evaluation-{slug(name)}",
                    description=outcome(counts),
                )
                lines.append(f"{name}: {outcome(counts)}")
                say("evaluate", lines[-1])
            policy.close()
    write_json(work.metrics, metrics)
    return Completed(message="; ".join(lines))


if __name__ == "__main__":
    run_stage(
        "evaluate",
        evaluate,
        lambda params: params.evaluate.workers,
        lambda params: {"params": params, "work": asked(sys.argv[1:], params.evaluate, MODELS, OUT)},
        lambda given: given["work"].called,
    )
