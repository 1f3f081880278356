import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protege.config import RewardParams
from protege.core.reward import gate, loop_penalty, patch_similarity, score
from protege.core.trajectory import ExpertCall
from tests.helpers import GOLD, make_trajectory, make_turn, make_verdict

P = RewardParams()


@pytest.mark.parametrize(
    ("lengths", "penalty"),
    [
        ([], 0.0),
        ([14], 0.0),
        ([15], -0.5),
        ([16], -1.0),
        ([7, 15, 7], -0.5),
        ([15, 8], -1.0),
        ([15, 9, 8], -2.0),
        ([8, 15], -0.5),
        ([14, 14, 14], 0.0),
        ([60], -10.0),
    ],
)
def test_loop_penalty_at_its_triggers(lengths, penalty):
    assert loop_penalty(lengths, P) == penalty


def test_loop_penalty_when_the_first_run_is_literally_the_first():
    literal = RewardParams(first_run_is_first_trigger=False)
    assert loop_penalty([2, 8], literal) == -0.5
    assert loop_penalty([14, 2], literal) == 0.0


@given(st.lists(st.integers(1, 100), max_size=20))
def test_loop_penalty_is_bounded_and_never_helped_by_a_longer_run(lengths):
    value = loop_penalty(lengths, P)
    assert P.loop_floor <= value <= 0
    if lengths:
        assert loop_penalty([*lengths[:-1], lengths[-1] + 1], P) <= value


def test_gate_steps():
    assert [gate(v, -1.0, -5.0) for v in (0.0, -0.9, -1.0, -4.9, -5.0, -9.0)] == [1.0, 1.0, 0.5, 0.5, 0.0, 0.0]


def call(turn, warrant, follow, answered=True):
    return ExpertCall(turn=turn, query="q", reply="r", warrant=warrant, follow=follow, answered=answered)


def solved(calls=None, turns=None):
    return make_trajectory(turns or [make_turn(0, "bash", command="ls"), make_turn(1, "submit")], calls)


def test_resolved_with_a_good_call_in_stage_two():
    reward = score(solved([call(0, 0.9, 0.8)]), make_verdict(True), GOLD, 2, P)
    assert reward.correct == 1 and reward.sim == 0 and reward.no_call == 0
    assert reward.follow == 0.8 and reward.warrant == 0.9
    assert math.isclose(reward.total, 2.0 * 0.8 + 1 + 0.3 * 0.9)


def test_no_call_costs_ten_in_stage_two_only():
    assert score(solved(), make_verdict(True), GOLD, 2, P).total == 1 - 10
    assert score(solved(), make_verdict(True), GOLD, 1, P).total == 1


@pytest.mark.parametrize(("value", "term"), [(0.5, 0.5), (0.49, -2.0)])
def test_follow_threshold(value, term):
    assert score(solved([call(0, 0.9, value)]), make_verdict(True), GOLD, 2, P).follow == term


@pytest.mark.parametrize(("value", "term"), [(0.5, 0.5), (0.49, -1.0)])
def test_warrant_threshold(value, term):
    assert score(solved([call(0, value, None)]), make_verdict(True), GOLD, 2, P).warrant == term


def test_bad_follow_closes_the_gate_in_stage_two_only():
    trajectory = solved([call(0, 0.9, 0.0)])
    assert score(trajectory, make_verdict(True), GOLD, 2, P).g_follow == 0.0
    assert score(trajectory, make_verdict(True), GOLD, 1, P).g_follow == 1.0


def test_looping_closes_the_gate_but_is_itself_never_gated():
    turns = [make_turn(i, "bash", command="ls") for i in range(30)]
    reward = score(solved(turns=turns), make_verdict(True), GOLD, 1, P)
    assert reward.g_loop == 0.0 and reward.loop == -8.0 and reward.total == -8.0


def test_similarity_fallback_only_when_unresolved():
    near = solved()
    far = near.model_copy(update={"patch": "--- a/x\n+++ b/x\n@@ -1 +1 @@\n-qqqq\n+zzzz\n"})
    assert score(near, make_verdict(False), GOLD, 1, P).sim == 0.0
    assert score(far, make_verdict(False), GOLD, 1, P).sim == -1.0
    assert score(far, make_verdict(True), GOLD, 1, P).sim == 0.0


def test_similarity_ignores_headers_and_context():
    moved = GOLD.replace("@@ -1,5 +1,5 @@", "@@ -91,5 +91,5 @@").replace("What is left", "Other context")
    assert patch_similarity(GOLD, moved) == 1.0
    assert patch_similarity("", GOLD) == 0.0


def test_back_to_back_and_quota():
    turns = [make_turn(i, "ask_expert", query="q") for i in range(5)]
    calls = [call(i, 0.9, None) for i in range(4)] + [call(4, None, None, answered=False)]
    reward = score(solved(calls, turns), make_verdict(False), GOLD, 1, RewardParams(quota_penalty=-0.25))
    assert reward.b2b == -1.0  # 4 * -0.5, floored
    assert reward.quota == -0.25


