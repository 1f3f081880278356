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

from protege.errors import BadInput
from protege.files import write_atomic, write_json
from protege.report.metrics import ReportParams, Score, System, by_instance, comparisons, load_systems, score
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
    text = markdown(seeds, scores, spreads, pairs, params, about)
    write_atomic(folder / "seeds.md", text)
    write_atomic(folder / "seeds.png", plot(seeds, scores, spreads, params))
    return text


def markdown(
    seeds: Sequence[int],
    scores: dict[str, list[Score]],
    spreads: dict[str, Spread | None],
    pairs: dict[str, Spread | None],
    params: ReportParams,
    about: dict[str, Any],
) -> str:
    interval = f"{params.confidence:.0%} CI"
    lines = [f"# One recipe, {len(seeds)} trainings (seeds {', '.join(map(str, seeds))})", ""]
    identities = [one.system.identity for each in scores.values() for one in each]
    if any(identity and identity.sees_gold for identity in identities):
        lines += ["> **The oracle has seen the gold patch.** Its scores are not comparable with the paper's.", ""]
    head = ["system", "Pass@1", interval, "of each seed", "deviation (points)", "rollouts (instances)"]
    head += ["infrastructure failures", f"loops > {params.loop_run_longer_than}", "expert calls", "expert token share"]
    head += ["warrant", "follow score", "steps"]
    lines += ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for name, each in scores.items():
        spread, graded = spreads[name], sum(one.n for one in each)
        lost = sum(one.n_infra for one in each)
        gold = " (has seen the gold patch)" if each[0].system.identity and each[0].system.identity.sees_gold else ""
        cells = [each[0].system.label + gold, *_shown(spread, "{:.1f}%", signed=False)]
        cells += [f"{graded} ({spread.n if spread else 0})", f"{lost} of {graded + lost}"]
        cells += [_mean([one.loop_share for one in each], ".1%"), _mean([one.expert_calls for one in each], ".1f")]
        cells += [_mean([one.expert_token_share for one in each], ".1%"), _mean([one.warrant for one in each], ".2f")]
        cells += [_mean([one.follow for one in each], ".2f"), _mean([one.steps for one in each], ".1f")]
        lines.append("| " + " | ".join(cells) + " |")
    if shown := {label: spread for label, spread in pairs.items() if spread}:
        lines += ["", "## Paired on the same instances, within each training", ""]
        lines += [f"| from → to | difference (points) | {interval} | of each seed | deviation | instances |"]
        lines += ["|---|--:|:-:|--:|--:|--:|"]
        for label, spread in shown.items():
            lines.append(f"| {label} | {' | '.join(_shown(spread, '{:+.1f}', signed=True))} | {spread.n} |")
    lines += [
        "",
        "Each figure is the mean over trainings of what that training has. Intervals resample trainings and instances both; with "
        "two or three trainings they are rough. Infrastructure failures are outside of Pass@1; an instance counts where every "
        "training has a verdict for it.",
        "",
        *(f"- {key}: {value}" for key, value in about.items()),
    ]
    return "\n".join(lines) + "\n"


def _shown(spread: Spread | None, form: str, signed: bool) -> list[str]:
    """Mean, interval, each training's, deviation."""
    if spread is None:
        return ["–"] * 4
    low, high = (form.format(100 * bound) for bound in spread.ci)
    each = ", ".join(f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}" for value in spread.each)
    deviation = "–" if spread.deviation is None else f"{100 * spread.deviation:.1f}"
    return [form.format(100 * spread.mean), f"{low} to {high}", each, deviation]


def _mean(values: Sequence[float | None], form: str) -> str:
    """Of the trainings that have one."""
    known = [value for value in values if value is not None]
    return format(mean(known), form) if known else "–"


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
