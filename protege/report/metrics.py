"""What an evaluation says, in numbers: one record a system, and the paired comparisons between systems.

An infrastructure failure, of the rollout or of its grading, is kept out of the score's denominator and
counted beside it (docs/architecture.md, rule 2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from protege.config import ReportParams
from protege.core.loops import longest_run
from protege.core.trajectory import Identity, Trajectory, load_trajectories
from protege.report.stats import mcnemar_exact, paired_bootstrap, paired_score, share_interval, sign_flip

MODEL_ORDER = ("base", "sft", "rl")


@dataclass(frozen=True)
class System:
    """One model with one expert, and all its trajectories. ``name`` is ``<model>-<expert>``."""

    name: str
    model: str
    expert: str
    trajectories: list[Trajectory]

    @property
    def graded(self) -> list[Trajectory]:
        """Those that count: not an infrastructure failure, and with a verdict."""
        return [t for t in self.trajectories if t.exit_status != "infrastructure" and t.verdict is not None]

    @property
    def identity(self) -> Identity | None:
        """Who the expert was, as recorded by the rollouts."""
        return next((t.expert for t in self.trajectories if t.expert is not None), None)

    @property
    def label(self) -> str:
        if self.expert == "none":
            return f"{self.model}, no expert"
        return f"{self.model} + {self.expert}"


@dataclass(frozen=True)
class Score:
    """The headline numbers of one system. Shares are in [0, 1]; None where nothing was graded.

    ``n`` graded rollouts of ``instances`` instances; ``pass_at_1`` is the mean over instances of an instance's share of
    resolved rollouts. ``warrant`` and ``follow`` are the judge's mean scores of the answered calls that have one.
    """

    system: System
    n: int
    instances: int
    n_infra: int
    resolved: int
    pass_at_1: float | None
    ci: tuple[float, float]
    pass_at_1_infra_as_unresolved: float | None
    loop_share: float | None
    loop_n: int
    expert_calls: float | None
    expert_token_share: float | None
    steps: float | None
    warrant: float | None
    follow: float | None
    exits: Counter[str] = field(default_factory=Counter)
    boundaries: Counter[str] = field(default_factory=Counter)

    def flat(self) -> dict[str, float]:
        """Numbers only, for ``dvc metrics show``; what could not be measured is absent."""
        values: dict[str, float | None] = {
            "pass_at_1": self.pass_at_1,
            "ci_low": self.ci[0] if self.n else None,
            "ci_high": self.ci[1] if self.n else None,
            "resolved": self.resolved,
            "n": self.n,
            "instances": self.instances,
            "n_infra": self.n_infra,
            "pass_at_1_infra_as_unresolved": self.pass_at_1_infra_as_unresolved,
            "loop_share": self.loop_share,
            "expert_calls_mean": self.expert_calls,
            "expert_token_share": self.expert_token_share,
            "steps_mean": self.steps,
            "warrant_mean": self.warrant,
            "follow_mean": self.follow,
        }
        return {key: round(value, 4) for key, value in values.items() if value is not None}


@dataclass(frozen=True)
class Comparison:
    """Two systems on the ``n`` instances that both have a verdict for; ``only_*``: those on which one did better.

    ``difference`` is second minus first, of Pass@1. ``ci`` is its bootstrap, which the report shows beside ``n``;
    ``score_ci`` its score interval, which decides: it has a width also where no instance tells the two apart.
    """

    first: System
    second: System
    n: int
    only_first: int
    only_second: int
    both: int
    difference: float
    ci: tuple[float, float]
    score_ci: tuple[float, float]
    p_value: float

    @property
    def label(self) -> str:
        """What changes and what stays: ``base → sft, no expert`` or ``rl: no expert → oracle``."""
        if self.first.expert == self.second.expert:
            stays = ", no expert" if self.first.expert == "none" else f" + {self.first.expert}"
            return f"{self.first.model} → {self.second.model}{stays}"
        without, other = (f"{'no expert' if s.expert == 'none' else s.expert}" for s in (self.first, self.second))
        return f"{self.first.model}: {without} → {other}"


def load_systems(evaluation_dir: Path | str) -> list[System]:
    """Every ``<model>-<expert>`` folder with trajectories: base, sft, rl first, without an expert first."""
    root = Path(evaluation_dir)
    systems = []
    for folder in root.iterdir() if root.is_dir() else ():
        if (folder / "trajectories").is_dir():
            model, _, expert = folder.name.rpartition("-")
            trajectories = load_trajectories(folder / "trajectories")
            systems.append(System(folder.name, model or expert, expert if model else "none", trajectories))
    return sorted(systems, key=lambda s: (_place(s.model), s.model, s.expert != "none", s.expert))


def score(system: System, params: ReportParams) -> Score:
    graded = system.graded
    n, total = len(graded), len(system.trajectories)
    resolved = sum(t.resolved for t in graded)
    expert = sum(t.expert_tokens for t in graded)
    tokens = expert + sum(t.completion_tokens for t in graded)
    loops = sum(longest_run(t) > params.loop_run_longer_than for t in graded)
    shares = list(by_instance(system).values())
    answered = [c for t in graded for c in t.expert_calls if c.answered]
    warrants = [c.warrant for c in answered if c.warrant is not None]
    follows = [c.follow for c in answered if c.follow is not None]
    return Score(
        system=system,
        n=n,
        instances=len(shares),
        n_infra=total - n,
        resolved=resolved,
        pass_at_1=mean(shares) if n else None,
        ci=share_interval(shares, params.confidence, params.bootstrap_samples, params.bootstrap_seed),
        pass_at_1_infra_as_unresolved=resolved / total if total else None,
        loop_share=loops / n if n else None,
        loop_n=loops,
        expert_calls=mean(calls(t) for t in graded) if n else None,
        expert_token_share=expert / tokens if tokens else None,
        steps=mean(len(t.turns) for t in graded) if n else None,
        warrant=mean(warrants) if warrants else None,
        follow=mean(follows) if follows else None,
        exits=Counter(t.exit_status for t in system.trajectories),
        boundaries=Counter(t.failure.boundary if t.failure else "grading" for t in system.trajectories if lost(t)),
    )


def lost(trajectory: Trajectory) -> bool:
    """Whether infrastructure, not the agent, kept this one from having a verdict."""
    return trajectory.exit_status == "infrastructure" or trajectory.verdict is None


def calls(trajectory: Trajectory) -> int:
    """Expert calls that were answered."""
    return sum(call.answered for call in trajectory.expert_calls)


def compare(first: System, second: System, params: ReportParams) -> Comparison:
    """Pair two systems by instance, each instance with its share of resolved rollouts."""
    a, b = by_instance(first), by_instance(second)
    shared = sorted(a.keys() & b.keys())
    left, right = [a[i] for i in shared], [b[i] for i in shared]
    differences = [y - x for x, y in zip(left, right, strict=True)]
    only_first, only_second = sum(d < 0 for d in differences), sum(d > 0 for d in differences)
    single = all(share in (0.0, 1.0) for share in [*left, *right])
    return Comparison(
        first=first,
        second=second,
        n=len(shared),
        only_first=only_first,
        only_second=only_second,
        both=sum(x > 0 and y > 0 for x, y in zip(left, right, strict=True)),
        difference=mean(differences) if shared else 0.0,
        ci=paired_bootstrap(left, right, params.confidence, params.bootstrap_samples, params.bootstrap_seed),
        score_ci=paired_score(left, right, params.confidence),
        p_value=mcnemar_exact(only_first, only_second)
        if single
        else sign_flip(differences, seed=params.bootstrap_seed),
    )


def comparisons(systems: Sequence[System], params: ReportParams) -> list[Comparison]:
    """Every pair that differs in the model or in the expert, not in both."""
    return [
        compare(first, second, params)
        for i, first in enumerate(systems)
        for second in systems[i + 1 :]
        if (first.model == second.model) != (first.expert == second.expert)
    ]


def evaluate_metrics(folder: Path | str, params: ReportParams) -> dict[str, dict[str, float]]:
    """Numbers for ``dvc metrics show``: ``{"<model>-<expert>": {"pass_at_1": ..., "n": ..., ...}}``.

    Args:
        folder: ``data/evaluation``, one ``<model>-<expert>/trajectories`` folder a system.
    """
    return {system.name: score(system, params).flat() for system in load_systems(folder)}


def by_instance(system: System) -> dict[str, float]:
    """Instance -> share of its graded rollouts that are resolved."""
    outcomes: dict[str, list[bool]] = {}
    for trajectory in system.graded:
        outcomes.setdefault(trajectory.instance_id, []).append(trajectory.resolved)
    return {instance: mean(map(float, resolved)) for instance, resolved in outcomes.items()}


def _place(model: str) -> int:
    return MODEL_ORDER.index(model) if model in MODEL_ORDER else len(MODEL_ORDER)
