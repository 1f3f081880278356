"""The API expert and the registry, against the endpoint."""

from __future__ import annotations

import pickle

import pytest

from protege.config import ExpertParams, JudgeParams
from protege.core.trajectory import Message
from protege.errors import BadParams
from protege.expert.api import ApiExpert
from protege.expert.judge import HeuristicJudge
from protege.expert.ledger import Ledger
from protege.expert.model_judge import ModelJudge
from protege.expert.registry import expert_named, judge_of
from tests.expert.conftest import KEY, quick
from tests.expert.endpoint import body, says
from tests.helpers import GOLD, make_instance

RECENT = [Message(role="user", content="OBSERVATION:\n8"), Message(role="assistant", content="I am stuck.")]


def expert(**params):
    api = quick()
    return ApiExpert(ExpertParams(**params), api, Ledger(api, None))


def test_it_sees_the_query_and_the_last_messages_and_none_of_the_secrets(endpoint):
    reply = expert(max_tokens=77).reply(make_instance(), "Why 8?", RECENT, 0)
    assert reply.text == "Look at `difference`." and (reply.prompt_tokens, reply.completion_tokens) == (20, 5)
    assert reply.cost_usd == pytest.approx(70e-6) and reply.seconds > 0
    (request,) = endpoint.requests
    sent = str(request)
    assert "Why 8?" in sent and "I am stuck." in sent and request["max_tokens"] == 77
    assert all(secret not in sent for secret in ("first - second", "test_secret", GOLD))


def test_tokens_that_are_not_reported_are_estimated_from_the_text(endpoint):
    endpoint.plays(says(body("x" * 40, {})))
    reply = expert().reply(make_instance(), "q", RECENT, 0)
    assert reply.completion_tokens == 10 and 50 < reply.prompt_tokens < 400


def test_its_identity_is_what_decides_its_replies_and_never_the_key(endpoint, monkeypatch):
    one = expert()
    assert KEY not in one.identity.model_dump_json() and not one.identity.sees_gold
    assert KEY.encode() not in pickle.dumps(one)
    assert one.identity != expert(temperature=0.5).identity
    monkeypatch.setenv("PROTEGE_EXPERT_API_KEY", "another-key-altogether")
    assert one.identity == expert().identity == pickle.loads(pickle.dumps(one)).identity
    monkeypatch.setenv("PROTEGE_EXPERT_MODEL", "m2")
    with pytest.raises(BadParams, match="no price for model 'm2'"):
        expert()


def test_the_registry(endpoint, in_tmp):
    api = quick()
    assert expert_named("none") is None
    assert expert_named("oracle").identity.sees_gold
    assert isinstance(expert_named("api", ExpertParams(), api), ApiExpert)
    assert isinstance(judge_of(JudgeParams(), api), HeuristicJudge)
    assert isinstance(judge_of(JudgeParams(kind="api"), api), ModelJudge)
    with pytest.raises(BadParams, match="none, oracle, api"):
        expert_named("someone")


def test_judge_and_expert_share_a_budget_and_the_judge_may_have_an_endpoint_of_its_own(endpoint, in_tmp, monkeypatch):
    api = quick(budget_tokens=10_000)
    expert_named("api", ExpertParams(), api).reply(make_instance(), "q", RECENT, 0)
    judge = judge_of(JudgeParams(kind="api"), api)
    assert judge.client.ledger.spent().tokens == 25 and judge.client.endpoint.model == "m"
    monkeypatch.setenv("PROTEGE_JUDGE_MODEL", "other")
    with pytest.raises(BadParams, match="PROTEGE_JUDGE_BASE_URL, PROTEGE_JUDGE_API_KEY"):
        judge_of(JudgeParams(kind="api"), api)
