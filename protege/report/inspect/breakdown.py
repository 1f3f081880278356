"""A trajectory's reward, broken down: every term, its weight, what it adds, and what it comes from."""

from __future__ import annotations

from pydantic import BaseModel

from protege.config import RewardParams
from protege.core.loops import runs
from protege.core.reward import Reward, Stage, back_to_back, over_quota, score
from protege.core.trajectory import Trajectory

ROMAN = {1: "I", 2: "II"}


class Item(BaseModel):
    """One term. ``adds`` is what it puts into the total: value times weights and gates. ``part`` marks what another
    term is the sum of; parts add nothing again."""

    name: str
    value: float
    weight: str
    adds: float | None
    how: str
    part: bool = False


class Breakdown(BaseModel):
    """``logged`` is the total as reinforcement learning logged it, where it did."""

    reward: Reward
    stage: Stage
    why_stage: str
    params_from: str
    items: list[Item]
    formula: str
    logged: float | None = None


def break_down(
    trajectory: Trajectory,
    gold: str | None,
    params: RewardParams,
    params_from: str,
    logged: tuple[int, float] | None,
) -> tuple[Breakdown | None, str]:
    """The reward's terms in the stage that was logged, else in stage II; or None and why there is none."""
    verdict = trajectory.verdict
    if trajectory.exit_status == "infrastructure" or trajectory.failure is not None:
        return None, "An infrastructure failure has no reward: it is masked, never a zero."
    if verdict is None:
        return None, "Without a verdict there is no reward."
    if gold is None and not verdict.resolved:
        return None, "The similarity of an unresolved patch needs the gold patch, which is not at hand."
    stage: Stage = 1 if logged and logged[0] == 1 else 2
    why = "the stage it was logged in" if logged else "nothing was logged, so the last stage's weights"
    reward = score(trajectory, verdict, gold or "", stage, params)
    return (
        Breakdown(
            reward=reward,
            stage=stage,
            why_stage=why,
            params_from=params_from,
            items=_items(trajectory, reward, stage, params, verdict.resolved, gold is not None),
            formula=_formula(reward, stage, params),
            logged=logged[1] if logged else None,
        ),
        "",
    )


def _items(t: Trajectory, r: Reward, stage: Stage, p: RewardParams, resolved: bool, gold: bool) -> list[Item]:
    shape = p.stage_one if stage == 1 else p.stage_two
    gates = r.g_loop * r.g_follow
    gated = f"{r.g_loop:g} × {r.g_follow:g}"
    answered = [call for call in t.expert_calls if call.answered]
    alike = f"similarity {r.similarity:.2f} to the gold patch, needed {p.sim_threshold:g}"
    return [
        Item(
            name="correct",
            value=r.correct,
            weight=gated if shape.w_correct == 1 else f"{gated} × {shape.w_correct:g}",
            adds=gates * shape.w_correct * r.correct,
            how="1 when resolved" + ("" if p.unsubmitted == 1 else f"; {p.unsubmitted:g} when never submitted"),
        ),
        Item(
            name="similarity",
            value=r.sim,
            weight=f"{gated} × {shape.w_sim:g}",
            adds=gates * shape.w_sim * r.sim,
            how=("resolved, so not judged; " if resolved else "") + (alike if gold else "gold patch not at hand"),
        ),
        Item(
            name="expert use",
            value=r.expert,
            weight=f"{gated} × {shape.w_expert:g}",
            adds=gates * shape.w_expert * r.expert,
            how="the sum of the three below",
        ),
        Item(
            name="warrant",
            value=r.warrant,
            weight="",
            adds=None,
            how=_scores([c.warrant for c in answered], p.tau_warrant, p.warrant_low, p.aggregate),
            part=True,
        ),
        Item(
            name="back-to-back",
            value=r.b2b,
            weight="",
            adds=None,
            how=f"{back_to_back(t)} calls directly after another, {p.lambda_b2b:g} each, at least -1",
            part=True,
        ),
        Item(
            name="quota",
            value=r.quota,
            weight="",
            adds=None,
            how=f"{over_quota(t)} calls beyond the quota, {p.quota_penalty:g} each",
            part=True,
        ),
        Item(name="loop", value=r.loop, weight="1", adds=r.loop, how=_loops(t, p)),
        Item(
            name="follow-through",
            value=r.follow,
            weight=f"{shape.w_follow:g}",
            adds=shape.w_follow * r.follow,
            how=_scores([c.follow for c in answered], p.tau_follow, p.follow_low, p.aggregate),
        ),
        Item(
            name="no expert call",
            value=r.no_call,
            weight="1",
            adds=r.no_call,
            how=f"{len(answered)} answered; {shape.no_call_penalty:g} for none in stage {ROMAN[stage]}",
        ),
    ]


def _scores(scores: list[float | None], threshold: float, low: float, how: str) -> str:
    known = [score for score in scores if score is not None]
    if not known:
        return "no score, so 0"
    listed = ", ".join(f"{score:.2f}" for score in known)
    below = sum(score < threshold for score in known)
    counts = f"; {below} below {threshold:g} count {low:g}" if below else ""
    return f"{'smallest' if how == 'min' else 'mean'} of {listed}{counts}"


def _loops(t: Trajectory, p: RewardParams) -> str:
    longest = sorted((run for run in runs(t) if run[1] > 1), key=lambda run: -run[1])[:3]
    named = ", ".join(f"{base} × {length}" for base, length in longest) or "no command twice in a row"
    return f"{named}; runs count from {p.k_first}, later ones from {p.k_later}"


def _formula(r: Reward, stage: Stage, p: RewardParams) -> str:
    shape = p.stage_one if stage == 1 else p.stage_two
    no_call = f" + {_n(r.no_call)}" if r.no_call else ""
    correct = _n(r.correct) if shape.w_correct == 1 else f"{shape.w_correct:g} × {_n(r.correct)}"
    return (
        f"{_n(r.loop)} + {shape.w_follow:g} × {_n(r.follow)} + {r.g_loop:g} × {r.g_follow:g} × "
        f"({correct} + {shape.w_sim:g} × {_n(r.sim)} + {shape.w_expert:g} × {_n(r.expert)}){no_call} = {_n(r.total)}"
    )


def _n(value: float) -> str:
    text = f"{value:.2f}"
    return f"({text})" if text.startswith("-") else text
