"""Token in, token out against a real vLLM server that holds a random tiny model."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import torch

from protege.core.trajectory import Identity, Message
from protege.errors import BadInput, BadParams, ContextLimitReached, ModelServerError
from protege.policy.chat import ChatPolicy
from protege.policy.served import ServedPolicy
from protege.policy.server import ModelServer

WHO = Identity(name="tiny", digest="", kind="served")
OPENING = [Message(role="system", content="S"), Message(role="user", content="Fix it.")]


def seen(text: str) -> list[Message]:
    return [Message(role="user", content=text)]


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelServer]:
    lines: list[str] = []
    run_dir = tmp_path_factory.mktemp("run")
    with ModelServer(tiny, dtype="float32", max_model_len=1024, run_dir=run_dir, progress=lines.append) as running:
        assert any("ready" in line for line in lines)
        yield running
    assert not list(run_dir.glob("server-*.json"))


def policy(server: ModelServer, tiny: Path, **changes: object) -> ServedPolicy:
    options = {"max_new_tokens": 24, "context_tokens": 512, **changes}
    return ServedPolicy(server.url, tiny, WHO, **options)  # type: ignore[arg-type]


def answer(prompt: list[int], **changes: object) -> dict:
    choice = {
        "prompt_token_ids": prompt,
        "token_ids": [7, 2],
        "logprobs": {"token_logprobs": [-1.0, -0.1]},
        "finish_reason": "stop",
    }
    return {"choices": [{**choice, **changes}]}


@pytest.mark.parametrize(
    "changes",
    [
        {"prompt_token_ids": [1, 9]},
        {"token_ids": []},
        {"token_ids": None},
        {"logprobs": {"token_logprobs": [-1.0]}},
        {"logprobs": {"token_logprobs": [-1.0, None]}},
        {"logprobs": None},
        {"finish_reason": "abort"},
    ],
)
def test_an_answer_that_breaks_the_contract_is_the_servers_failure(tiny: Path, changes: dict) -> None:
    read = ServedPolicy("http://127.0.0.1:9", tiny, WHO)._read
    assert read(answer([1, 2]), [1, 2]) == ([7, 2], [-1.0, -0.1], "stop")
    with pytest.raises(ModelServerError):
        read(answer([1, 2], **changes), [1, 2])


def test_a_server_that_is_down_is_a_model_server_error_and_leaves_no_trace(tiny: Path) -> None:
    session = ServedPolicy("http://127.0.0.1:9", tiny, WHO).start(None, 0)  # type: ignore[arg-type]
    with pytest.raises(ModelServerError):
        session.step(OPENING)
    assert session.tokens() is None


def test_a_folder_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="config.json"):
        ModelServer(tmp_path)


def test_a_chat_policy_needs_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROTEGE_POLICY_API_KEY", raising=False)
    with pytest.raises(BadParams, match="PROTEGE_POLICY_API_KEY"):
        ChatPolicy(model="m")


def test_a_chat_api_that_is_down_is_a_model_server_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTEGE_POLICY_API_KEY", "secret-value")
    chat = ChatPolicy(base_url="http://127.0.0.1:9/v1", model="m", retries=0)
    with pytest.raises(ModelServerError) as caught:
        chat.start(None, 0).step(OPENING)  # type: ignore[arg-type]
    assert "secret-value" not in str(caught.value) + chat.identity.model_dump_json()


@pytest.mark.slow
def test_long_seeded_prompts_side_by_side_do_not_end_the_engine(server: ModelServer, tiny: Path) -> None:
    """More prompt tokens at once than one batch holds. vLLM cuts such a prompt in two, and on a CPU dies of its seed."""
    asked = policy(server, tiny, context_tokens=1024)
    prompts = [[3 + (7 * i + k) % 100 for k in range(900)] for i in range(12)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda i: asked.complete(prompts[i], 4, seed=i), range(len(prompts))))
    assert all(ids for ids, _, _ in answers) and server.alive


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU's worker does not compute on these cores")
def test_on_a_cpu_the_engine_itself_computes(server: ModelServer) -> None:
    """A worker beside it would leave the engine spinning on a core that the computation then does without."""
    started = [p for p in psutil.process_iter(["cmdline"]) if server.url.rsplit(":", 1)[1] in (p.info["cmdline"] or ())]
    names = {child.name() for one in started for child in one.children(recursive=True)}
    assert any("Eng" in name for name in names) and not any("Work" in name for name in names), names


def drafted(server: ModelServer) -> tuple[float, float]:
    """Drafted and accepted tokens so far."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    names = ("vllm:spec_decode_num_draft_tokens_total", "vllm:spec_decode_num_accepted_tokens_total")
    return tuple(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)) for name in names)  # type: ignore[return-value]


@pytest.mark.slow
def test_drafts_change_no_sampled_token(server: ModelServer, tiny: Path, tmp_path: Path) -> None:
    """Eight requests at once, whose prompts say the same over and over: with drafts, and by a server without."""
    prompts = [[11 + i, *([21, 22, 23 + i, 24, 25, 26] * 30)] for i in range(8)]

    def sampled(url: str) -> list[tuple[list[int], list[float]]]:
        asked = ServedPolicy(url, tiny, WHO, temperature=0.15)
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(lambda pair: asked.complete(pair[1], 120, pair[0]), enumerate(prompts))
            return [(ids, logprobs) for ids, logprobs, _ in answers]

    before = drafted(server)
    with_drafts = sampled(server.url)
    proposed, accepted = (now - then for now, then in zip(drafted(server), before, strict=True))
    assert 20 < accepted < proposed, "some are right, some are wrong"
    with ModelServer(tiny, dtype="float32", max_model_len=1024, run_dir=tmp_path, drafts=False) as plain:
        without = sampled(plain.url)
        assert drafted(plain) == (0, 0)
    # A pass over several tokens rounds otherwise, so that a draw on the very edge of two tokens may fall to the other side.
    pairs = [(one, other) for one, other in zip(with_drafts, without, strict=True) if one[0] == other[0]]
    assert len(pairs) >= 7
    for (_, logprobs), (_, other_logprobs) in pairs:
        assert logprobs == pytest.approx(other_logprobs, abs=1e-3)