def test_unanswered_calls_have_no_part_in_the_aggregates():
    reward = score(solved([call(0, 0.8, 0.9), call(1, None, None, answered=False)]), make_verdict(True), GOLD, 2, P)
    assert (reward.warrant, reward.follow) == (0.8, 0.9)


def test_infrastructure_failures_have_no_reward():
    with pytest.raises(ValueError, match="mask"):
        score(make_trajectory([], exit_status="infrastructure"), make_verdict(False), GOLD, 1, P)


def test_gates_must_be_ordered():
    with pytest.raises(ValueError, match="below"):
        RewardParams(gate_loop_half=-5.0, gate_loop_zero=-1.0)


# ---- every threshold through the whole score ----


def looping(*lengths):
    """Turns whose runs have these lengths."""
    turns = []
    for number, length in enumerate(lengths):
        turns += [make_turn(len(turns) + i, "bash", command=f"tool{number}") for i in range(length)]
    return turns


@pytest.mark.parametrize(
    ("length", "loop", "g_loop"),
    [
        (14, 0.0, 1.0),
        (15, -0.5, 1.0),
        (16, -1.0, 0.5),
        (23, -4.5, 0.5),
        (24, -5.0, 0.0),
        (34, -10.0, 0.0),
        (75, -10.0, 0.0),
    ],
)
def test_the_loop_gate_closes_in_two_steps(length, loop, g_loop):
    reward = score(solved(turns=looping(length)), make_verdict(True), GOLD, 1, P)
    assert (reward.loop, reward.g_loop) == (loop, g_loop)
    assert reward.total == loop + g_loop * 1.0


@pytest.mark.parametrize(
    ("follows", "follow", "g_follow"),
    [
        ([0.5], 0.5, 1.0),
        ([0.5, 0.5, 0.2], -1 / 3, 1.0),
        ([1.0, 0.2], -0.5, 0.5),
        ([0.5, 0.0], -0.75, 0.5),
        ([0.5, 0.0, 0.0, 0.0, 0.0], -1.5, 0.0),
        ([0.0], -2.0, 0.0),
    ],
)
def test_the_follow_gate_closes_in_two_steps_in_stage_two(follows, follow, g_follow):
    trajectory = solved([call(i, 0.9, f) for i, f in enumerate(follows)])
    two, one = (score(trajectory, make_verdict(True), GOLD, stage, P) for stage in (2, 1))
    assert math.isclose(two.follow, follow) and two.g_follow == g_follow and one.g_follow == 1.0
    assert math.isclose(two.total, 2.0 * follow + g_follow * (1 + 0.3 * 0.9))
    assert math.isclose(one.total, 0.2 * follow + 1 + 0.1 * 0.9)


def similar(share):
    """A one-line patch of 100 characters that has ``share`` of them in common with the gold one, in one run."""
    head = "--- a/x\n+++ b/x\n@@ -0,0 +1 @@\n+"
    return head + "x" * (share - 1) + "y" * (100 - share) + "\n", head + "x" * (share - 1) + "z" * (100 - share) + "\n"


@pytest.mark.parametrize(("share", "sim"), [(51, 0.0), (50, 0.0), (49, -1.0)])
def test_similarity_threshold(share, sim):
    ours, gold = similar(share)
    trajectory = solved().model_copy(update={"patch": ours})
    reward = score(trajectory, make_verdict(False), gold, 1, P)
    assert reward.similarity == share / 100 and reward.sim == sim and reward.total == 0.5 * sim


def test_a_huge_patch_is_compared_in_seconds():
    import time

    began = time.process_time()
    lines = "".join(f"+value_{i} = {i * 7919 % 1000}\n" for i in range(20_000))
    assert patch_similarity(f"--- a/x\n+++ b/x\n@@ -0,0 +1,20000 @@\n{lines}", GOLD) == 0.0  # by whole lines
    assert time.process_time() - began < 5


def test_lines_that_look_like_headers_are_changed_lines():
    one = "--- a/q.sql\n+++ b/q.sql\n@@ -1 +1 @@\n--- old comment\n+++ new\n"
    assert patch_similarity(one, one) == 1.0
    assert patch_similarity(one, one.replace("new", "zzzzzzzzzzzzzzzzzzzzz")) < 1.0


@pytest.mark.parametrize(("calls", "b2b"), [(1, 0.0), (2, -0.5), (3, -1.0), (4, -1.0), (6, -1.0)])
def test_back_to_back_is_floored(calls, b2b):
    turns = [make_turn(i, "ask_expert", query="q") for i in range(calls)]
    assert score(solved([call(i, 0.9, None) for i in range(calls)], turns), make_verdict(True), GOLD, 2, P).b2b == b2b


def test_a_step_between_is_not_back_to_back():
    turns = [
        make_turn(0, "ask_expert", query="q"),
        make_turn(1, "bash", command="ls"),
        make_turn(2, "ask_expert", query="q"),
    ]
    assert score(solved([call(0, 0.9, None), call(2, 0.9, None)], turns), make_verdict(True), GOLD, 2, P).b2b == 0.0


