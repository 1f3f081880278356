"""What one evaluation (a model with an expert) leaves on disk and in the Prefect UI."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_args

from protege.config import EvaluateParams, ModelName
from protege.files import write_atomic, write_json
from tasks.units import Outcome, describe


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation works on: ``models`` by name, and where it writes. The stage's own is made from its params.

    ``label`` stands in names for the model's: the champion's evaluation is not taken for the candidate's.
    """

    models: dict[ModelName, Path]
    experts: tuple[str, ...]
    out: Path
    metrics: Path
    label: str = ""

    def system(self, model: str, expert: str) -> str:
        """The name of a model with an expert: of its folder, its trajectories and its artifact."""
        return f"{self.label or model}-{expert}"

    @property
    def called(self) -> str:
        """Which systems, for the run's name: "base, sft with none, oracle"."""
        return f"{self.label or ', '.join(self.models)} with {', '.join(self.experts)}"


def asked(argv: Sequence[str], params: EvaluateParams, models: Path, out: Path) -> Evaluation:
    """The stage's own evaluation (below ``models`` and ``out``), or the one that the command line ``argv`` asks for."""
    parser = argparse.ArgumentParser(description="Without options, the stage as params.yaml has it.")
    parser.add_argument("--model", metavar="NAME=FOLDER", help="only this model, from this folder")
    parser.add_argument("--as", metavar="LABEL", dest="label", default="", help="what the model is called in names")
    parser.add_argument("--expert", metavar="NAME", help="only with this expert")
    parser.add_argument("--out", type=Path, default=out, help="for evaluation/ and metrics/ (default: %(default)s)")
    given = parser.parse_args(argv)
    name, _, folder = (given.model or "").partition("=")
    if name and (not folder or name not in get_args(ModelName)):
        parser.error(
            f"--model {given.model}: it should be NAME=FOLDER with NAME one of {', '.join(get_args(ModelName))}"
        )
    if given.label and not (name and given.label.isidentifier()):
        parser.error(f"--as {given.label}: it should be a word, for the one model of --model")
    return Evaluation(
        models={cast(ModelName, name): Path(folder)} if name else {model: models / model for model in params.models},
        experts=(given.expert,) if given.expert else tuple(params.experts),
        out=given.out / "evaluation",
        metrics=given.out / "metrics" / "evaluate.json",
        label=given.label,
    )


def summary(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Counts of rollouts; infrastructure failures stand beside the graded ones, not among them."""
    graded = [o for o in outcomes if o.trajectory.failure is None]
    return {
        "instances": len({o.trajectory.instance_id for o in outcomes}),
        "rollouts": len(outcomes),
        "graded": len(graded),
        "resolved": sum(o.trajectory.resolved for o in graded),
        "infrastructure": len(outcomes) - len(graded),
        "cached": sum(o.cached for o in outcomes),
        "unresolved_ids": sorted(o.trajectory.instance_id for o in graded if not o.trajectory.resolved),
        "resolved_ids": sorted(o.trajectory.instance_id for o in graded if o.trajectory.resolved),
        "infrastructure_ids": sorted(o.trajectory.instance_id for o in outcomes if o.trajectory.failure),
    }


def outcome(counts: dict[str, Any]) -> str:
    """One line of :func:`summary`: the loss stands beside the score, not in it.

    >>> outcome({"resolved": 0, "graded": 2, "infrastructure": 1})
    '0 of 2 resolved, 1 lost to infrastructure'
    """
    lost = f", {counts['infrastructure']} lost to infrastructure" if counts["infrastructure"] else ""
    return f"{counts['resolved']} of {counts['graded']} resolved{lost}"


def write_evaluation(folder: Path, name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """predictions.jsonl (official format), trajectories/*.json with verdicts, summary.json; returns the summary.

    The official format has one prediction an instance: sample k of several goes to predictions.k.jsonl.
    """
    lines: dict[int, list[str]] = {}
    seen: Counter[str] = Counter()
    for o in outcomes:
        prediction = {
            "instance_id": o.trajectory.instance_id,
            "model_name_or_path": name,
            "model_patch": o.trajectory.patch,
        }
        lines.setdefault(seen[o.trajectory.instance_id], []).append(json.dumps(prediction) + "\n")
        seen[o.trajectory.instance_id] += 1
    for sample, rows in lines.items():
        write_atomic(folder / ("predictions.jsonl" if sample == 0 else f"predictions.{sample}.jsonl"), "".join(rows))
    for outcome in outcomes:
        outcome.trajectory.save(folder / "trajectories")
    counts = summary(outcomes)
    write_json(folder / "summary.json", counts)
    return counts


def page(name: str, outcomes: Sequence[Outcome], ui: str) -> str:
    """Markdown, failures first: infrastructure, unresolved, resolved; each instance links to its task run."""
    counts = summary(outcomes)
    groups = {
        "Infrastructure failures (counted apart)": [o for o in outcomes if o.trajectory.failure],
        "Not resolved": [o for o in outcomes if not o.trajectory.failure and not o.trajectory.resolved],
        "Resolved": [o for o in outcomes if not o.trajectory.failure and o.trajectory.resolved],
    }
    lines = [f"# {name}: {outcome(counts)}"]
    expert = next((o.trajectory.expert for o in outcomes if o.trajectory.expert), None)
    if expert is not None:
        gold = "; it has seen the gold patch" if expert.sees_gold else ""
        lines.append(f"\nExpert: {expert.name}{gold}.")
    for title, members in groups.items():
        if members:
            lines += ["", f"## {title}", ""]
            lines += [
                f"- [{o.trajectory.trajectory_id}]({ui}/runs/task-run/{o.task_run_id}): {describe(o.trajectory)}"
                for o in sorted(members, key=lambda o: o.trajectory.trajectory_id)
            ]
    return "\n".join(lines) + "\n"
