"""The chat policy (the API teacher) against an endpoint that misbehaves."""

from __future__ import annotations

import pytest

from protege.core.trajectory import Message
from protege.errors import BadParams, BudgetExhausted, ContextLimitReached, ModelServerError
from protege.expert.ledger import Ledger
from protege.policy.chat import ChatPolicy
from tests.expert.conftest import KEY, endpoint, quick  # noqa: F401
from tests.expert.endpoint import Endpoint, body, fails, says
from tests.helpers import make_instance

OPENING = [Message(role="system", content="S"), Message(role="user", content="Fix it.")]


def policy(**changes) -> ChatPolicy:
    api = quick(**changes)
    return ChatPolicy(api, max_new_tokens=64, ledger=Ledger(api, None))


def test_a_session_grows_and_repeats_nothing(endpoint: Endpoint) -> None:  # noqa: F811
    endpoint.plays(says(body("one", {"prompt_tokens": 9, "completion_tokens": 2}, finish="length")), says(body("two")))
    session = policy().start(make_instance(), 5)
    first = session.step(OPENING)
    second = session.step([Message(role="user", content="OBSERVATION:\nok")])
    assert (first.text, first.finish_reason, first.prompt_tokens, first.completion_tokens) == ("one", "length", 9, 2)
    assert (second.text, second.finish_reason) == ("two", "stop") and session.tokens() is None
    assert [m["role"] for m in endpoint.requests[1]["messages"]] == ["system", "user", "assistant", "user"]
    assert endpoint.requests[1]["messages"][2]["content"] == "one" and endpoint.requests[0]["seed"] == 5


def test_a_failure_leaves_the_session_as_it_was(endpoint: Endpoint) -> None:  # noqa: F811
    endpoint.plays(fails(500))
    session = policy(retries=1).start(make_instance(), 5)
    with pytest.raises(ModelServerError, match="2 attempts") as caught:
        session.step(OPENING)
    assert caught.value.retryable and KEY not in str(caught.value)
    endpoint.plays(says())
    session.step(OPENING)
    assert len(endpoint.requests[-1]["messages"]) == 2


def test_what_the_api_refuses_is_not_worth_a_retry_and_a_full_context_is_no_failure(endpoint: Endpoint) -> None:  # noqa: F811
    endpoint.plays(fails(401, "bad key"))
    with pytest.raises(ModelServerError) as caught:
        policy().start(make_instance(), 0).step(OPENING)
    assert not caught.value.retryable
    endpoint.plays(fails(400, "too long", "context_length_exceeded"))
    with pytest.raises(ContextLimitReached):
        policy().start(make_instance(), 0).step(OPENING)


def test_the_budget_of_the_instance_stops_the_next_step(endpoint: Endpoint) -> None:  # noqa: F811
    endpoint.plays(says(body("x", {"prompt_tokens": 10, "completion_tokens": 60})))
    session = policy(instance_tokens=600).start(make_instance(), 0)
    with pytest.raises(BudgetExhausted, match="calc__calc"):
        for _ in range(9):
            session.step(OPENING)
    assert 1 < len(endpoint.requests) < 9


def test_without_api_params_nothing_is_limited_and_no_price_is_needed(endpoint: Endpoint, in_tmp) -> None:  # noqa: F811
    chat = ChatPolicy(model="unpriced")
    assert chat.start(make_instance(), 0).step(OPENING).text
    assert not list(in_tmp.iterdir())
    with pytest.raises(BadParams, match="unpriced"):
        ChatPolicy(quick(), model="unpriced")
