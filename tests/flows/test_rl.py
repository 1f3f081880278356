"""How the rl flow turns trajectories into what is trained on and logged."""

from __future__ import annotations

from flows.rl import line_of, result_of
from protege.config import RewardParams
from protege.core.reward import score
from protege.core.trajectory import ExpertCall, Failure, Identity, Tokens, Trajectory, Verdict

TOKENS = Tokens(ids=[1, 2, 3], mask=[0, 1, 0], logprobs=[0.0, -0.5, 0.0], prompt_length=1)


def trajectory(**changes: object) -> Trajectory:
    given: dict[str, object] = {
        "trajectory_id": "a.rl.step0000.0",
        "instance_id": "a",
        "instance_digest": "d",
        "repo": "r",
        "policy": Identity(name="rl", digest="d", kind="served"),
        "expert": None,
        "seed": 1,
        "messages": [],
        "turns": [],
        "exit_status": "submitted",
        "tokens": TOKENS,
        "verdict": Verdict(instance_id="a", instance_digest="d", patch_digest="p", resolved=True, applied=True),
    }
    return Trajectory.model_validate({**given, **changes})


def test_a_scored_rollout_carries_its_own_tokens_and_every_term() -> None:
    t = trajectory(expert_calls=[ExpertCall(turn=0, query="q", reply="r", warrant=0.7, follow=None)])
    assert t.verdict is not None
    reward = score(t, t.verdict, "", 1, RewardParams())
    result = result_of(t, reward)
    assert result.tokens == TOKENS and result.reward == reward.total
    assert {"correct", "loop", "follow", "warrant", "sim", "g_loop"} <= set(
        result.terms
    ) and "stage" not in result.terms
    line = line_of(t, reward, 4)
    assert line["step"] == 4 and line["masked"] is False and line["total"] == reward.total
    assert line["calls"] == [{"warrant": 0.7, "follow": None}]


def test_an_infrastructure_failure_is_masked_and_never_a_zero_that_is_trained_on() -> None:
    failure = Failure(boundary="sandbox", error="SandboxDied", message="gone", attempts=3)
    t = trajectory(exit_status="infrastructure", failure=failure, verdict=None)
    assert result_of(t, None).tokens is None
    line = line_of(t, None, 0)
    assert line["masked"] is True and line["boundary"] == "sandbox" and "total" not in line
