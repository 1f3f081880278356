"""Rollouts that are a function of their request alone, for tests of the trainer (also in child processes)."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from protege.core.trajectory import Tokens
from protege.train.rollouts import RolloutRequest, RolloutResult


def tokens_of(request: RolloutRequest, logprob: float = -6.0) -> Tokens:
    """A prompt, and three turns of sampled tokens with an observation after each; lengths differ within a group."""
    rng = random.Random(f"{request.instance_id} {request.step} {request.group_index}")
    prompt = random.Random(request.instance_id).choices(range(3, 500), k=20)
    ids, mask = list(prompt), [0] * len(prompt)
    for _ in range(3):
        said, seen = rng.randint(3, 15), rng.randint(2, 20)
        ids += rng.choices(range(3, 500), k=said + seen)
        mask += [1] * said + [0] * seen
    ids.append(2)
    mask.append(1)
    return Tokens(ids=ids, mask=mask, logprobs=[logprob * m for m in mask], prompt_length=len(prompt))


def reward_of(request: RolloutRequest) -> float:
    return float(random.Random(f"reward {request}").randint(0, 3)) + request.group_index / 10


def roll(requests: list[RolloutRequest]) -> list[RolloutResult]:
    """Every fifth rollout of the run is masked."""
    results = []
    for request in requests:
        lost = (request.step * 6 + request.group_index) % 5 == 4
        results.append(RolloutResult(None if lost else tokens_of(request), reward_of(request)))
    return results


def train(model: Path | str, folder: Path | str, params: Any, rollout: Any = roll, **options: Any) -> dict[str, Any]:
    """train_grpo into ``folder``: out, steps.jsonl, checkpoints."""
    from protege.train.grpo import train_grpo

    folder = Path(folder)
    given = {
        "sync": lambda path: None,
        "checkpoint_dir": folder / "checkpoints",
        "steps_path": folder / "steps.jsonl",
        "dtype": "float32",
    }
    return train_grpo(model, ["a", "b", "c"], folder / "out", params, rollout=rollout, **{**given, **options})
