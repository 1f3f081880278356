"""The halves of an attempt, each kept as soon as it is done."""

from __future__ import annotations

import pytest

from protege.config import AgentParams, SandboxParams
from protege.core.trajectory import Identity
from protege.errors import ExpertError
from protege.expert.base import ExpertReply
from protege.files import Store
from protege.sandbox.bubblewrap import BubblewrapProvider
from tasks.units import Attempt, Bench, _rolled_out
from tests.agent.test_agent import Parrot, say
from tests.helpers import make_instance, make_testbed


class Expert:
    identity = Identity(name="expert", digest="1", kind="api")

    def reply(self, instance, query, recent, call_index):
        return ExpertReply(text="Look at `difference`.", completion_tokens=5)


class Judge:
    identity = Identity(name="judge", digest="1", kind="judge")

    def __init__(self) -> None:
        self.broken = True

    def warrant(self, trajectory, call):
        if self.broken:
            raise ExpertError("the judge is away")
        return 0.75

    def follow(self, trajectory, call):
        return 0.5


def test_a_judge_that_fails_does_not_cost_the_rollout(tmp_path):
    provider = BubblewrapProvider(SandboxParams(), make_testbed(tmp_path, make_instance().instance_id))
    bench = Bench(provider, AgentParams(step_limit=4), SandboxParams(), retries=0, store=Store(tmp_path / "store"))
    policy, judge = Parrot(say("ask_expert", query="where is the bug?"), say("submit")), Judge()
    attempt = Attempt("t", make_instance(), policy, Expert(), 1, judge)
    with pytest.raises(ExpertError):
        _rolled_out(attempt, bench)
    heard = len(policy.heard)
    judge.broken = False
    trajectory, cached = _rolled_out(attempt, bench)
    assert len(policy.heard) == heard and not cached  # judged now, not rolled out again
    assert [(c.warrant, c.follow) for c in trajectory.expert_calls] == [(0.75, 0.5)]
    again, cached = _rolled_out(attempt, bench)
    assert cached and again == trajectory
