"""What is shown of a trajectory, whatever shows it: page, terminal or JSON."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Literal

from pydantic import BaseModel, Field

from protege.core.loops import base_commands
from protege.core.trajectory import ExpertCall, Failure, Identity, Message, ToolCall, Trajectory, Turn, Verdict
from protege.report.inspect.commands import Command, commands
from protege.report.inspect.reckoning import Reckoning, reckon
from protege.report.inspect.sources import Found, Material

Result = Literal["infrastructure", "not graded", "unresolved", "resolved"]
ORDER: tuple[Result, ...] = ("infrastructure", "not graded", "unresolved", "resolved")
"""Failures first, and of those the infrastructure's: it is what a person can mend."""

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
    """Sums over the turns; seconds are wall-clock. ``prompt_tokens`` is the longest prompt, not a sum."""

    model_seconds: float
    tool_seconds: float
    completion_tokens: int
    prompt_tokens: int
    expert_tokens: int
    expert_seconds: float
    cost_usd: float
    asked: int
    refused: int
    malformed: int
    forced: int
    warrant: float | None
    follow: float | None


class Record(BaseModel):
    """The exact token record in brief (trajectory.Tokens)."""

    tokens: int
    sampled: int
    prompt_length: int
    mean_logprob: float | None


class View(BaseModel):
    """Everything that is shown of one trajectory."""

    trajectory_id: str
    instance_id: str
    instance_digest: str
    repo: str
    source: str = ""
    result: Result
    headline: str
    exit_status: str
    reason: str
    policy: Identity
    expert: Identity | None
    seed: int
    plan: str
    started_at: str
    seconds: float
    sandbox_backend: str
    image_digest: str
    failure: Failure | None
    verdict: Verdict | None
    messages: list[Message]
    steps: list[Step]
    runs: list[Run]
    longest_run: int
    looped: bool
    looped_above: int
    totals: Totals
    record: Record | None
    reckoning: Reckoning | None
    no_reckoning: str
    patch: str
    gold_patch: str | None
    no_gold: str
    commands: list[Command]
    notes: list[str] = Field(default_factory=list)


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


def view(found: Found, material: Material) -> View:
    """The trajectory with its runs, its expert exchanges at their turns, its reward and its gold patch."""
    t = found.trajectory
    runs = runs_of(t, material.longer_than)
    gold, no_gold = material.gold(t)
    reckoning, no_reckoning = reckon(t, gold, material.reward, material.params_from, material.logged_reward(found))
    result = result_of(t)
    notes = [*found.notes, *material.problems, *_disagreements(t)]
    return View(
        trajectory_id=t.trajectory_id,
        instance_id=t.instance_id,
        instance_digest=t.instance_digest,
        repo=t.repo,
        source=str(found.path) if found.path else "",
        result=result,
        headline=_headline(result, t),
        exit_status="unknown" if "exit_status" in found.lacking else t.exit_status.replace("_", " "),
        reason=reason_of(t),
        policy=t.policy,
        expert=t.expert,
        seed=t.seed,
        plan=t.plan,
        started_at=t.started_at,
        seconds=t.seconds,
        sandbox_backend=t.sandbox_backend,
        image_digest=t.image_digest or (t.verdict.image_digest if t.verdict else ""),
        failure=t.failure,
        verdict=t.verdict,
        messages=t.messages,
        steps=_steps(t, runs),
        runs=runs,
        longest_run=max((run.length for run in runs), default=0),
        looped=any(run.loops for run in runs),
        looped_above=material.longer_than,
        totals=_totals(t),
        record=_record(t),
        reckoning=reckoning,
        no_reckoning=no_reckoning,
        patch=t.patch,
        gold_patch=gold,
        no_gold=no_gold,
        commands=commands(t, found.path, gold is not None),
        notes=notes,
    )


def _steps(t: Trajectory, runs: list[Run]) -> list[Step]:
    # by place in the list, not by Turn.index: an old or damaged file may repeat or skip indices
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


def _totals(t: Trajectory) -> Totals:
    answered = [call for call in t.expert_calls if call.answered]
    return Totals(
        model_seconds=sum(turn.model_seconds for turn in t.turns),
        tool_seconds=sum(turn.tool_seconds for turn in t.turns),
        completion_tokens=t.completion_tokens,
        prompt_tokens=max((turn.prompt_tokens for turn in t.turns), default=0),
        expert_tokens=t.expert_tokens,
        expert_seconds=sum(call.seconds for call in t.expert_calls),
        cost_usd=sum(call.cost_usd for call in t.expert_calls),
        asked=len(answered),
        refused=len(t.expert_calls) - len(answered),
        malformed=sum(turn.malformed for turn in t.turns),
        forced=sum(turn.finish_reason == "forced" for turn in t.turns),
        warrant=_mean([call.warrant for call in answered]),
        follow=_mean([call.follow for call in answered]),
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _record(t: Trajectory) -> Record | None:
    if t.tokens is None:
        return None
    logprobs = [p for p, sampled in zip(t.tokens.logprobs, t.tokens.mask, strict=False) if sampled]
    return Record(
        tokens=len(t.tokens.ids),
        sampled=sum(t.tokens.mask),
        prompt_length=t.tokens.prompt_length,
        mean_logprob=sum(logprobs) / len(logprobs) if logprobs else None,
    )


def _disagreements(t: Trajectory) -> list[str]:
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