def test_the_quota_counts_only_what_the_quota_refused():
    params = RewardParams(quota_penalty=-0.25)

    def refused(turn, query="q"):
        return ExpertCall(turn=turn, query=query, reply="no", answered=False)

    def quota(*calls):
        return score(solved(list(calls)), make_verdict(True), GOLD, 1, params).quota

    assert quota(refused(0, ""), call(1, 0.9, None)) == 0.0  # an empty query, before
    assert quota(call(0, 0.9, None), refused(1, " ")) == 0.0
    assert quota(refused(0), refused(1)) == 0.0  # no expert could be reached
    assert quota(call(0, 0.9, None), refused(1), refused(2)) == -0.5
    assert (
        score(solved([call(0, 0.9, None), refused(1)]), make_verdict(True), GOLD, 1, P).quota == 0.0
    )  # off by default


def test_a_refused_call_does_not_buy_off_the_penalty_for_no_call():
    refused = ExpertCall(turn=0, query="", reply="The query is empty.", answered=False)
    reward = score(solved([refused]), make_verdict(True), GOLD, 2, P)
    assert reward.no_call == -10 and reward.expert_calls == 0
    assert score(solved([refused, call(1, 0.9, 0.9)]), make_verdict(True), GOLD, 2, P).no_call == 0


def test_what_a_patch_that_was_never_submitted_counts():
    half = RewardParams(unsubmitted=0.5)
    submitted = solved([call(0, 0.9, 0.9)])
    cut_off = submitted.model_copy(update={"exit_status": "step_limit"})
    for params, trajectory, correct in ((P, cut_off, 1.0), (half, submitted, 1.0), (half, cut_off, 0.5)):
        reward = score(trajectory, make_verdict(True), GOLD, 2, params)
        assert reward.correct == correct and reward.sim == 0
    assert score(cut_off, make_verdict(False), GOLD, 2, half).correct == 0


def test_the_weight_of_correctness_multiplies_it_alone():
    heavy = RewardParams(stage_two=P.stage_two.model_copy(update={"w_correct": 3.0}))
    trajectory = solved([call(0, 0.9, 0.9)])
    for resolved, more in ((True, 2.0), (False, 0.0)):
        plain, weighted = (score(trajectory, make_verdict(resolved), GOLD, 2, p) for p in (P, heavy))
        assert weighted.total - plain.total == pytest.approx(more)
        assert (weighted.correct, weighted.follow, weighted.loop) == (plain.correct, plain.follow, plain.loop)


def test_the_worst_call_decides_under_min():
    calls = [call(0, 0.9, 0.9), call(1, 0.2, 0.1)]
    by_mean, by_min = (
        score(solved(calls), make_verdict(True), GOLD, 2, RewardParams(aggregate=how)) for how in ("mean", "min")
    )
    assert (by_mean.warrant, by_min.warrant) == (pytest.approx(-0.05), -1.0)
    assert (by_mean.follow, by_min.follow) == (pytest.approx(-0.55), -2.0)


def test_the_loop_and_follow_terms_are_never_gated():
    trajectory = solved([call(0, 0.9, 0.0)], looping(40))
    reward = score(trajectory, make_verdict(True), GOLD, 2, P)
    assert reward.g_loop == reward.g_follow == 0.0
    assert reward.total == reward.loop + 2.0 * reward.follow == -14.0


@given(
    st.lists(st.tuples(st.floats(0, 1), st.none() | st.floats(0, 1)), max_size=4),
    st.lists(st.integers(1, 30), max_size=4),
    st.booleans(),
    st.sampled_from([1, 2]),
    st.sampled_from([1.0, 3.0]),
)
def test_the_total_is_the_formula_of_its_terms(scores, lengths, resolved, stage, weight):
    stages = {key: getattr(P, key).model_copy(update={"w_correct": weight}) for key in ("stage_one", "stage_two")}
    params = RewardParams(**stages)
    trajectory = solved([call(i, u, f) for i, (u, f) in enumerate(scores)], looping(*lengths) or None)
    r = score(trajectory, make_verdict(resolved), GOLD, stage, params)
    shape = params.stage_one if stage == 1 else params.stage_two
    assert r.other == pytest.approx(shape.w_correct * r.correct + shape.w_sim * r.sim + shape.w_expert * r.expert)
    assert r.total == pytest.approx(r.loop + shape.w_follow * r.follow + r.g_loop * r.g_follow * r.other + r.no_call)
    assert r.expert == pytest.approx(r.warrant + r.b2b + r.quota)
    assert P.loop_floor <= r.loop <= 0 and P.follow_low <= r.follow <= 1 and -1 <= r.b2b <= 0 and r.sim in (0, -1)
    if not resolved:
        assert r.total <= score(trajectory, make_verdict(True), GOLD, stage, params).total
