"""The client against a real endpoint that misbehaves on purpose."""

from __future__ import annotations

import copy
import email.utils
import json
import pickle
import time
import traceback
from pathlib import Path

import pytest

from protege.errors import BadParams, BudgetExhausted, ExpertError, ExpertRefused
from protege.expert.client import Client
from protege.expert.replies import http_wait
from tests.expert.conftest import KEY
from tests.expert.endpoint import (
    body,
    drips,
    echoes_key,
    fails,
    hangs,
    resets,
    says,
    truncates,
)

ASKED = [{"role": "user", "content": "What is wrong?"}]


def ask(client: Client, **options):
    return client.complete(ASKED, **{"instance": "i", "max_tokens": 50, **options})


def log(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (tmp_path / "ledger/default/calls.jsonl").read_text().splitlines()]


def test_a_reply_with_its_tokens_cost_and_log_line(client, endpoint, tmp_path):
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "prompt_tokens_details": {"cached_tokens": 60}}
    endpoint.plays(says(body("Read it.", usage)))
    answer = ask(client(), temperature=0.0, seed=3)
    assert (answer.text, answer.prompt_tokens, answer.completion_tokens, answer.attempts) == ("Read it.", 100, 7, 1)
    assert answer.cost_usd == pytest.approx((40 * 1.0 + 60 * 0.1 + 7 * 10.0) / 1e6)
    assert endpoint.requests[0] | {"messages": 0} == {
        "model": "m",
        "messages": 0,
        "max_tokens": 50,
        "temperature": 0.0,
        "seed": 3,
    }
    (line,) = log(tmp_path)
    assert {k: line[k] for k in ("role", "model", "instance", "attempt", "outcome", "estimated")} == {
        "role": "expert",
        "model": "m",
        "instance": "i",
        "attempt": 1,
        "outcome": "ok",
        "estimated": False,
    }
    assert (line["prompt_tokens"], line["cached_tokens"], line["completion_tokens"]) == (100, 60, 7)
    assert line["cost_usd"] == answer.cost_usd and line["seconds"] >= 0 and line["time"].startswith("20")


