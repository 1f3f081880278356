"""The report: metrics JSON, Markdown, and one HTML page that needs nothing but itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from protege.config import ReportParams, RewardParams
from protege.core.loops import longest_run
from protege.files import write_atomic, write_json
from protege.report import leaks, plots
from protege.report.inputs import TERMS, Inputs, load_inputs
from protege.report.metrics import Comparison, Score, System, calls, comparisons, lost, score
from protege.report.render import TEMPLATES, environment, markdown

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

Pages = dict[tuple[str, str], str]
"""Where a trajectory's page is, by system and trajectory id; relative to the report, quoted for a link."""


@dataclass(frozen=True)
class Row:
    """One trajectory in the table of instances."""

    instance_id: str
    system: str
    label: str
    result: str
    exit_status: str
    reason: str
    steps: int
    run: int
    calls: int
    malformed: int
    page: str = ""


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
        data_dir: the pipeline's ``data`` folder. What is missing in it is said on the page.
        provenance: shown as given, in its order: commit, profile, params digest, date, package versions, ...
            A value that is a dict becomes a list of its own. ``profile``, ``commit`` and ``date`` also stand at the top.
        metrics_path: for ``dvc metrics show``; ``out_dir/metrics.json`` when not given.
        reward: what the trajectories' pages reckon the reward with; the defaults when not given.
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
    pages = trajectory_pages(found.systems, Path(data_dir), out_dir, params, reward)
    write_atomic(out_dir / "index.html", _html(found, scores, pairs, params, provenance, pages))
    return metrics


def trajectory_pages(
    systems: Sequence[System], data_dir: Path, out_dir: Path, params: ReportParams, reward: RewardParams | None
) -> Pages:
    """Write the viewer's page of every evaluated trajectory, and their index; where each is, relative to ``out_dir``."""
    from protege.report.inspect.sources import Found, Material
    from protege.report.inspect.write import Placed, load_rows, write_pages

    if not systems:
        return {}
    material = Material(longer_than=params.loop_run_longer_than)
    load_rows(material, data_dir / "instances")
    if reward is not None:
        material.reward, material.params_from = reward, "section reward of the run's params"
    items = [
        (system.name, t, data_dir / "evaluation" / system.name / "trajectories" / f"{t.trajectory_id}.json")
        for system in systems
        for t in system.trajectories
    ]
    written = write_pages(
        (Placed(Found(t, path), name) for name, t, path in items),
        material,
        out_dir / "trajectories",
        "Evaluated trajectories",
        back="../index.html",
    )
    return {
        (name, t.trajectory_id): quote(page.relative_to(out_dir).as_posix())
        for (name, t, _), page in zip(items, written.pages, strict=True)
    }


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


def rows_of(systems: Sequence[System], pages: Pages | None = None) -> list[Row]:
    """Every trajectory, infrastructure failures first, then unresolved, then resolved."""
    rows = [_row(system, trajectory, pages or {}) for system in systems for trajectory in system.trajectories]
    order = {"infrastructure": 0, "unresolved": 1, "resolved": 2}
    return sorted(rows, key=lambda r: (order[r.result], r.instance_id, r.system))


def _row(system: System, t: Any, pages: Pages) -> Row:
    if t.failure is not None:
        reason = f"{t.failure.boundary.replace('_', ' ')}: {t.failure.message} ({t.failure.attempts} attempts)"
    elif t.verdict is None:
        reason = "no verdict"
    elif t.verdict.resolved:
        reason = ""
    else:
        f2p, p2p = t.verdict.fail_to_pass, t.verdict.pass_to_pass
        counts = f"fail-to-pass {f2p[0]}/{f2p[1]}, pass-to-pass {p2p[0]}/{p2p[1]}"
        reason = f"{t.verdict.reason or ('empty patch' if t.verdict.empty_patch else 'tests fail')}; {counts}"
    return Row(
        instance_id=t.instance_id,
        system=system.name,
        label=system.label,
        result="infrastructure" if lost(t) else "resolved" if t.resolved else "unresolved",
        exit_status=t.exit_status.replace("_", " "),
        reason=reason,
        steps=len(t.turns),
        run=longest_run(t),
        calls=calls(t),
        malformed=sum(turn.malformed for turn in t.turns),
        page=pages.get((system.name, t.trajectory_id), ""),
    )


def _html(
    found: Inputs,
    scores: Sequence[Score],
    pairs: Sequence[Comparison],
    params: ReportParams,
    provenance: dict[str, Any],
    pages: Pages,
) -> str:
    from markupsafe import Markup

    graded = [system for system in found.systems if system.graded]
    return (
        environment(html=True)
        .get_template("page.html")
        .render(
            style=Markup((TEMPLATES / "style.css").read_text(encoding="utf-8")),
            found=found,
            scores=scores,
            pairs=pairs,
            params=params,
            provenance=provenance,
            headline=headline(scores),
            experts=experts(found.systems),
            backends=backends(found.systems),
            rows=rows_of(found.systems, pages),
            page_of={
                (s.label, t.trajectory_id): pages.get((s.name, t.trajectory_id))
                for s in found.systems
                for t in s.trajectories
            },
            leak_note=leaks.NOTE,
            legend=[(Markup(plots.swatch(system)), system.label) for system in graded],
            charts={name: Markup(svg) for name, svg in _charts(found, scores, graded, params).items()},
            small=[
                (
                    TERM_NAMES[term],
                    Markup(
                        plots.curve(found.rl_terms[term], TERM_NAMES[term], "step", small=True, mark=found.stage_two)
                    ),
                )
                for term in TERMS
                if found.rl_terms.get(term)
            ],
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
