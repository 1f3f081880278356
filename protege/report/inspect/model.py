"""What is shown of a trajectory, whatever shows it: page, terminal or JSON."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, Field

from protege.core.loops import base_commands
from protege.core.trajectory import ExpertCall, Identity, Tokens, ToolCall, Trajectory, Turn, Verdict
from protege.report.inspect.breakdown import Breakdown, break_down
from protege.report.inspect.commands import Command, commands
from protege.report.inspect.sources import Context, Record
from protege.report.inspect.text import seconds

Result = Literal["infrastructure", "not graded", "unresolved", "resolved"]
ORDER: tuple[Result, ...] = ("infrastructure", "not graded", "unresolved", "resolved")
"""Failures first, and of those the infrastructure's: it is what a person can fix."""

_CALL = re.compile(r"<function=[^>\n]*>.*?</function>", re.DOTALL)


class Run(BaseModel):
    """Consecutive turns with the same base command; ``first`` and ``last`` are turn indices, both included."""

    base: str
    first: int
    last: int
    length: int
    loops: bool


class Step(BaseModel):
    """One turn with what it is part of. ``thought`` is the message without its call."""

    turn: Turn
    base: str
    thought: str
    run: Run
    expert: ExpertCall | None = None


class Totals(BaseModel):
    """Sums over the turns and the expert's calls; ``asked`` counts the answered ones."""

    model_seconds: float
    tool_seconds: float
    asked: int
    refused: int
    malformed: int


class View(BaseModel):
    """Everything that is shown of one trajectory, whatever shows it. ``facts`` are names and values in words."""

    trajectory: Trajectory
    source: str = ""
    result: Result
    headline: str
    reason: str
    exit_status: str
    facts: list[tuple[str, str]]
    verdict_facts: list[tuple[str, str]]
    steps: list[Step]
    runs: list[Run]
    longest_run: int
    looped: bool
    totals: Totals
    breakdown: Breakdown | None
    no_breakdown: str
    gold_patch: str | None
    no_gold: str
    commands: list[Command]
    notes: list[str] = Field(default_factory=list)

    @property
    def no_patch(self) -> str:
        """Why the patch is empty, "" where it is not."""
        if self.trajectory.patch.strip():
            return ""
        failed = self.trajectory.failure and not self.steps
        return "none: the rollout did not end" if failed else "empty: the agent changed nothing"


def result_of(trajectory: Trajectory) -> Result:
    """Whose failure it is: the infrastructure's (failed) and the agent's (unresolved) are never the same word."""
    if trajectory.failure is not None or trajectory.exit_status == "infrastructure":
        return "infrastructure"
    if trajectory.verdict is None:
        return "not graded"
    return "resolved" if trajectory.verdict.resolved else "unresolved"


def reason_of(trajectory: Trajectory) -> str:
    """Why it is no success, in a phrase; "" for a resolved one."""
    failure, verdict = trajectory.failure, trajectory.verdict
    if failure is not None:
        tries = f"{failure.attempts} attempt{'s' if failure.attempts != 1 else ''}"
        return f"{failure.boundary.replace('_', ' ')}: {failure.error}: {failure.message} ({tries})"
    if trajectory.exit_status == "infrastructure":
        return "the file does not say which boundary failed"
    if verdict is None:
        return "the patch was never graded"
    if verdict.resolved:
        return ""
    counts = f"fail-to-pass {_of(verdict.fail_to_pass)}, pass-to-pass {_of(verdict.pass_to_pass)}"
    if verdict.empty_patch:
        return f"{verdict.reason or 'the patch is empty'}; {counts}"
    return f"{verdict.reason or ('tests fail' if verdict.applied else 'the patch does not apply')}; {counts}"


def _of(pair: tuple[int, int]) -> str:
    return f"{pair[0]} of {pair[1]}"