@pytest.mark.parametrize(
    ("act", "outcome"),
    [
        (fails(429, "slow down"), "http 429"),
        (fails(500), "http 500"),
        (fails(503), "http 503"),
        (fails(408), "http 408"),
        (says(b"<html>", 502), "http 502"),
        (resets, "connection"),
        (truncates, "connection"),
        (hangs, "timeout"),
        (drips, "timeout"),
        (says(b'{"choices": [{"mess'), "malformed"),
        (says(b"just text"), "malformed"),
        (says([1, 2]), "malformed"),
        (says({"choices": []}), "malformed"),
        (says({"choices": None, "error": {"message": "overloaded"}}), "malformed"),
        (says({"choices": [{"message": None}]}), "malformed"),
        (says(body("")), "empty"),
        (says(body("  \n")), "empty"),
        (says(body(None)), "empty"),
        (says(body([{"type": "text"}])), "empty"),
        (says(body(None, finish="length")), "empty"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_misbehaviour_is_retried_and_then_said(client, endpoint, tmp_path, act, outcome):
    endpoint.plays(act, act, says())
    answer = ask(client(timeout_s=0.3))
    assert answer.text == "Look at `difference`." and answer.attempts == 3
    assert [line["outcome"] for line in log(tmp_path)] == [outcome, outcome, "ok"]
    endpoint.plays(act)
    with pytest.raises(ExpertError, match="no usable reply in 2 attempts") as caught:
        ask(client(timeout_s=0.3, retries=1))
    assert outcome in str(caught.value) and "api.retries" in str(caught.value) and caught.value.retryable
    assert len(endpoint.requests) == 5


def test_an_endpoint_that_is_not_there(client, endpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PROTEGE_EXPERT_BASE_URL", "http://127.0.0.1:9/v1")
    with pytest.raises(ExpertError, match="connection.*ConnectError"):
        ask(client(retries=1))
    assert [(x["outcome"], x["cost_usd"], x["estimated"]) for x in log(tmp_path)] == [("connection", 0.0, False)] * 2


@pytest.mark.parametrize(
    ("status", "code", "hint"),
    [
        (400, "", "http 400"),
        (401, "", "PROTEGE_EXPERT_API_KEY"),
        (403, "", "may do"),
        (404, "", "address"),
        (422, "", "http 422"),
        (429, "insufficient_quota", "no credit"),
    ],
)
def test_a_refusal_is_not_retried(client, endpoint, status, code, hint):
    endpoint.plays(fails(status, "no", code))
    with pytest.raises(ExpertRefused, match=hint) as caught:
        ask(client())
    assert len(endpoint.requests) == 1 and not caught.value.retryable
    # what would be refused to every request stops the stage, what only this one is masks the rollout
    assert caught.value.boundary == ("expert" if status in (400, 422) else "input")
    assert caught.value.bad_request is (status in (400, 422)) and not caught.value.too_long


def test_a_context_that_is_too_long_is_told_apart(client, endpoint):
    for act in (fails(400, "x", "context_length_exceeded"), fails(400, "This model's maximum context length is 8")):
        endpoint.plays(act)
        with pytest.raises(ExpertRefused) as caught:
            ask(client())
        assert caught.value.too_long


def test_retry_after_is_waited_for(client, endpoint):
    endpoint.plays(fails(429, Retry_After="0.4"), fails(503, retry_after_ms="300"), says())
    began = time.monotonic()
    ask(client())
    first, second = (b - a for a, b in zip(endpoint.times, endpoint.times[1:], strict=False))
    assert first >= 0.4 and second >= 0.3 and time.monotonic() - began < 60


def test_a_wait_past_the_time_to_give_up_is_not_begun(client, endpoint):
    endpoint.plays(fails(429, Retry_After="3600"))
    began = time.monotonic()
    with pytest.raises(ExpertError, match="give_up_after_s"):
        ask(client())
    assert time.monotonic() - began < 60 and len(endpoint.requests) == 1


def test_back_off_grows_with_full_jitter(client, endpoint, monkeypatch):
    drawn, slept = [], []
    monkeypatch.setattr("protege.expert.client.random.uniform", lambda low, high: drawn.append((low, high)) or high)
    monkeypatch.setattr("protege.expert.client.time.sleep", slept.append)
    endpoint.plays(fails(500))
    with pytest.raises(ExpertError):
        ask(client(retries=5, backoff_s=1.0, backoff_max_s=6.0))
    assert drawn == [(0, 1.0), (0, 2.0), (0, 4.0), (0, 6.0), (0, 6.0)]
    assert slept == [pytest.approx(high * 1.0, rel=0.2) for _, high in drawn]


@pytest.mark.parametrize("value", ["", "soon", "nan", "Wed, 99 Foo 2026"])
def test_a_retry_after_without_sense_is_ignored(value):
    assert http_wait({"retry-after": value}) is None


def test_a_retry_after_date_and_a_past_one():
    assert 50 < (http_wait({"retry-after": email.utils.formatdate(time.time() + 60, usegmt=True)}) or 0) <= 61
    assert http_wait({"retry-after": "-5"}) == 0.0


WRONG_USAGE = [
    "none",
    {},
    {"prompt_tokens": -5, "completion_tokens": 3},
    {"prompt_tokens": "20", "completion_tokens": 3},
    {"prompt_tokens": True, "completion_tokens": 3},
    {"prompt_tokens": 20.5, "completion_tokens": 3},
    {"prompt_tokens": None, "completion_tokens": None, "prompt_tokens_details": [1]},
]


@pytest.mark.parametrize("usage", WRONG_USAGE)
def test_what_the_endpoint_does_not_count_is_counted_at_its_worst(client, endpoint, tmp_path, usage):
    endpoint.plays(says(body(usage=usage)))
    answer = ask(client())
    (line,) = log(tmp_path)
    assert answer.prompt_tokens is None and line["estimated"]
    assert line["prompt_tokens"] >= len(ASKED[0]["content"]) and answer.cost_usd > 0


def test_what_may_have_been_charged_for_is_counted(client, endpoint, tmp_path):
    """A reply that was lost on its way was paid for; one that was never made was not."""
    for act, charged in (
        (hangs, True),
        (truncates, True),
        (says(b"x"), True),
        (fails(500), False),
        (fails(400), False),
    ):
        endpoint.plays(act)
        with pytest.raises(ExpertError):
            ask(client(retries=0, timeout_s=0.2))
        assert (log(tmp_path)[-1]["cost_usd"] > 0) is charged, act
        assert log(tmp_path)[-1]["estimated"] is charged


def test_an_empty_reply_is_charged_as_reported(client, endpoint, tmp_path):
    endpoint.plays(says(body("", {"prompt_tokens": 20, "completion_tokens": 50})), says())
    answer = ask(client())
    assert [line["completion_tokens"] for line in log(tmp_path)] == [50, 5]
    assert answer.cost_usd == pytest.approx((20 + 500 + 20 + 50) / 1e6)


def test_a_budget_that_ends_between_two_attempts(client, endpoint):
    endpoint.plays(says(body("", {"prompt_tokens": 20, "completion_tokens": 50})))
    with pytest.raises(BudgetExhausted, match="api.budget_tokens = 200") as caught:
        ask(client(budget_tokens=200, retries=50))
    assert len(endpoint.requests) == 1 and not caught.value.retryable


def test_an_unknown_price_is_an_error_unless_allowed(client, endpoint):
    with pytest.raises(BadParams, match=r"no price for model 'm' \(known: other\).*allow_unknown_price"):
        client(prices={"other": {"input": 1, "output": 1}})
    assert ask(client(prices={}, allow_unknown_price=True)).cost_usd == 0.0


def test_the_other_name_of_the_token_limit(client, endpoint):
    ask(client(token_limit_field="max_completion_tokens"))
    assert endpoint.requests[0]["max_completion_tokens"] == 50 and "max_tokens" not in endpoint.requests[0]


@pytest.mark.parametrize("status", [400, 401, 500, 200])
def test_the_key_is_nowhere(client, endpoint, tmp_path, caplog, capfd, status):
    caplog.set_level("DEBUG")
    endpoint.plays(echoes_key(status))
    one = client(retries=1)
    with pytest.raises(ExpertError) as caught:
        ask(one)
    shown = "".join(traceback.format_exception(caught.value)) + repr(one) + repr(vars(one)) + str(one.endpoint)
    chain: BaseException | None = caught.value
    while chain is not None:  # what a page of a failed run would show of an error's origin
        shown += repr(chain.args) + repr(vars(chain))
        chain = chain.__cause__ or chain.__context__
    files = "".join(p.read_text() for p in tmp_path.rglob("*") if p.is_file())
    captured = capfd.readouterr()
    everything = shown + files + caplog.text + captured.out + captured.err
    assert "***" in str(caught.value) if status != 200 else True
    assert KEY not in everything and KEY.encode() not in pickle.dumps(one) + pickle.dumps(caught.value)
    assert KEY not in repr(copy.copy(one))


def test_a_pickled_client_still_asks(client, endpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ask(pickle.loads(pickle.dumps(client()))).text == "Look at `difference`."


@pytest.mark.parametrize(
    "url", ["http://user:sk-x@host/v1", "http://host/v1?api-key=x", "ftp://host", "other.org:80", "http://[::1/v1"]
)
def test_an_address_that_is_none_or_holds_a_key_is_refused_without_being_shown(client, endpoint, monkeypatch, url):
    monkeypatch.setenv("PROTEGE_EXPERT_BASE_URL", url)
    with pytest.raises(BadParams, match="PROTEGE_EXPERT_BASE_URL") as caught:
        client()
    assert url not in str(caught.value)


@pytest.mark.parametrize("part", ["BASE_URL", "MODEL", "API_KEY"])
def test_a_missing_variable_is_named(client, endpoint, monkeypatch, part):
    monkeypatch.delenv(f"PROTEGE_EXPERT_{part}")
    with pytest.raises(BadParams, match=f"PROTEGE_EXPERT_{part}"):
        client()
