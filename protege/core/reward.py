"""The composite reward of the paper's phase II (docs/method.md), a pure function with every term visible.

    R_total = R_loop + w_follow * R_follow + g_loop * g_follow * R_other  (+ penalty when no expert call was made)
    R_other = w_correct * R_correct + w_sim * R_sim + w_expert * R_expert

A trajectory of 26 steps that was stuck, asked, half followed through, asked again at once and then submitted a
patch that passes, in stage II:

>>> from protege.core.trajectory import ExpertCall, Identity, ToolCall, Turn
>>> commands = ["python repro.py"] * 20 + ["ask", "ask"] + ["grep -n f x.py"] * 3 + ["submit"]
>>> tools = {"ask": "ask_expert", "submit": "submit"}
>>> turns = [
...     Turn(index=i, message="", observation="", call=ToolCall(name=tools.get(c, "bash"), arguments={"command": c}))
...     for i, c in enumerate(commands)
... ]
>>> calls = [
...     ExpertCall(turn=20, query="q", reply="r", warrant=1.0, follow=0.2),
...     ExpertCall(turn=21, query="q", reply="r", warrant=0.4, follow=0.8),
... ]
>>> trajectory = Trajectory(
...     trajectory_id="t", instance_id="i", instance_digest="", repo="", seed=0, messages=[], turns=turns,
...     policy=Identity(name="p", digest="", kind="served"), expert=None, expert_calls=calls, exit_status="submitted",
... )
>>> verdict = Verdict(instance_id="i", instance_digest="", patch_digest="", resolved=True, applied=True)
>>> params = RewardParams()
>>> reward = score(trajectory, verdict, "", 2, params)
>>> reward.loop             # runs of 20, 2, 3 and 1: -0.5 * (20 - 15 + 1); the runs after it are shorter than 8
-3.0
>>> reward.g_loop           # -3 <= a_1 = -1, but above a_2 = -5
0.5
>>> reward.follow           # 0.2 is below 0.5 and counts as -2; the mean of -2 and 0.8
-0.6
>>> reward.g_follow         # -0.6 <= b_1 = -0.5, but above b_2 = -1.5
0.5
>>> reward.warrant          # 0.4 is below 0.5 and counts as -1; the mean of 1 and -1
0.0
>>> reward.b2b, reward.quota, reward.expert    # one call directly after another; no quota term by default
(-0.5, 0.0, -0.5)
>>> reward.correct, reward.sim, reward.other   # 1 + 0.5 * 0 + 0.3 * -0.5
(1.0, 0.0, 0.85)
>>> round(reward.total, 4)  # -3 + 2 * -0.6 + 0.5 * 0.5 * 0.85
-3.9875
>>> round(score(trajectory, verdict, "", 1, params).total, 4)  # -3 + 0.2 * -0.6 + 0.5 * 1 * (1 + 0.1 * -0.5)
-2.645
>>> round(score(trajectory.model_copy(update={"expert_calls": []}), verdict, "", 2, params).no_call)
-10
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel

from protege.config import RewardParams
from protege.core.loops import base_commands, run_lengths
from protege.core.patches import changes
from protege.core.trajectory import Trajectory, Verdict

Stage = Literal[1, 2]
LARGE = 4_000_000


class Reward(BaseModel):
    """Every term of one trajectory's reward, as logged."""

    total: float
    stage: int
    loop: float
    follow: float
    correct: float
    sim: float
    expert: float
    warrant: float
    b2b: float
    quota: float
    other: float
    g_loop: float
    g_follow: float
    no_call: float
    expert_calls: int
    similarity: float


def loop_penalty(lengths: Sequence[int], params: RewardParams) -> float:
    """R_loop in [loop_floor, 0] from the run lengths in order of time.

    The first run that reaches k_1 is judged with k_1 and every run after it with the stricter k_2
    (``first_run_is_first_trigger``); otherwise s_1 is literally the first run.
    """
    first = next((i for i, s in enumerate(lengths) if s >= params.k_first), None)
    if not params.first_run_is_first_trigger:
        first = 0 if lengths else None
    if first is None:
        return 0.0
    excess = max(0, lengths[first] - params.k_first + 1)
    excess += sum(max(0, s - params.k_later + 1) for s in lengths[first + 1 :])
    return max(params.loop_floor, -params.lambda_loop * excess) if excess else 0.0


