"""GRPO: the plan, the masking, what of TRL we lean on, and two real steps against a real server."""

import inspect
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from protege.config import RlParams
from protege.core.trajectory import Identity, Message, Tokens
from protege.errors import BadInput
from protege.train.grpo import TRL_PRIVATE, RolloutRequest, RolloutResult, schedule, stage, train_grpo
from protege.train.rollouts import pack, summarise

TOKENS = Tokens(ids=[1, 2, 3, 4, 5, 6], mask=[0, 0, 1, 1, 0, 1], logprobs=[0, 0, -1.0, -2.0, 0, -0.5], prompt_length=2)


def test_the_curriculum_turns_where_the_paper_turns_it() -> None:
    assert [stage(step, 160, 0.5) for step in (0, 79, 80, 159)] == [1, 1, 2, 2]
    assert [stage(step, 3, 0.5) for step in range(3)] == [1, 1, 2]
    assert stage(0, 10, 0.0) == 2 and stage(9, 10, 1.0) == 1


def test_the_plan_is_shuffled_epochs() -> None:
    params = RlParams(steps=4, prompts_per_step=2)
    plan = schedule(["c", "a", "b", "d"], params)
    assert [step for step, _ in plan] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert {name for _, name in plan[:4]} == {name for _, name in plan[4:]} == {"a", "b", "c", "d"}
    assert (
        plan
        == schedule(["d", "a", "b", "c"], params)
        != schedule(["a", "b", "c", "d"], RlParams(steps=4, prompts_per_step=2, seed=6))
    )
    with pytest.raises(BadInput):
        schedule([], params)
    with pytest.raises(BadInput):
        schedule(["a", "a"], params)


def test_params_refuse_what_they_do_not_know() -> None:
    with pytest.raises(ValidationError):
        RlParams.model_validate({"group": 6})


def test_tokens_reach_the_trainer_as_they_were_sampled() -> None:
    packed = pack([RolloutResult(TOKENS, 0.5), RolloutResult(TOKENS, 1.5)], RlParams(group_size=2), filler=9)
    assert packed == {
        "prompt_ids": [[1, 2]] * 2,
        "completion_ids": [[3, 4, 5, 6]] * 2,
        "env_mask": [[1, 1, 0, 1]] * 2,
        "logprobs": [[-1.0, -2.0, 0, -0.5]] * 2,
        "reward": [0.5, 1.5],
    }


def test_an_infrastructure_failure_is_masked_and_never_zero() -> None:
    results = [
        RolloutResult(TOKENS, 2.0, {"correct": 1.0}),
        RolloutResult(None, 0.0),
        RolloutResult(TOKENS, 4.0, {"correct": 0.0}),
    ]
    packed = pack(results, RlParams(group_size=3), filler=9)
    assert packed["reward"] == [2.0, None, 4.0] and packed["env_mask"][1] == [0]
    summary = summarise(0, results, RlParams(group_size=3))
    assert summary["reward_mean"] == 3.0 and summary["masked"] == 1 and summary["terms"] == {"correct": 0.5}
    assert summary["groups_without_signal"] == 0
    assert summarise(0, [results[0], results[1], results[0]], RlParams(group_size=3))["groups_without_signal"] == 1
    assert summarise(0, [results[1]] * 3, RlParams(group_size=3))["groups_without_signal"] == 1


def test_a_group_without_signal_is_left_out_and_its_neighbour_is_not() -> None:
    results = [RolloutResult(TOKENS, r) for r in (1.0, 1.0, 0.0, 1.0)]
    packed = pack(results, RlParams(group_size=2), filler=9)
    assert packed["reward"] == [None, None, 0.0, 1.0]
    assert [sum(mask) for mask in packed["env_mask"]] == [0, 0, 3, 3]
    assert summarise(0, results, RlParams(group_size=2))["groups_without_signal"] == 1


def test_a_group_that_hardly_differs_is_left_out_where_that_is_asked_for() -> None:
    results = [RolloutResult(TOKENS, r) for r in (2.64, 2.7, 1.0, 1.5)]
    kept = {spread: pack(results, RlParams(group_size=2, min_spread=spread), filler=9)["reward"] for spread in (0, 0.5)}
    assert kept == {0: [2.64, 2.7, 1.0, 1.5], 0.5: [None] * 4}
    small = RlParams(group_size=2, min_spread=0.4)
    assert pack(results, small, filler=9)["reward"] == [None, None, 1.0, 1.5]
    assert summarise(0, results, small)["groups_without_signal"] == 1


