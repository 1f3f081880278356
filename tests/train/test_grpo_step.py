"""What a GRPO step does with its rollouts, on the tiny model: each of the method's rules, seen in losses and weights."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protege.config import RlParams
from protege.core.trajectory import Tokens
from protege.train.checkpoints import ALREADY_DONE
from protege.train.rollouts import RolloutRequest, RolloutResult
from tests.train.synthetic import reward_of, roll, tokens_of, train

FAST = {"learning_rate": 1e-3, "kl_beta": 0.05, "max_tokens": 256, "checkpoint_every": 100}


def weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(folder / "out" / "model.safetensors")


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(bool((one[name] == other[name]).all()) for name in other)


def steps(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def rewarded(*rewards: float | None) -> Callable[[list[RolloutRequest]], list[RolloutResult]]:
    """Rollouts with these rewards, group after group; None is an infrastructure failure."""

    def make(requests: list[RolloutRequest]) -> list[RolloutResult]:
        given = [rewards[i % len(rewards)] for i in range(len(requests))]
        return [
            RolloutResult(None, 0.0) if reward is None else RolloutResult(tokens_of(request), reward)
            for request, reward in zip(requests, given, strict=True)
        ]

    return make


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The inputs of every micro-batch's loss."""
    from protege.train.trimmed import TrimmedGRPOTrainer

    inputs: list[dict[str, Any]] = []
    real = TrimmedGRPOTrainer._compute_loss

    def record(self: Any, model: Any, given: dict[str, Any]) -> Any:
        inputs.append(given)
        return real(self, model, given)

    monkeypatch.setattr(TrimmedGRPOTrainer, "_compute_loss", record)
    return inputs


def trainer_of(tiny: Path, tmp_path: Path, params: RlParams, fast: bool = True) -> Any:
    from protege.train import grpo
    from protege.train.rollouts import StepLog, schedule

    log = StepLog(tmp_path / "steps.jsonl", 0)
    plan = schedule(["a"], params)
    return grpo._trainer(tiny, plan, params, tmp_path / "c", roll, lambda p: None, "float32", log, None, None, fast)


def test_the_papers_settings_reach_the_trainer(tiny: Path, tmp_path: Path) -> None:
    assert RlParams().group_size == 6
    trainer = trainer_of(tiny, tmp_path, RlParams(kl_beta=0.07))
    assert (trainer.epsilon_low, trainer.epsilon_high, trainer.beta) == (0.20, 0.28, 0.07)
    assert (trainer.num_generations, trainer.scale_rewards, RlParams().std_floor) == (6, "none", 0)
    assert trainer.vllm_importance_sampling_correction and trainer.vllm_importance_sampling_mode == "token_truncate"


@pytest.mark.parametrize(
    ("advantage", "ratio", "moves"), [(1.0, 1.27, True), (1.0, 1.29, False), (-1.0, 0.81, True), (-1.0, 0.79, False)]
)
def test_a_ratio_beyond_the_clip_range_gives_no_gradient(
    tiny: Path, tmp_path: Path, advantage: float, ratio: float, moves: bool
) -> None:
    import torch

    trainer = trainer_of(tiny, tmp_path, RlParams(kl_beta=0.0, group_size=2))
    trainer.use_vllm = False
    trainer.current_gradient_accumulation_steps = 1
    ids = torch.randint(3, 500, (1, 30), generator=torch.Generator().manual_seed(0))
    ones = torch.ones(1, 10, dtype=torch.long)
    given = {
        "prompt_ids": ids[:, :20],
        "prompt_mask": torch.ones(1, 20, dtype=torch.long),
        "completion_ids": ids[:, 20:],
        "completion_mask": ones,
        "tool_mask": ones,
        "advantages": torch.tensor([advantage]),
        "num_items_in_batch": torch.tensor(10),
    }
    trainer._in_loss = given
    now = trainer._get_per_token_logps_and_entropies(trainer.model, ids, torch.ones_like(ids), 10)[0].detach()
    trainer._compute_loss(trainer.model, {**given, "old_per_token_logps": now - math.log(ratio)}).backward()
    largest = max(float(p.grad.abs().max()) for p in trainer.model.parameters() if p.grad is not None)
    assert (largest > 0) == moves


