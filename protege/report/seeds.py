"""One recipe trained and evaluated with several seeds: what it comes to, and how far its trainings lie apart.

An interval over bugs says nothing of what another training would give, so here trainings and instances are resampled both.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from protege.config import ReportParams
from protege.core.trajectory import Identity
from protege.errors import BadInput
from protege.files import write_atomic, write_json
from protege.report.metrics import Score, System, by_instance, comparisons, load_systems, score
from protege.report.render import markdown
from protege.report.stats import crossed_bootstrap

Trainings = dict[int, dict[str, System]]
"""Seed -> name of a system -> that training's rollouts."""


@dataclass(frozen=True)
class Spread:
    """A share, or a difference of shares, over ``n`` instances: its mean over the trainings, and each training's own.

    ``ci`` resamples trainings and instances; ``deviation`` is the standard deviation over trainings (None for one).
    """

    each: tuple[float, ...]
    n: int
    ci: tuple[float, float]

    @property
    def mean(self) -> float:
        return mean(self.each)

    @property
    def deviation(self) -> float | None:
        return stdev(self.each) if len(self.each) > 1 else None

    def flat(self) -> dict[str, Any]:
        return {
            "mean": round(self.mean, 6),
            "each": [round(value, 6) for value in self.each],
            "low": round(self.ci[0], 6),
            "high": round(self.ci[1], 6),
            "deviation": None if self.deviation is None else round(self.deviation, 6),
            "instances": self.n,
        }


@dataclass(frozen=True)
class Row:
    """One system in the table: its score in each training, and the spread of its Pass@1."""

    scores: list[Score]
    spread: Spread | None

    @property
    def label(self) -> str:
        return self.scores[0].system.label

    @property
    def identity(self) -> Identity | None:
        return self.scores[0].system.identity

    @property
    def n(self) -> int:
        return sum(one.n for one in self.scores)

    @property
    def n_infra(self) -> int:
        return sum(one.n_infra for one in self.scores)

    def mean(self, name: str) -> float | None:
        """Of a figure, over the trainings that have it."""
        known = [value for one in self.scores if (value := getattr(one, name)) is not None]
        return mean(known) if known else None


def load_trainings(folder: Path | str, seeds: Sequence[int]) -> Trainings:
    """``folder/<seed>/evaluation`` of each seed.

    Raises:
        BadInput: one is not there, lacks a system that another has, or met other instances.
    """
    found: Trainings = {}
    for seed in seeds:
        path = Path(folder) / str(seed) / "evaluation"
        found[seed] = {system.name: system for system in load_systems(path)}
        if not found[seed]:
            raise BadInput(f"no trajectories under {path}; run `make seeds`")
    first, *others = seeds
    for seed in others:
        for what, wanted, given in (
            ("systems", set(found[first]), set(found[seed])),
            ("instances", _instances(found[first]), _instances(found[seed])),
        ):
            if wanted != given:
                differ = ", ".join(sorted(wanted ^ given)[:3])
                raise BadInput(
                    f"{folder}: seeds {first} and {seed} do not have the same {what} ({differ}); run `make seeds` for both again"
                )
    return found


def _instances(systems: dict[str, System]) -> set[str]:
    return {t.instance_id for system in systems.values() for t in system.trajectories}


def pass_at_1(systems: Sequence[System], params: ReportParams) -> Spread | None:
    """One system, a training each. None where no instance has a verdict in every training."""
    return _spread([by_instance(system) for system in systems], params)


def difference(first: Sequence[System], second: Sequence[System], params: ReportParams) -> Spread | None:
    """Second minus first, paired within each training and instance."""
    tables = []
    for one, other in zip(first, second, strict=True):
        a, b = by_instance(one), by_instance(other)
        tables.append({name: b[name] - a[name] for name in a.keys() & b.keys()})
    return _spread(tables, params)


def _spread(tables: Sequence[dict[str, float]], params: ReportParams) -> Spread | None:
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    if not shared:
        return None
    rows = [[table[name] for name in shared] for table in tables]
    ci = crossed_bootstrap(rows, params.confidence, params.bootstrap_samples, params.bootstrap_seed)
    return Spread(tuple(mean(row) for row in rows), len(shared), ci)


def write_seeds(folder: Path | str, seeds: Sequence[int], params: ReportParams, about: dict[str, Any]) -> str:
    """seeds.json, seeds.md and seeds.png in ``folder``; returns the text of seeds.md. Raises what load_trainings raises.

    Args:
        about: what made the numbers (commit, profile, …), shown as given.
    """
    folder = Path(folder)
    trainings = load_trainings(folder, seeds)
    columns = {name: [trainings[seed][name] for seed in seeds] for name in trainings[seeds[0]]}
    scores = {name: [score(system, params) for system in systems] for name, systems in columns.items()}
    spreads = {name: pass_at_1(systems, params) for name, systems in columns.items()}
    pairs = {
        compared.label: difference(columns[compared.first.name], columns[compared.second.name], params)
        for compared in comparisons([systems[0] for systems in columns.values()], params)
    }
    write_json(
        folder / "seeds.json",
        {
            "about": about,
            "seeds": list(seeds),
            "pass_at_1": {name: spread.flat() for name, spread in spreads.items() if spread},
            "differences": {label: spread.flat() for label, spread in pairs.items() if spread},
            "by_seed": {name: [one.flat() for one in each] for name, each in scores.items()},
        },
    )
    rows = [Row(each, spreads[name]) for name, each in scores.items()]
    known = {label: spread for label, spread in pairs.items() if spread}
    text = markdown("seeds", trainings=seeds, rows=rows, pairs=known, params=params, about=about)
    write_atomic(folder / "seeds.md", text)
    write_atomic(folder / "seeds.png", plot(seeds, scores, spreads, params))
    return text


def plot(
    seeds: Sequence[int], scores: dict[str, list[Score]], spreads: dict[str, Spread | None], params: ReportParams
) -> bytes:
    """PNG: for each system a dot a training, and the mean with its interval."""
    from matplotlib.figure import Figure

    shown = [(scores[name][0].system, spread) for name, spread in spreads.items() if spread]
    figure = Figure(figsize=(1.8 + 1.3 * len(shown), 4.0), layout="constrained")
    axes = figure.subplots()
    for at, (_, spread) in enumerate(shown):
        arms = [[max(0.0, spread.mean - spread.ci[0])], [max(0.0, spread.ci[1] - spread.mean)]]
        axes.errorbar(at, spread.mean, yerr=arms, fmt="_", markersize=22, color="#222222", capsize=5, zorder=2)
        for index, value in enumerate(spread.each):
            offset = 0.1 * (index - (len(seeds) - 1) / 2)
            axes.plot(
                at + offset, value, "o", color=f"C{index}", zorder=3, label=f"seed {seeds[index]}" if not at else None
            )
    axes.set_xticks(range(len(shown)), [_wrapped(system) for system, _ in shown])
    axes.set(
        ylabel="Pass@1", title=f"{len(seeds)} trainings, mean and {params.confidence:.0%} interval", ylim=(-0.03, 1.03)
    )
    axes.set_xlim(-0.6, len(shown) - 0.4)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _wrapped(system: System) -> str:
    gold = "\n(has seen\nthe gold patch)" if system.identity and system.identity.sees_gold else ""
    return system.label.replace(", ", ",\n").replace(" + ", "\n+ ") + gold