def test_a_rollout_beyond_the_limit_is_an_error_not_a_cut() -> None:
    long = Tokens(ids=[1] * 100, mask=[0] + [1] * 99, logprobs=[0.0] * 100, prompt_length=1)
    with pytest.raises(BadInput, match="max_tokens"):
        pack([RolloutResult(long, 0.0)], RlParams(max_tokens=64), filler=9)
    with pytest.raises(BadInput, match="inconsistent"):
        pack([RolloutResult(TOKENS.model_copy(update={"prompt_length": 3}), 0.0)], RlParams(), filler=9)


def test_the_private_parts_of_trl_are_where_we_look_for_them() -> None:
    from trl import GRPOTrainer

    source = inspect.getsource(GRPOTrainer)
    for name in TRL_PRIVATE:
        assert f"self.{name}" in source, name
    for line in (
        "self.state.global_step != self._last_loaded_step",
        "self.vllm_generation.sync_weights()",
        "self.use_vllm and self.vllm_importance_sampling_correction",
        'per_token_loss * inputs["importance_sampling_ratio"]',
        "sampling_per_token_logps is not None",
        'extra_fields.pop("env_mask", None)',
        "reward if reward is not None else torch.nan",
    ):
        assert line in source, line
    names = list(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert names[:6] == ["self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size"]


@pytest.mark.slow
def test_two_steps_against_a_real_server_and_a_resume(tiny: Path, tmp_path: Path) -> None:
    from protege.policy.model_folder import model_digest
    from protege.policy.served import ServedPolicy
    from protege.policy.server import ModelServer

    params = RlParams(steps=2, group_size=4, learning_rate=1e-3, kl_beta=0.05, max_tokens=512, checkpoint_every=1)
    asked: list[RolloutRequest] = []
    versions: list[str] = []

    with ModelServer(tiny, dtype="bfloat16", max_model_len=512, run_dir=tmp_path / "run") as server:
        policy = ServedPolicy(
            server.url, tiny, Identity(name="tiny", digest="", kind="served"), max_new_tokens=24, context_tokens=512
        )

        def sync(folder: Path) -> None:
            server.load_weights(folder)
            versions.append(model_digest(folder))

        def roll(requests: list[RolloutRequest], die_at: int = 99) -> list[RolloutResult]:
            results = []
            for request in requests:
                if request.step >= die_at:
                    raise KeyboardInterrupt
                asked.append(request)
                session = policy.start(None, request.seed)  # type: ignore[arg-type]
                session.step([Message(role="system", content="S"), Message(role="user", content=request.instance_id)])
                for turn in range(request.group_index):
                    session.step([Message(role="user", content=f"<|im_end|> seen {turn}")])
                tokens = session.tokens()
                if request.step == 1 and request.group_index == 1:
                    tokens = None
                reward = float(len({*tokens.ids}) / len(tokens.ids)) if tokens else 0.0
                results.append(RolloutResult(tokens, reward, {"variety": reward}))
            return results

        common = {"sync": sync, "steps_path": tmp_path / "steps.jsonl", "checkpoint_dir": tmp_path / "c"}
        with pytest.raises(KeyboardInterrupt):
            train_grpo(tiny, ["a", "b"], tmp_path / "o", params, rollout=lambda r: roll(r, die_at=1), **common)  # type: ignore[arg-type]
        assert not (tmp_path / "o").exists() and [request.step for request in asked] == [0] * 4
        metrics = train_grpo(tiny, ["a", "b"], tmp_path / "o", params, rollout=roll, **common)  # type: ignore[arg-type]

    assert metrics["resumed_from"] == 1 and metrics["steps"] == 2 and metrics["masked_rollouts"] == 1
    assert [(r.step, r.group_index) for r in asked] == [(s, g) for s in (0, 1) for g in range(4)]
    assert len({r.seed for r in asked}) == 8
    assert versions[0] != versions[1] == versions[2], "the step's update reached the server, and survived the kill"
    rows = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1] and [row["masked"] for row in rows] == [0, 1]
    for row in rows:
        assert row["grad_norm"] > 0 and 0 < row["mismatch_mean"] < 0.2, row
        assert row["importance_ratio_mean"] == pytest.approx(1.0, abs=0.1)
        assert set(row["seconds"]) == {"sync", "rollout", "reference", "forward", "backward", "rest", "total"}
    assert rows[0]["kl"] == pytest.approx(0.0, abs=1e-4) and rows[1]["kl"] > 1e-4
    assert model_digest(tmp_path / "o") != model_digest(tiny)