@pytest.mark.parametrize("floor", [0.0, 2.2])
def test_advantages_are_normalised_in_the_group_and_a_lost_rollout_is_left_out_of_it(
    tiny: Path, tmp_path: Path, seen: list[dict[str, Any]], floor: float
) -> None:
    params = RlParams(steps=1, group_size=4, prompts_per_step=2, std_floor=floor, **FAST)
    rewards = (1.0, None, 2.0, 6.0, -5.0, -5.0, -5.0, -1.0)
    train(tiny, tmp_path, params, rewarded(*rewards))
    got = sorted(round(float(given["advantages"][0]), 3) for given in seen)
    expected = []
    for group in (rewards[:4], rewards[4:]):
        counted = [r for r in group if r is not None]
        mean = sum(counted) / len(counted)
        std = max(math.sqrt(sum((r - mean) ** 2 for r in counted) / (len(counted) - 1)), floor)
        expected += [0.0 if r is None else round((r - mean) / (std + 1e-4), 3) for r in group]
    assert got == pytest.approx(sorted(expected), abs=2e-3)
    (row,) = steps(tmp_path)
    assert row["masked"] == 1 and row["rollouts"] == 8 and row["reward_mean"] == pytest.approx(-7.0 / 7)
    lost = [given for given in seen if not (given["completion_mask"] * given["tool_mask"]).any()]
    assert len(lost) == 1 and float(lost[0]["advantages"][0]) == 0.0
    counts = {int(given["num_items_in_batch"]) for given in seen}
    assert counts == {int(sum((g["completion_mask"] * g["tool_mask"]).sum() for g in seen))}


def test_nothing_of_a_lost_rollout_reaches_the_weights(tiny: Path, tmp_path: Path) -> None:
    params = RlParams(steps=2, group_size=3, **FAST)

    def lose(reward: float) -> Callable[[list[RolloutRequest]], list[RolloutResult]]:
        def make(requests: list[RolloutRequest]) -> list[RolloutResult]:
            made = [RolloutResult(tokens_of(request), reward_of(request)) for request in requests]
            return [made[0], replace(made[1], tokens=None, reward=reward), made[2]]

        return make

    train(tiny, tmp_path / "zero", params, lose(0.0))
    train(tiny, tmp_path / "large", params, lose(99.0))
    assert equal(weights(tmp_path / "zero"), weights(tmp_path / "large"))
    assert steps(tmp_path / "large")[0]["reward_mean"] < 10


def test_a_step_without_signal_moves_nothing_even_with_momentum_and_is_counted(tiny: Path, tmp_path: Path) -> None:
    from protege.files import digest_tree

    served = []

    def make(requests: list[RolloutRequest]) -> list[RolloutResult]:
        step = requests[0].step
        return [RolloutResult(tokens_of(r), float(r.group_index) if step != 1 else 1.0) for r in requests]

    params = RlParams(steps=3, group_size=3, **FAST)
    metrics = train(
        tiny, tmp_path, params, make, sync=lambda path: served.append(digest_tree(path, ("*.safetensors",)))
    )
    assert served[0] != served[1] == served[2], "step 1 (from 0) had no signal"
    assert metrics["groups_without_signal"] == metrics["steps_without_update"] == 1 and metrics["groups"] == 3
    rows = steps(tmp_path)
    assert [row["update"] for row in rows] == [True, False, True]
    assert rows[1]["grad_norm"] == 0.0 and rows[1]["loss"] == 0.0
    assert rows[2]["kl"] > 0


