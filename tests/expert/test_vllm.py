"""Expert, teacher and judge against a real vLLM server. Its model is random: the words mean nothing, the wire does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from protege.config import ExpertParams, JudgeParams, Price
from protege.core.trajectory import ExpertCall, Message
from protege.errors import ContextLimitReached, ExpertError, ExpertRefused
from protege.expert.api import ApiExpert
from protege.expert.judge import judged
from protege.expert.ledger import Ledger
from protege.expert.model_judge import ModelJudge
from protege.policy.chat import ChatPolicy
from protege.policy.server import SERVED_NAME, ModelServer
from tests.expert.conftest import quick
from tests.helpers import make_instance, make_trajectory, make_turn

pytestmark = pytest.mark.slow
RECENT = [Message(role="user", content="OBSERVATION:\n8"), Message(role="assistant", content="I am stuck.")]
API = quick(timeout_s=120.0, prices={SERVED_NAME: Price(input=1.0, output=2.0)}, budget_tokens=200_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    from protege.policy.tiny import tiny_model

    folder = tmp_path_factory.mktemp("expert")
    model = tiny_model(folder / "tiny")
    with ModelServer(model, dtype="float32", max_model_len=4096, run_dir=folder / "run") as running:
        yield running


@pytest.fixture
def ledger(server: ModelServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Ledger:
    for who in ("EXPERT", "POLICY"):
        monkeypatch.setenv(f"PROTEGE_{who}_BASE_URL", f"{server.url}/v1")
        monkeypatch.setenv(f"PROTEGE_{who}_MODEL", SERVED_NAME)
        monkeypatch.setenv(f"PROTEGE_{who}_API_KEY", "unused")
    return Ledger(API, tmp_path)


def log(ledger: Ledger) -> list[dict]:
    assert ledger.folder is not None
    return [json.loads(line) for line in (ledger.folder / "calls.jsonl").read_text().splitlines()]


def trajectory():
    turns = [make_turn(0, "bash", command="ls"), make_turn(1, "ask_expert", query="q"), make_turn(2, "submit")]
    return make_trajectory(turns, [ExpertCall(turn=1, query="What is wrong?", reply="Look at `difference`.")])


def test_as_the_expert(ledger: Ledger) -> None:
    reply = ApiExpert(ExpertParams(max_tokens=24, temperature=0.8), API, ledger).reply(make_instance(), "q", RECENT, 0)
    assert reply.text and reply.prompt_tokens > 50 and 0 < reply.completion_tokens <= 24
    assert reply.cost_usd == pytest.approx((reply.prompt_tokens + 2 * reply.completion_tokens) / 1e6)
    line = log(ledger)[-1]
    assert (line["role"], line["outcome"], line["estimated"]) == ("expert", "ok", False)
    assert line["prompt_tokens"] == reply.prompt_tokens


def test_the_worst_case_is_one(ledger: Ledger) -> None:
    """What is reserved is never less than what the server then counts, whatever the text."""
    expert = ApiExpert(ExpertParams(max_tokens=16), API, ledger)
    for text in (
        "x",
        "日本語のテキスト" * 20,
        "\u0000\u0001\ufffd" * 30,
        "a" * 500,
        "    " * 100,
        "🦀" * 60,
        "<|im_end|>" * 20,
    ):
        expert.reply(make_instance(), text, [Message(role="user", content=text)], 0)
    assert ledger.folder is not None
    held = {x["id"]: x["tokens"] for x in map(json.loads, (ledger.folder / "intents.jsonl").read_text().splitlines())}
    used = {x["id"]: x["prompt_tokens"] + x["completion_tokens"] for x in log(ledger)}
    assert len(used) >= 7 and all(used[key] <= held[key] for key in used)


def test_as_the_teacher(ledger: Ledger) -> None:
    session = ChatPolicy(API, max_new_tokens=8, ledger=ledger).start(make_instance(), 1)
    first = session.step([Message(role="user", content="Fix it.")])
    second = session.step([Message(role="user", content="go on")])
    assert 0 < first.completion_tokens <= 8 and second.prompt_tokens > first.prompt_tokens
    with pytest.raises(ContextLimitReached):
        session.step([Message(role="user", content="word " * 6000)])
    assert {line["role"] for line in log(ledger)} == {"teacher"}


def test_as_the_judge_that_is_held_to_the_schema(ledger: Ledger) -> None:
    # The schema leaves white space free, of which a random model may make more than max_tokens holds.
    judge = ModelJudge(JudgeParams(kind="api", temperature=1.0, malformed_retries=8), API, ledger)
    (call,) = judged(trajectory(), judge).expert_calls
    assert call.warrant is not None and call.follow is not None and 0 <= call.warrant <= 1 and 0 <= call.follow <= 1
    assert {call.warrant * 10 % 1, call.follow * 10 % 1} == {0.0}
    assert {line["outcome"] for line in log(ledger)} == {"ok"}  # no format was refused


def test_as_the_judge_that_is_not(ledger: Ledger) -> None:
    judge = ModelJudge(JudgeParams(kind="api", reply_format="text", temperature=1.0, malformed_retries=1), API, ledger)
    with pytest.raises(ExpertError, match="no valid warrant score for t0 in 2 replies"):
        judge.warrant(trajectory(), trajectory().expert_calls[0])
    assert len(log(ledger)) == 2


def test_a_wrong_model_is_refused_at_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTEGE_EXPERT_MODEL", "nobody")
    api = API.model_copy(update={"allow_unknown_price": True})
    with pytest.raises(ExpertRefused, match="http 404.*model's name"):
        ApiExpert(api=api, ledger=Ledger(api, None)).reply(make_instance(), "q", RECENT, 0)