@pytest.mark.slow
def test_several_turns_are_token_exact(server: ModelServer, tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    served = policy(server, tiny)
    session = served.start(None, 3)  # type: ignore[arg-type]
    said = [session.step(OPENING)]
    for turn in range(4):
        said.append(session.step(seen(f"<|im_end|>\n  line {turn}")))
    tokens = session.tokens()
    assert tokens is not None and len(tokens.ids) == len(tokens.mask) == len(tokens.logprobs)
    assert tokens.ids[: tokens.prompt_length] == served.format.prefix_ids(OPENING)
    assert not any(tokens.mask[: tokens.prompt_length]) and tokens.mask[tokens.prompt_length] == 1
    assert sum(tokens.mask) == sum(one.completion_tokens for one in said)
    assert all(value == 0.0 for value, mask in zip(tokens.logprobs, tokens.mask, strict=True) if not mask)
    assert tokens.ids[-1] == served.format.end_of_turn
    assert served.format.decode(tokens.ids).count(said[-1].text) >= 1

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([tokens.ids])).logits[0, :-1].log_softmax(-1)
    ours = logits[range(len(tokens.ids) - 1), tokens.ids[1:]]
    gaps = [abs(float(ours[t - 1]) - tokens.logprobs[t]) for t in range(1, len(tokens.ids)) if tokens.mask[t]]
    assert max(gaps) < 0.01, max(gaps)

    again = policy(server, tiny).start(None, 3)  # type: ignore[arg-type]
    other = policy(server, tiny).start(None, 4)  # type: ignore[arg-type]
    assert again.step(OPENING).text == said[0].text != other.step(OPENING).text


@pytest.mark.slow
def test_a_turn_that_ends_by_length_is_closed_outside_the_mask(server: ModelServer, tiny: Path) -> None:
    session = policy(server, tiny, max_new_tokens=3).start(None, 1)  # type: ignore[arg-type]
    completion = session.step(OPENING)
    tokens = session.tokens()
    assert tokens is not None and completion.finish_reason == "length" and completion.completion_tokens == 3
    assert tokens.mask[-4:] == [1, 1, 1, 0] and tokens.ids[-1] == session._policy.format.end_of_turn


@pytest.mark.slow
def test_a_sampled_end_of_turn_is_the_models_own(server: ModelServer, tiny: Path) -> None:
    served = policy(server, tiny, max_new_tokens=300)
    ends = []
    for seed in range(12):
        session = served.start(None, seed)  # type: ignore[arg-type]
        completion = session.step(OPENING)
        tokens = session.tokens()
        assert tokens is not None
        ends.append((completion.finish_reason, tokens.mask[-1]))
        assert "<|im_end|>" not in completion.text
    assert set(ends) <= {("stop", 1), ("length", 0)} and ("stop", 1) in ends, ends


@pytest.mark.slow
def test_the_context_limit_ends_a_rollout_before_it_is_exceeded(server: ModelServer, tiny: Path) -> None:
    session = policy(server, tiny, context_tokens=160, max_new_tokens=64).start(None, 1)  # type: ignore[arg-type]
    session.step(OPENING)
    with pytest.raises(ContextLimitReached):
        for _ in range(20):
            session.step(seen("x"))
    tokens = session.tokens()
    assert tokens is not None and 100 < len(tokens.ids) <= 160


@pytest.mark.slow
def test_greedy_decoding_repeats_itself(server: ModelServer, tiny: Path) -> None:
    texts = {policy(server, tiny, temperature=0.0).start(None, seed).step(OPENING).text for seed in (1, 2)}  # type: ignore[arg-type]
    assert len(texts) == 1


@pytest.mark.slow
def test_the_chat_policy_speaks_to_the_same_server(server: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROTEGE_POLICY_API_KEY", "unused")
    chat = ChatPolicy(base_url=f"{server.url}/v1", model="protege", max_new_tokens=8)
    session = chat.start(None, 1)  # type: ignore[arg-type]
    first, second = session.step(OPENING), session.step(seen("go on"))
    assert 0 < first.completion_tokens <= 8 and second.prompt_tokens > first.prompt_tokens
    assert session.tokens() is None


@pytest.mark.slow
def test_loaded_weights_are_the_ones_that_answer(server: ModelServer, tiny: Path, tmp_path: Path) -> None:
    """Last in this module: it leaves the server as it found it, but for the prefix cache."""
    from protege.policy.tiny import tiny_model

    def greedy() -> tuple[str, str]:
        served = policy(server, tiny, temperature=0.0)
        session = served.start(None, 0)  # type: ignore[arg-type]
        return session.step(OPENING).text, session.step(seen("go on")).text

    before = greedy()
    other = tiny_model(tmp_path / "other", seed=1)
    server.load_weights(other)
    changed = greedy()
    server.load_weights(tiny)
    assert greedy() == before != changed
    with pytest.raises(ModelServerError):
        server.load_weights(tmp_path / "absent")


@pytest.mark.slow
def test_a_server_that_cannot_start_shows_its_log(tiny: Path, tmp_path: Path) -> None:
    server = ModelServer(tiny, run_dir=tmp_path, extra_args=["--no-such-flag"])
    with pytest.raises(ModelServerError, match="no-such-flag"):
        server.start()
    assert not server.alive and not list(tmp_path.glob("server-*.json"))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
