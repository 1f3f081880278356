"""What GRPO asks for and gets back: the plan of a run, requests, results, and the step log. No TRL in here."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protege.config import RlParams
from protege.core.trajectory import Tokens
from protege.errors import BadInput
from protege.files import write_atomic


@dataclass(frozen=True)
class RolloutRequest:
    """One rollout to make. ``seed`` is a function of (run seed, step, instance, group index)."""

    instance_id: str
    seed: int
    step: int
    group_index: int


@dataclass(frozen=True)
class RolloutResult:
    """What came of it. ``tokens`` is None for an infrastructure failure (masked); ``terms`` are the reward's terms."""

    tokens: Tokens | None
    reward: float
    terms: dict[str, float] = field(default_factory=dict)


Rollout = Callable[[list[RolloutRequest]], Sequence[RolloutResult]]


def stage(step: int, total: int, stage_two_from: float) -> int:
    """1 or 2: the reward's stage at ``step`` (from 0) of ``total``; stage II begins at ceil(total * stage_two_from).

    >>> [stage(s, 160, 0.5) for s in (0, 79, 80, 159)]
    [1, 1, 2, 2]
    """
    return 2 if step >= math.ceil(total * stage_two_from) else 1


def schedule(instance_ids: Sequence[str], params: RlParams) -> list[tuple[int, str]]:
    """(step, instance id) for every prompt of the run: shuffled epochs over ``instance_ids``, no repeat within one.

    Raises:
        BadInput: no instance, or two of one id.
    """
    if not instance_ids or len(set(instance_ids)) != len(instance_ids):
        raise BadInput(f"rl needs distinct instances; got {len(instance_ids)}, {len(set(instance_ids))} distinct")
    rng = random.Random(f"rl-{params.seed}")
    pool: list[str] = []
    while len(pool) < params.steps * params.prompts_per_step:
        epoch = sorted(instance_ids)
        rng.shuffle(epoch)
        pool += epoch
    return [(index // params.prompts_per_step, pool[index]) for index in range(params.steps * params.prompts_per_step)]


class StepLog:
    """steps.jsonl: rewritten whole after each step; on a resume the steps that will be done again are dropped."""

    def __init__(self, path: Path, start: int) -> None:
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if start and path.is_file() else []
        self.rows: list[dict[str, Any]] = [row for row in map(json.loads, lines) if row["step"] < start]
        self.open: dict[str, Any] = {}

    def close(self, logs: dict[str, Any], clock: dict[str, float]) -> None:
        """Add the step that TRL has just logged; ``clock`` (seconds by part of the trainer's work) is emptied."""

        def value(key: str) -> float:
            return float(logs.get(key) or 0.0)

        seconds = self.open["seconds"]
        seconds["total"] = round(time.monotonic() - self.open.pop("began"), 2)
        seconds.update({part: round(clock.get(part, 0.0), 2) for part in ("reference", "forward", "backward")})
        seconds["rest"] = round(seconds["total"] - sum(s for part, s in seconds.items() if part != "total"), 2)
        clock.clear()
        row = {
            **self.open,
            "loss": value("loss"),
            "kl": value("kl"),
            "grad_norm": value("grad_norm"),
            "learning_rate": value("learning_rate"),
            "entropy": value("entropy"),
            "clip_ratio": value("clip_ratio/region_mean"),
            "mismatch_mean": value("sampling/sampling_logp_difference/mean"),
            "mismatch_max": value("sampling/sampling_logp_difference/max"),
            "importance_ratio_mean": value("sampling/importance_sampling_ratio/mean"),
            "update": self.open["groups"] > self.open["groups_without_signal"],
        }
        self.rows.append(row)
        write_atomic(self.path, "".join(json.dumps(r) + "\n" for r in self.rows))


def teaches(results: Sequence[RolloutResult], group_size: int, min_spread: float) -> list[bool]:
    """For each rollout whether it counts: not masked, and its group's rewards differ by more than ``min_spread``.

    A group whose rewards are equal has advantage 0 throughout: it is skipped, KL and all (and counted in the step log).
    Where ``std_floor`` makes the advantages of an almost equal group small, passes over it cost what others cost and
    move next to nothing: ``min_spread`` saves them.
    """
    counts = []
    for start in range(0, len(results), group_size):
        group = results[start : start + group_size]
        rewards = [result.reward for result in group if result.tokens is not None]
        signal = bool(rewards) and max(rewards) - min(rewards) > min_spread
        counts += [signal and result.tokens is not None for result in group]
    return counts


def divided(rewards: Sequence[float | None], group_size: int, std_floor: float) -> list[float | None]:
    """Each reward over its group's sample standard deviation, at least ``std_floor``; None stays out of all of it.

    The paper's advantage is (reward - mean) / std. Where all of a group are resolved and differ by 0.06 points of
    warrant, that makes the 0.06 as large as being resolved is elsewhere; with a floor it stays small. 1e-4 as in TRL,
    which has only the mean to subtract then.

    >>> [[round(reward, 2) for reward in divided([2.64, 2.7], 2, floor)] for floor in (0.0, 0.5)]
    [[62.08, 63.49], [5.28, 5.4]]
    """
    found: list[float | None] = []
    for start in range(0, len(rewards), group_size):
        group = rewards[start : start + group_size]
        counted = [reward for reward in group if reward is not None]
        std = statistics.stdev(counted) if len(counted) > 1 else 0.0
        found += [None if reward is None else reward / (max(std, std_floor) + 1e-4) for reward in group]
    return found


def pack(results: Sequence[RolloutResult], params: RlParams, filler: int) -> dict[str, list[Any]]:
    """TRL's rollout fields. A rollout that does not count is one filler token after another, outside the loss, reward None.

    So TRL leaves it out of its group's mean, and the rest of the group is trained on.
    """
    packed: dict[str, list[Any]] = {
        key: [] for key in ("prompt_ids", "completion_ids", "env_mask", "logprobs", "reward")
    }
    for result, counts in zip(results, teaches(results, params.group_size, params.min_spread), strict=True):
        row: tuple[Any, ...] = ([filler], [filler], [0], [0.0], None)
        if result.tokens is not None:
            tokens = _checked(result.tokens, params.max_tokens)
            cut = tokens.prompt_length
            if counts:
                row = (tokens.ids[:cut], tokens.ids[cut:], tokens.mask[cut:], tokens.logprobs[cut:], result.reward)
        for key, value in zip(packed, row, strict=True):
            packed[key].append(value)
    return packed


def _checked(tokens: Tokens, limit: int) -> Tokens:
    cut, length = tokens.prompt_length, len(tokens.ids)
    if length > limit:
        raise BadInput(
            f"a rollout of {length} tokens is longer than rl.max_tokens = {limit}; "
            "set the rollouts' context limit to rl.max_tokens"
        )
    whole = len(tokens.mask) == length and len(tokens.logprobs) == length
    if not 0 < cut < length or any(tokens.mask[:cut]) or not whole:
        raise BadInput("a rollout's token record is inconsistent (prompt_length, mask or logprobs)")
    return tokens


def summarise(step: int, results: Sequence[RolloutResult], params: RlParams) -> dict[str, Any]:
    """The step's rewards: means over the rollouts that count, groups without a difference to learn from."""
    counted = [result for result in results if result.tokens is not None]
    rewards = [result.reward for result in counted]
    mean = sum(rewards) / len(rewards) if rewards else 0.0
    deviation = math.sqrt(sum((r - mean) ** 2 for r in rewards) / len(rewards)) if rewards else 0.0
    size = params.group_size
    teach = teaches(results, size, params.min_spread)
    terms = sorted({name for result in counted for name in result.terms})
    lengths = [len(result.tokens.ids) for result in counted if result.tokens]
    sampled = [sum(result.tokens.mask) for result in counted if result.tokens]
    return {
        "step": step,
        "stage": stage(step, params.steps, params.stage_two_from),
        "reward_mean": mean,
        "reward_std": deviation,
        "rollouts": len(results),
        "masked": len(results) - len(counted),
        "groups": len(results) // size,
        "groups_without_signal": sum(not any(teach[i : i + size]) for i in range(0, len(results), size)),
        "tokens_mean": sum(lengths) / len(lengths) if lengths else 0.0,
        "sampled_tokens_mean": sum(sampled) / len(sampled) if sampled else 0.0,
        "terms": {name: sum(r.terms.get(name, 0.0) for r in counted) / len(counted) for name in terms},
    }