def gate(value: float, half: float, zero: float) -> float:
    """0 at or below ``zero``, 0.5 at or below ``half``, else 1 (paper: a_2 and a_1, b_2 and b_1)."""
    return 0.0 if value <= zero else 0.5 if value <= half else 1.0


def patch_similarity(patch: str, gold: str) -> float:
    """Similarity in [0, 1] of the changed lines of two diffs; headers, hunk positions and context are noise.

    By characters; by whole lines where the product of both lengths is above ``LARGE``, for which comparing
    characters can take minutes (its time grows with the product or faster, and an agent's patch is as long as it likes).
    """
    ours, theirs = _changed(patch), _changed(gold)
    a, b = "\n".join(ours), "\n".join(theirs)
    if len(a) * len(b) > LARGE:
        return difflib.SequenceMatcher(None, ours, theirs, autojunk=False).ratio()
    return difflib.SequenceMatcher(None, a, b, autojunk=False).ratio()


def _changed(diff: str) -> list[str]:
    found = changes(diff)
    lines = [sign + line for c in found for sign, side in (("-", c.removed), ("+", c.added)) for line in side]
    return [line.rstrip() for line in lines if line[1:].strip()]


def _aggregate(values: Sequence[float], how: str) -> float:
    if not values:
        return 0.0
    return min(values) if how == "min" else sum(values) / len(values)


def over_quota(trajectory: Trajectory) -> int:
    """Number of calls that the quota refused: those with a query after the last one that was answered.

    Calls without a query, or where no expert is to be had, are refused for other reasons.
    """
    last = max((c.turn for c in trajectory.expert_calls if c.answered), default=None)
    if last is None:
        return 0
    return sum(not c.answered and c.turn > last and bool(c.query.strip()) for c in trajectory.expert_calls)


def back_to_back(trajectory: Trajectory) -> int:
    """Number of expert calls that follow another one directly, with no step of the agent's own between."""
    bases = base_commands(trajectory.turns)
    return sum(a == b == "ask_expert" for a, b in pairwise(bases))


def score(trajectory: Trajectory, verdict: Verdict, gold_patch: str, stage: Stage, params: RewardParams) -> Reward:
    """The reward of one trajectory in curriculum stage 1 or 2.

    Judge scores that are None (a call that was refused, or a terminal one for follow) are left out of their
    aggregate; an empty aggregate is 0. A call that was refused is no expert call to the penalty for having made none:
    else an empty query would buy it off.

    Raises:
        ValueError: the trajectory is an infrastructure failure; those are masked, never scored.
    """
    if trajectory.exit_status == "infrastructure":
        raise ValueError(f"{trajectory.trajectory_id}: an infrastructure failure has no reward; mask it")
    shape = params.stage_one if stage == 1 else params.stage_two
    answered = [call for call in trajectory.expert_calls if call.answered]
    warrants = [call.warrant for call in answered if call.warrant is not None]
    follows = [call.follow for call in answered if call.follow is not None]

    loop = loop_penalty(run_lengths(trajectory), params)
    follow = _aggregate([f if f >= params.tau_follow else params.follow_low for f in follows], params.aggregate)
    warrant = _aggregate([u if u >= params.tau_warrant else params.warrant_low for u in warrants], params.aggregate)
    b2b = max(-1.0, params.lambda_b2b * back_to_back(trajectory))
    quota = params.quota_penalty * over_quota(trajectory)
    expert = warrant + b2b + quota
    submitted = trajectory.exit_status == "submitted"
    correct = (1.0 if submitted else params.unsubmitted) if verdict.resolved else 0.0
    similarity = patch_similarity(trajectory.patch, gold_patch)
    sim = 0.0 if verdict.resolved or similarity >= params.sim_threshold else -1.0
    other = shape.w_correct * correct + shape.w_sim * sim + shape.w_expert * expert
    g_loop = gate(loop, params.gate_loop_half, params.gate_loop_zero)
    g_follow = gate(follow, params.gate_follow_half, params.gate_follow_zero) if shape.gate_follow else 1.0
    no_call = shape.no_call_penalty if not answered else 0.0
    return Reward(
        total=loop + shape.w_follow * follow + g_loop * g_follow * other + no_call,
        stage=stage,
        loop=loop,
        follow=follow,
        correct=correct,
        sim=sim,
        expert=expert,
        warrant=warrant,
        b2b=b2b,
        quota=quota,
        other=other,
        g_loop=g_loop,
        g_follow=g_follow,
        no_call=no_call,
        expert_calls=len(answered),
        similarity=round(similarity, 6),
    )
