"""Worse experts: how often the silent one is silent, what the vague one never says, and what both are called."""

from __future__ import annotations

import pytest

from protege.config import STRATEGIES, AgentParams, FrontierParams, OracleParams, system
from protege.desk.teacher import ScriptedTeacher
from protege.errors import BadParams
from protege.expert.oracle import OracleExpert, advice
from protege.expert.silent import NO_ANSWER, SilentExpert
from protege.frontier.asking import AskingPolicy
from protege.frontier.degraded import vague_oracle
from protege.frontier.systems import cast
from tests.helpers import make_instance

INSTANCE = make_instance()


def test_half_of_many_calls_are_silent_and_always_the_same_ones() -> None:
    silent = SilentExpert(OracleExpert(), 0.5)
    asked = [(f"i{instance}", index) for instance in range(500) for index in range(4)]
    drawn = [silent.silent(*one) for one in asked]
    # 2,000 draws at 0.5: standard deviation 22.4; five of them
    assert abs(sum(drawn) - 1000) < 112
    assert drawn == [SilentExpert(OracleExpert(), 0.5).silent(*one) for one in asked]
    firsts = drawn[::4]
    assert abs(sum(firsts) - 250) < 56
    assert not any(SilentExpert(OracleExpert(), 0.0).silent(*one) for one in asked)
    assert all(SilentExpert(OracleExpert(), 1.0).silent(*one) for one in asked)


def test_silence_says_so_costs_nothing_and_does_not_move_the_advice_on() -> None:
    oracle = OracleExpert()
    silent = SilentExpert(oracle, 0.5)
    names = (make_instance(instance_id=f"i{k}") for k in range(200))
    mixed = next(i for i in names if [silent.silent(i.instance_id, n) for n in range(4)] == [True, False, True, False])
    replies = [silent.reply(mixed, "q", [], index) for index in range(4)]
    assert [r.text == NO_ANSWER for r in replies] == [True, False, True, False]
    assert [r.completion_tokens > 0 for r in replies] == [False, True, False, True]
    assert [replies[1].text, replies[3].text] == [oracle.reply(mixed, "q", [], index).text for index in range(2)]


def test_the_vague_oracle_never_leaves_level_nought() -> None:
    import random

    vague = vague_oracle(OracleParams(first_level=1))
    for index in range(5):
        rng = random.Random(f"{INSTANCE.instance_id}:{index}")
        assert vague.reply(INSTANCE, "q", [], index).text == advice(INSTANCE, 0, rng)
    assert "`difference`" in OracleExpert(OracleParams(first_level=1)).reply(INSTANCE, "q", [], 0).text


def test_identities_tell_the_experts_apart_and_keep_that_they_saw_the_patch() -> None:
    oracle = OracleExpert()
    all_of_them = [oracle, SilentExpert(oracle, 0.5), SilentExpert(oracle, 0.25), vague_oracle(OracleParams())]
    assert len({e.identity.name for e in all_of_them}) == len({e.identity.digest for e in all_of_them}) == 4
    assert all(e.identity.sees_gold and e.identity.kind == "oracle" for e in all_of_them)
    blind = oracle.identity.model_copy(update={"sees_gold": False})
    oracle.identity = blind
    assert not SilentExpert(oracle, 0.5).identity.sees_gold


def test_every_system_changes_one_thing() -> None:
    policy, oracle, agent = ScriptedTeacher(), OracleExpert(), AgentParams()
    made = {spec: cast(system(spec), policy, oracle, agent) for spec in FrontierParams().systems}
    assert made["own"].policy is policy and made["own"].expert is oracle and made["own"].agent == agent
    for spec, one in made.items():
        changed = {
            "policy": one.policy is not policy,
            "expert": one.expert is not oracle,
            "agent": one.agent != agent,
        }
        kind = one.system.kind
        expected = {
            "policy": kind in STRATEGIES,
            "expert": kind in ("never", "silent", "vague"),
            "agent": kind == "budget0",
        }
        assert changed == expected, spec
    assert made["never"].expert is None and made["budget0"].agent.expert_quota == 0
    asking = made["always"].policy
    assert isinstance(asking, AskingPolicy) and asking.quota == agent.expert_quota


def test_an_expert_without_levels_cannot_be_made_vague() -> None:
    with pytest.raises(BadParams, match="frontier.expert"):
        cast(system("vague"), ScriptedTeacher(), SilentExpert(OracleExpert()), AgentParams())