def test_the_penalty_pulls_towards_the_sft_checkpoint(tiny: Path, tmp_path: Path) -> None:
    """Also for LoRA, whose reference is the model without its adapter."""
    for rank in (0, 4):
        far = {}
        for beta in (0.0, 5.0):
            params = RlParams(steps=6, group_size=2, lora_rank=rank, **{**FAST, "kl_beta": beta, "learning_rate": 3e-3})
            folder = tmp_path / f"{rank}-{beta}"
            train(tiny, folder, params, rewarded(0.0, 1.0))
            start, end = _plain(tiny), weights(folder)
            far[beta] = sum(float((end[name] - start[name].float()).square().sum()) for name in end)
            kls = [row["kl"] for row in steps(folder)]
            assert (kls[-1] > 1e-4) == (beta > 0) and kls[0] == pytest.approx(0.0, abs=1e-4)
        assert far[5.0] < far[0.0]


def _plain(tiny: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(tiny / "model.safetensors")


def test_the_samplers_mismatch_is_measured_and_corrected(tiny: Path, tmp_path: Path) -> None:
    """A sampler that was surer of every token by 0.5 nats: ratio e^-0.5, and so is the gradient; 3 is the cap."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)

    def shifted(by: float) -> Callable[[list[RolloutRequest]], list[RolloutResult]]:
        def make(requests: list[RolloutRequest]) -> list[RolloutResult]:
            results = []
            for request in requests:
                tokens = tokens_of(request)
                ids = torch.tensor([tokens.ids])
                with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                    table = torch.log_softmax(model(ids).logits.float(), -1)
                own = [0.0, *table[0, :-1].gather(-1, ids[0, 1:, None]).squeeze(-1).tolist()]
                logprobs = [(p + by) * m for p, m in zip(own, tokens.mask, strict=True)]
                results.append(
                    RolloutResult(tokens.model_copy(update={"logprobs": logprobs}), float(request.group_index))
                )
            return results

        return make

    rows = {}
    for by in (0.0, 0.5, -3.0):
        params = RlParams(steps=1, group_size=2, **{**FAST, "kl_beta": 0.0})
        train(tiny, tmp_path / str(by), params, shifted(by))
        (rows[by],) = steps(tmp_path / str(by))
    assert rows[0.0]["mismatch_mean"] < 0.02 and rows[0.0]["importance_ratio_mean"] == pytest.approx(1.0, abs=0.01)
    assert rows[0.5]["mismatch_mean"] == pytest.approx(0.5, abs=0.02)
    assert rows[0.5]["mismatch_max"] == pytest.approx(0.5, abs=0.1)
    assert rows[0.5]["importance_ratio_mean"] == pytest.approx(math.exp(-0.5), rel=0.02)
    assert rows[0.5]["grad_norm"] / rows[0.0]["grad_norm"] == pytest.approx(math.exp(-0.5), rel=0.03)
    assert rows[-3.0]["importance_ratio_mean"] == pytest.approx(3.0, rel=0.01)


@pytest.mark.parametrize(("rank", "micro"), [(0, 1), (0, 3), (4, 1)])
def test_a_step_is_trls_own_step(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, micro: int
) -> None:
    """Against TRL's trainer, padding, extra passes and all. The kernels are held apart: test_speed.py is about them."""
    from protege.train.cpu import speed

    monkeypatch.setattr(speed, "cpu_has_bf16", lambda: False)
    params = RlParams(steps=2, group_size=6, micro_batch=micro, lora_rank=rank, **FAST)
    for name, fast in (("ours", True), ("stock", False)):
        train(tiny, tmp_path / name, params, fast=fast)
    ours, stock = steps(tmp_path / "ours"), steps(tmp_path / "stock")
    for one, other in zip(ours, stock, strict=True):
        assert one["masked"] > 0
        for key, tolerance in (("grad_norm", 0.01), ("mismatch_mean", 0.005), ("importance_ratio_mean", 0.005)):
            assert one[key] == pytest.approx(other[key], rel=tolerance), key
        assert one["loss"] == pytest.approx(other["loss"], abs=2e-3)
    start = _plain(tiny)
    ends = weights(tmp_path / "ours"), weights(tmp_path / "stock")
    moved = sum(float((ends[1][name] - start[name].float()).square().sum()) for name in start)
    apart = sum(float((ends[1][name] - ends[0][name]).square().sum()) for name in start)
    assert moved > 0 and apart / moved < 0.05


PROGRAM = """
import sys, pathlib
from protege.config import RlParams
from tests.train.synthetic import train
train(sys.argv[1], sys.argv[2], RlParams.model_validate_json(sys.argv[3]), progress=lambda line: print(line, flush=True))
"""


@pytest.mark.parametrize("rank", [0, 4])
def test_a_killed_run_ends_where_an_undisturbed_one_does(tiny: Path, tmp_path: Path, rank: int) -> None:
    """Killed in step 4 of 6, whose checkpoints are every second step: weights, optimizer, order and log are the same."""
    params = RlParams(steps=6, group_size=4, stage_two_from=0.5, lora_rank=rank, **{**FAST, "checkpoint_every": 2})
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *sys.path]), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", PROGRAM, str(tiny), str(tmp_path / "killed"), params.model_dump_json()]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    for line in process.stdout:
        if "step 3/6" in line:
            process.send_signal(signal.SIGKILL)
            break
    assert process.wait() == -signal.SIGKILL

    asked: list[int] = []

    def watched(requests: list[RolloutRequest]) -> list[RolloutResult]:
        asked.append(requests[0].step)
        return roll(requests)

    resumed = train(tiny, tmp_path / "killed", params, watched)
    train(tiny, tmp_path / "whole", params)
    assert resumed["resumed_from"] == 2 and asked == [2, 3, 4, 5]
    logs = [[_lasting(row) for row in steps(tmp_path / name)] for name in ("killed", "whole")]
    assert logs[0] == logs[1] and [row["stage"] for row in logs[0]] == [1, 1, 1, 2, 2, 2]
    assert equal(weights(tmp_path / "killed"), weights(tmp_path / "whole"))
    assert not equal(weights(tmp_path / "whole"), {n: t.float() for n, t in _plain(tiny).items()})