def _headline(result: Result, trajectory: Trajectory) -> str:
    if result == "infrastructure":
        where = trajectory.failure.boundary.replace("_", " ") if trajectory.failure else "unknown boundary"
        return f"Failed: the infrastructure's failure ({where}), not the agent's. It has no score and is counted apart."
    if result == "not graded":
        return "Not graded: there is a rollout, but no verdict on its patch."
    if result == "unresolved":
        return "Unresolved: the agent's failure. The infrastructure did its part."
    return "Resolved: every test that decides passes with the agent's patch."


def runs_of(trajectory: Trajectory, longer_than: int) -> list[Run]:
    """The maximal runs of loops.py with their turns."""
    found, first = [], 0
    for base, group in groupby(base_commands(trajectory.turns)):
        length = sum(1 for _ in group)
        found.append(Run(base=base, first=first, last=first + length - 1, length=length, loops=length > longer_than))
        first += length
    return found


def view(found: Record, context: Context) -> View:
    """The trajectory with its runs, its expert exchanges at their turns, its reward and its gold patch."""
    t = found.trajectory
    runs = runs_of(t, context.longer_than)
    gold, no_gold = context.gold(t)
    breakdown, no_breakdown = break_down(t, gold, context.reward, context.params_from, context.logged_reward(found))
    result = result_of(t)
    answered = [call for call in t.expert_calls if call.answered]
    totals = Totals(
        model_seconds=sum(turn.model_seconds for turn in t.turns),
        tool_seconds=sum(turn.tool_seconds for turn in t.turns),
        asked=len(answered),
        refused=len(t.expert_calls) - len(answered),
        malformed=sum(turn.malformed for turn in t.turns),
    )
    return View(
        trajectory=t,
        source=str(found.path) if found.path else "",
        result=result,
        headline=_headline(result, t),
        reason=reason_of(t),
        exit_status=t.exit_status.replace("_", " "),
        facts=_facts(t, totals, max((run.length for run in runs), default=0), context.longer_than, found.path),
        verdict_facts=_verdict_facts(t.verdict) if t.verdict else [],
        steps=_steps(t, runs),
        runs=runs,
        longest_run=max((run.length for run in runs), default=0),
        looped=any(run.loops for run in runs),
        totals=totals,
        breakdown=breakdown,
        no_breakdown=no_breakdown,
        gold_patch=gold,
        no_gold=no_gold,
        commands=commands(t, found.path, gold is not None),
        notes=[*context.problems, *_contradictions(t)],
    )


def _facts(t: Trajectory, totals: Totals, longest: int, longer_than: int, path: Path | None) -> list[tuple[str, str]]:
    calls = t.expert_calls
    scores = [
        f"; {name} {sum(known) / len(known):.2f}"
        for name in ("warrant", "follow")
        if (known := [s for call in calls if call.answered and (s := getattr(call, name)) is not None])
    ]
    prefilled = sum(turn.finish_reason == "forced" for turn in t.turns)
    spent = f"{seconds(t.seconds)} in all; model {seconds(totals.model_seconds)}, tools {seconds(totals.tool_seconds)}"
    expert_seconds, cost = sum(call.seconds for call in calls), sum(call.cost_usd for call in calls)
    prompt = max((turn.prompt_tokens for turn in t.turns), default=0)
    graded = f"; graded in {t.verdict.backend}" if t.verdict and t.verdict.backend else ""
    return [
        ("Policy", _who(t.policy)),
        ("Expert", _who(t.expert) if t.expert else "none"),
        (
            "Expert calls",
            f"{totals.asked} answered, {totals.refused} refused{''.join(scores)}"
            + (f"; {prefilled} turns were prefilled" if prefilled else ""),
        ),
        (
            "Longest run",
            f"{longest}{' (looped)' if longest > longer_than else ''}; a loop is a run longer than {longer_than}",
        ),
        ("Time", spent + (f", of that the expert {seconds(expert_seconds)}" if expert_seconds else "")),
        (
            "Tokens",
            f"{t.completion_tokens:,} generated; longest prompt {prompt:,}; expert {t.expert_tokens:,}"
            + (f" (${cost:.4f})" if cost else ""),
        ),
        ("Token record", _record(t.tokens) if t.tokens else "none"),
        ("Repository", t.repo or "unknown"),
        ("Sandbox", (t.sandbox_backend or "unknown") + graded),
        ("Image digest", t.image_digest or (t.verdict.image_digest if t.verdict else "") or "unknown"),
        ("Instance", t.instance_id),
        ("Instance digest", t.instance_digest or "unknown"),
        ("Seed", f"{t.seed}" + (f"; plan {t.plan}" if t.plan else "")),
        ("Started", t.started_at or "unknown"),
        ("File", str(path or "none")),
    ]


