"""The report as Markdown, for a terminal, a pull request or a Prefect artifact."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from protege.report import leaks
from protege.report.inputs import Inputs
from protege.report.metrics import Comparison, ReportParams, Score


def markdown(
    found: Inputs,
    scores: Sequence[Score],
    pairs: Sequence[Comparison],
    params: ReportParams,
    provenance: dict[str, Any],
) -> str:
    lines = ["# SWE-Protégé: evaluation", ""]
    for system in found.systems:
        if system.identity and system.identity.sees_gold:
            lines += [
                f"> **The expert `{system.identity.name}` has seen the gold patch.** "
                "Scores with it are not comparable with the paper's.",
                "",
            ]
            break
    lines += [results_table(scores, params), ""]
    lines += [
        "Infrastructure failures are outside of n and of Pass@1, which is the mean over instances; its interval is Wilson's "
        "with one rollout an instance, else instances are resampled. Expert token share: the expert's generated tokens "
        "over all generated tokens.",
        "",
    ]
    if found.systems:
        lines += ["Each trajectory has a page: `data/report/trajectories/index.html`, failures first.", ""]
    if pairs:
        lines += [
            "## Paired on the same instances",
            "",
            f"| from → to | instances | worse on | better on | difference (points) | {params.confidence:.0%} CI | p |",
        ]
        lines += ["|---|--:|--:|--:|--:|:-:|--:|"]
        lines += [
            f"| {p.label} | {p.n} | {p.only_first} | {p.only_second} | {100 * p.difference:+.1f} "
            f"| {100 * p.ci[0]:+.1f} to {100 * p.ci[1]:+.1f} | {p.p_value:.3f} |"
            for p in pairs
            if p.n
        ]
        lines.append("")
    if found.leaks:
        lines += ["## Leak audit", "", *leaks.table(found.leaks, params.leak_chars), "", leaks.NOTE, ""]
    if found.missing:
        lines += ["## Missing", "", *(f"- {what}" for what in found.missing), ""]
    lines += ["## Made by", ""]
    for key, value in provenance.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        lines.append(f"- {key}: {shown}")
    return "\n".join(lines) + "\n"


def results_table(scores: Sequence[Score], params: ReportParams) -> str:
    """The headline table alone (what ``make demo`` prints at its end)."""
    head = [
        "system",
        "Pass@1",
        f"{params.confidence:.0%} CI",
        "resolved / rollouts (instances)",
        "infrastructure failures",
        f"loops > {params.loop_run_longer_than}",
        "expert calls",
        "expert token share",
        "warrant",
        "follow score",
        "steps",
    ]
    rows = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    for s in scores:
        oracle = " (has seen the gold patch)" if s.system.identity and s.system.identity.sees_gold else ""
        cells = [
            s.system.label + oracle,
            _pct(s.pass_at_1),
            f"{s.ci[0]:.1%} to {s.ci[1]:.1%}" if s.n else "–",
            f"{s.resolved} / {s.n} ({s.instances})",
            f"{s.n_infra} of {s.n + s.n_infra}",
            _pct(s.loop_share),
            _num(s.expert_calls),
            _pct(s.expert_token_share),
            _score(s.warrant),
            _score(s.follow),
            _num(s.steps),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _pct(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"


def _score(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _num(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