def test_a_finished_training_is_not_made_again_and_answers_for_no_other(tiny: Path, tmp_path: Path) -> None:
    params = RlParams(steps=1, group_size=2, **FAST)
    told: list[str] = []
    first = train(tiny, tmp_path, params, rewarded(0.0, 1.0), progress=told.append)
    before = weights(tmp_path)
    assert train(tiny, tmp_path, params, rewarded(1.0, 0.0), progress=told.append) == first
    assert told[-1] == ALREADY_DONE and equal(weights(tmp_path), before)
    train(tiny, tmp_path, params, rewarded(1.0, 0.0), progress=told.append, identity="another reward")
    assert told[-1] != ALREADY_DONE and not equal(weights(tmp_path), before)


def _lasting(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


def test_the_time_of_a_step_is_accounted_for(tiny: Path, tmp_path: Path) -> None:
    params = RlParams(steps=1, group_size=2, **FAST)
    train(tiny, tmp_path, params, rewarded(0.0, 1.0), measures=lambda: {"busy": 0.9})
    (row,) = steps(tmp_path)
    seconds = row["seconds"]
    assert row["rollout"] == {"busy": 0.9}
    assert set(seconds) == {"sync", "rollout", "reference", "forward", "backward", "rest", "total"}
    parts = sum(value for name, value in seconds.items() if name != "total")
    assert parts == pytest.approx(seconds["total"], abs=0.02) and seconds["rest"] > -0.05


def test_an_empty_record_is_not_trained_on() -> None:
    from protege.errors import BadInput
    from protege.train.rollouts import pack

    whole = Tokens(ids=[1, 2, 3], mask=[0, 1, 0], logprobs=[0.0, -0.5, 0.0], prompt_length=3)
    with pytest.raises(BadInput, match="inconsistent"):
        pack([RolloutResult(whole, 0.0)] * 2, RlParams(group_size=2), filler=1)