def _who(identity: Identity) -> str:
    known = [identity.kind, identity.digest[:16], "has seen the gold patch" if identity.sees_gold else ""]
    return f"{identity.name} ({', '.join(filter(None, known))})"


def _record(tokens: Tokens) -> str:
    sampled = [p for p, mask in zip(tokens.logprobs, tokens.mask, strict=False) if mask]
    mean = f"; mean log-probability {sum(sampled) / len(sampled):.3f}" if sampled else ""
    return f"{len(tokens.ids):,} tokens, {sum(tokens.mask):,} sampled, opening {tokens.prompt_length:,}{mean}"


def _verdict_facts(verdict: Verdict) -> list[tuple[str, str]]:
    evidence = f" (evidence: {verdict.evidence})" if verdict.evidence else ""
    found = [
        ("Resolved", ("yes" if verdict.resolved else "no") + evidence),
        ("FAIL_TO_PASS", f"{_of(verdict.fail_to_pass)} pass"),
        ("PASS_TO_PASS", f"{_of(verdict.pass_to_pass)} pass"),
        ("Patch", "empty" if verdict.empty_patch else "applied" if verdict.applied else "not applied"),
        ("Reason", verdict.reason),
        ("Left out of the patch", ", ".join(verdict.dropped)),
        ("Grading took", seconds(verdict.seconds)),
    ]
    return [(name, value) for name, value in found if value]


def _steps(t: Trajectory, runs: list[Run]) -> list[Step]:
    of_turn = [run for run in runs for _ in range(run.length)]
    asked: dict[int, ExpertCall] = {}
    for call in t.expert_calls:
        asked.setdefault(call.turn, call)
    return [
        Step(
            turn=turn,
            base=run.base,
            thought=_CALL.sub("", turn.message).strip() if turn.call else turn.message.strip(),
            run=run,
            expert=asked.get(turn.index) if run.base == "ask_expert" else None,
        )
        for turn, run in zip(t.turns, of_turn, strict=True)
    ]


def _contradictions(t: Trajectory) -> list[str]:
    """What in the file contradicts itself; the page would otherwise hide it."""
    found = []
    turns = {turn.index for turn in t.turns if turn.call is not None and turn.call.name == "ask_expert"}
    if stray := [call.turn for call in t.expert_calls if call.turn not in turns]:
        found.append(f"expert calls are recorded for turns that do not ask: {', '.join(map(str, stray))}")
    if t.verdict is not None and t.verdict.instance_digest != t.instance_digest and t.instance_digest:
        found.append("the verdict is on another content of this instance than the one that was rolled out")
    return found


def arguments(call: ToolCall) -> list[tuple[str, str]]:
    """A call's arguments in the order in which they are read: what is done and to which file comes first."""
    first = [key for key in ("command", "path") if key in call.arguments]
    return [(key, call.arguments[key]) for key in [*first, *(k for k in call.arguments if k not in first)]]


def one_line(call: ToolCall) -> str:
    """A call in a line: its arguments without their names, newlines as signs, cut at 160 characters."""
    text = "  ".join(value for _, value in arguments(call) if value).replace("\n", " ⏎ ")
    return text if len(text) <= 160 else text[:160] + " …"
