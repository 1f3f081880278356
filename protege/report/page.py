"""The report: metrics JSON, Markdown, and one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protege.config import ReportParams, RewardParams
from protege.files import write_atomic, write_json
from protege.report import leaks, plots
from protege.report.inputs import TERMS, Inputs, load_inputs
from protege.report.inspect.pages import Line
from protege.report.metrics import Comparison, Score, System, comparisons, score
from protege.report.render import environment, markdown, style

TERM_NAMES = {
    "total": "total reward",
    "correct": "correct",
    "loop": "loop penalty",
    "follow": "follow-through",
    "warrant": "warrant",
    "b2b": "back-to-back calls",
    "sim": "similarity",
    "expert": "expert use",
    "g_loop": "gate: loop",
    "g_follow": "gate: follow",
    "no_call": "no-call penalty",
    "expert_calls": "expert calls",
    "steps": "steps",
    "longest_run": "longest run of one command",
}


def write_report(
    data_dir: Path | str,
    out_dir: Path | str,
    params: ReportParams,
    provenance: dict[str, Any],
    metrics_path: Path | str | None = None,
    reward: RewardParams | None = None,
) -> dict[str, dict[str, float]]:
    """Write ``index.html``, a page for each trajectory that it names under ``trajectories/``, and ``report.md`` under
    ``out_dir``, and the metrics as JSON; return the metrics.

    Args:
        data_dir: the pipeline's ``data`` folder. What is missing in it is named on the page.
        provenance: shown as given, in its order: commit, profile, params digest, date, package versions, ...
            A value that is a dict becomes a list of its own. ``profile``, ``commit`` and ``date`` also stand at the top.
        metrics_path: for ``dvc metrics show``; ``out_dir/metrics.json`` when not given.
        reward: what the trajectories' pages compute the reward with; the defaults when not given.
    """
    out_dir = Path(out_dir)
    found = load_inputs(data_dir, params.leak_chars)
    scores = [score(system, params) for system in found.systems]
    pairs = comparisons(found.systems, params)
    metrics = {s.system.name: s.flat() for s in scores}
    write_json(metrics_path or out_dir / "metrics.json", metrics)
    text = markdown(
        "report",
        found=found,
        scores=scores,
        pairs=pairs,
        params=params,
        leak_note=leaks.NOTE,
        provenance=provenance,
    )
    write_atomic(out_dir / "report.md", text)
    lines = trajectory_pages(found.systems, Path(data_dir), out_dir, params, reward)
    write_atomic(out_dir / "index.html", _html(found, scores, pairs, params, provenance, lines))
    return metrics


def trajectory_pages(
    systems: Sequence[System], data_dir: Path, out_dir: Path, params: ReportParams, reward: RewardParams | None
) -> list[Line]:
    """Write the viewer's page of every evaluated trajectory, and their index; returns its lines, failures first."""
    from protege.report.inspect.pages import Entry, load_rows, write_pages
    from protege.report.inspect.sources import Context, Record

    if not systems:
        return []
    context = Context(longer_than=params.loop_run_longer_than)
    load_rows(context, data_dir / "instances")
    if reward is not None:
        context.reward, context.params_from = reward, "section reward of the run's params"
    evaluation = data_dir / "evaluation"
    items = (
        Entry(Record(t, evaluation / system.name / "trajectories" / f"{t.trajectory_id}.json"), system.name)
        for system in systems
        for t in system.trajectories
    )
    folder = out_dir / "trajectories"
    return write_pages(items, context, folder, "Evaluated trajectories", back="../index.html").ordered


def headline(scores: Sequence[Score]) -> str:
    """The result in one sentence, with its uncertainty: the best system by Pass@1, or all that share the place."""
    graded = [s for s in scores if s.pass_at_1 is not None]
    if not graded:
        return "Nothing has been graded yet."
    top = max(s.pass_at_1 or 0.0 for s in graded)
    if top == 0:
        return f"No system resolved an instance (n up to {max(s.n for s in graded)})."
    best = [
        f"{s.system.label}: {s.resolved} of {s.n} resolved, {s.pass_at_1:.1%} (interval {s.ci[0]:.1%} to {s.ci[1]:.1%})"
        for s in graded
        if s.pass_at_1 == top
    ]
    return f"Highest Pass@1 of {len(graded)} systems: {'; '.join(best)}."


def _html(
    found: Inputs,
    scores: Sequence[Score],
    pairs: Sequence[Comparison],
    params: ReportParams,
    provenance: dict[str, Any],
    lines: list[Line],
) -> str:
    from markupsafe import Markup

    graded = [system for system in found.systems if system.graded]
    labels = {s.name: s.label for s in found.systems}
    curves = {TERM_NAMES[term]: found.rl_terms[term] for term in TERMS if found.rl_terms.get(term)}
    values = {
        "style": Markup(style("report")),
        "headline": headline(scores),
        "experts": experts(found.systems),
        "backends": backends(found.systems),
        "labels": labels,
        "page_of": {(labels[line.group], line.trajectory_id): line.href for line in lines},
        "leak_note": leaks.NOTE,
        "legend": [(Markup(plots.swatch(system)), system.label) for system in graded],
        "charts": {name: Markup(svg) for name, svg in _charts(found, scores, graded, params).items()},
        "small": [
            (name, Markup(plots.curve(curve, name, "step", small=True, mark=found.stage_two)))
            for name, curve in curves.items()
        ],
    }
    template = environment(html=True).get_template("report.html")
    return str(
        template.render(
            **values, found=found, scores=scores, pairs=pairs, params=params, provenance=provenance, rows=lines
        )
    )


def _charts(found: Inputs, scores: Sequence[Score], graded: list[System], params: ReportParams) -> dict[str, str]:
    charts = dict.fromkeys(("passed", "loops", "steps", "calls", "sft"), "")
    if scores:
        charts["passed"] = plots.pass_intervals(scores, params.confidence)
    if graded:
        charts["loops"] = plots.loop_survival(graded, params.loop_run_longer_than)
        charts["steps"] = plots.steps_distribution(graded)
    if any(system.expert != "none" for system in graded):
        charts["calls"] = plots.calls_distribution(graded)
    if found.sft_curve:
        charts["sft"] = plots.curve(found.sft_curve, "SFT loss", "step")
    return charts


def experts(systems: Sequence[System]) -> list[dict[str, Any]]:
    """Each expert that was asked: name, kind, digest, whether it has seen the gold patch, and for which systems."""
    seen: dict[str, dict[str, Any]] = {}
    for system in systems:
        if identity := system.identity:
            entry = seen.setdefault(identity.digest + identity.name, identity.model_dump() | {"systems": []})
            entry["systems"].append(system.label)
    return list(seen.values())


def backends(systems: Sequence[System]) -> dict[str, dict[str, int]]:
    """How many rollouts ran, and how many patches were graded, in which kind of sandbox."""
    everything = [t for system in systems for t in system.trajectories]
    ran = Counter(t.sandbox_backend for t in everything if t.sandbox_backend)
    graded = Counter(t.verdict.backend for t in everything if t.verdict and t.verdict.backend)
    empty = graded.pop("none", 0)  # nothing was run for them
    if empty:
        graded["without a run, the patch being empty or refused"] = empty
    return {"Rolled out in": dict(ran), "Graded in": dict(graded)}
