"""Pass@1 against expert tokens for every rule of asking and every quality of the expert (docs/design/0008-frontier.md).

Scores and pairs are those of report/metrics.py: the mean over instances of each instance's share of resolved rollouts,
instances resampled. Infrastructure failures are outside of n and counted beside it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from protege.config import KINDS, ReportParams, System, system
from protege.core.trajectory import ExpertCall, Identity, Trajectory, load_trajectories
from protege.errors import BadInput
from protege.files import write_atomic, write_json
from protege.report import metrics
from protege.report.metrics import Comparison, Score
from protege.report.render import markdown
from protege.report.stats import bootstrap_mean

GOLD = "has seen the gold patch"


@dataclass(frozen=True)
class Point:
    """One system. Means are over instances of the mean over an instance's graded rollouts; None where nothing was graded.

    ``expert_tokens`` are those that the expert generated. ``silent`` counts calls that cost quota and got no answer,
    ``refused`` the model's questions that were not put to the expert, ``forced`` the questions that a rule asked.
    ``to_own`` pairs the model's own choice (first) with this system (second). ``cost_usd`` is None without prices.
    """

    system: System
    score: Score
    model: str
    expert: Identity | None
    expert_tokens: float | None
    expert_tokens_ci: tuple[float, float]
    calls: float | None
    silent: float | None
    refused: float | None
    forced: float | None
    cost_usd: float | None
    to_own: Comparison | None

    @property
    def label(self) -> str:
        return self.system.label

    def flat(self) -> dict[str, float]:
        """Numbers only; what could not be measured is absent."""
        values = self.score.flat()
        more: dict[str, float | None] = {
            "expert_tokens_mean": self.expert_tokens,
            "expert_tokens_low": self.expert_tokens_ci[0] if self.score.n else None,
            "expert_tokens_high": self.expert_tokens_ci[1] if self.score.n else None,
            "expert_calls_mean": self.calls,
            "silent_calls_mean": self.silent,
            "refused_questions_mean": self.refused,
            "forced_questions_mean": self.forced,
            "expert_cost_usd_mean": self.cost_usd,
        }
        if self.to_own is not None and self.to_own.n:
            pair = self.to_own
            more |= {"to_own": pair.difference, "to_own_low": pair.ci[0], "to_own_high": pair.ci[1]}
            more |= {"to_own_n": pair.n, "to_own_p": pair.p_value}
        return values | {key: round(value, 6) for key, value in more.items() if value is not None}


def load_points(folder: Path | str, params: ReportParams) -> list[Point]:
    """A point for each ``<system>/trajectories`` in ``folder``, in the order of frontier.params.

    Raises:
        BadInput: there is none, or a folder is named like no system.
    """
    found: dict[System, metrics.System] = {}
    for path in sorted(Path(folder).glob("*/trajectories")):
        try:
            name = system(path.parent.name)
        except ValueError as error:
            raise BadInput(f"{path.parent}: {error}; `make frontier` writes the folder anew") from error
        trajectories = load_trajectories(path)
        model = next((t.policy.name.partition(",")[0] for t in trajectories), "")
        found[name] = metrics.System(name.name, model, name.label, trajectories)
    if not found:
        raise BadInput(f"no trajectories under {folder}; run `make frontier`")
    own = next((s for name, s in found.items() if name.kind == "own"), None)
    ordered = sorted(found, key=lambda s: (KINDS.index(s.kind), s.value))
    return [_point(name, found[name], own, params) for name in ordered]


def _point(name: System, found: metrics.System, own: metrics.System | None, params: ReportParams) -> Point:
    graded = found.graded
    tokens = _by_instance(graded, lambda t: t.expert_tokens)
    costs = _by_instance(graded, lambda t: sum(call.cost_usd for call in t.expert_calls))
    return Point(
        system=name,
        score=metrics.score(found, params),
        model=found.model,
        expert=found.identity,
        expert_tokens=mean(tokens) if tokens else None,
        expert_tokens_ci=bootstrap_mean(tokens, params.confidence, params.bootstrap_samples, params.bootstrap_seed)
        if tokens
        else (0.0, 0.0),
        calls=_calls(graded, lambda call: call.answered),
        silent=_calls(graded, lambda call: call.answered and not call.completion_tokens),
        refused=_calls(graded, lambda call: not call.answered),
        forced=_mean(graded, lambda t: sum(turn.finish_reason == "forced" for turn in t.turns)),
        cost_usd=mean(costs) if any(costs) else None,
        to_own=metrics.compare(own, found, params) if own is not None and own is not found else None,
    )


def _by_instance(graded: Sequence[Trajectory], value: Callable[[Trajectory], float]) -> list[float]:
    values: dict[str, list[float]] = {}
    for t in graded:
        values.setdefault(t.instance_id, []).append(value(t))
    return [mean(each) for _, each in sorted(values.items())]


def _mean(graded: Sequence[Trajectory], value: Callable[[Trajectory], float]) -> float | None:
    return mean(_by_instance(graded, value)) if graded else None


def _calls(graded: Sequence[Trajectory], which: Callable[[ExpertCall], bool]) -> float | None:
    return _mean(graded, lambda t: sum(map(which, t.expert_calls)))


def write_frontier(folder: Path | str, params: ReportParams, about: dict[str, Any]) -> list[Point]:
    """frontier.json, frontier.md and plot.png beside the systems' folders in ``folder``; returns the points.

    Args:
        about: what made the numbers (commit, model, quota, …), shown as given.
    """
    folder = Path(folder)
    points = load_points(folder, params)
    write_json(
        folder / "frontier.json",
        {
            "about": about,
            "experts": {p.system.name: p.expert.model_dump() if p.expert else None for p in points},
            "systems": {p.system.name: p.flat() for p in points},
            "exits": {p.system.name: dict(p.score.exits) for p in points},
        },
    )
    priced = any(p.cost_usd is not None for p in points)
    text = markdown("frontier", points=points, priced=priced, params=params, about=about)
    write_atomic(folder / "frontier.md", text)
    write_atomic(folder / "plot.png", plot(points, params))
    return points


_MARKERS = {
    "never": "s",
    "own": "*",
    "random": "o",
    "every": "^",
    "loop": "D",
    "always": "P",
    "silent": "X",
    "budget0": "v",
    "vague": "h",
}


def plot(points: Sequence[Point], params: ReportParams) -> bytes:
    """PNG: expert tokens of a rollout across, Pass@1 up, both with their intervals. Hollow: another expert or budget."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for kind in ("random", "every", "loop"):  # one rule at several settings is a curve
        series = [p for p in points if p.system.kind == kind and p.score.pass_at_1 is not None]
        across, up = [p.expert_tokens or 0.0 for p in series], [p.score.pass_at_1 or 0.0 for p in series]
        axes.plot(across, up, color=f"C{KINDS.index(kind)}", linewidth=1, alpha=0.5)
    for p in points:
        if p.score.pass_at_1 is None or p.expert_tokens is None:
            continue
        colour = f"C{KINDS.index(p.system.kind)}"
        own, hollow = p.system.kind == "own", p.system.kind in ("silent", "budget0", "vague")
        axes.errorbar(
            p.expert_tokens,
            p.score.pass_at_1,
            xerr=_arms(p.expert_tokens, p.expert_tokens_ci),
            yerr=_arms(p.score.pass_at_1, p.score.ci),
            fmt=_MARKERS[p.system.kind],
            markersize=15 if own else 8,
            markerfacecolor="white" if hollow else colour,
            color=colour,
            elinewidth=1.6 if own else 0.9,
            capsize=3,
            zorder=3 if own else 2,
            label=p.label,
        )
    first = points[0].score
    oracle = next((p.expert for p in points if p.expert is not None), None)
    named = "none" if oracle is None else oracle.name.partition(",")[0] + (f" ({GOLD})" if oracle.sees_gold else "")
    axes.set(
        xlabel=f"expert tokens for one rollout (expert: {named})",
        ylabel="Pass@1",
        title=f"Who decides when to ask: {points[0].model}, {first.instances} instances, {params.confidence:.0%} intervals",
    )
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlim(left=min(axes.get_xlim()[0], 0))
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _arms(value: float, interval: tuple[float, float]) -> list[list[float]]:
    """Lengths below and above; a percentile interval need not hold the mean."""
    return [[max(0.0, value - interval[0])], [max(0.0, interval[1] - value)]]
