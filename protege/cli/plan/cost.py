"""What experts, judges and teachers behind an API would be paid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from protege.cli.plan.rates import Rates
from protege.cli.plan.work import Work
from protege.config import Params

Range = tuple[float, float]
"""As expected, and at most: every quota used, every reply full."""


@dataclass(frozen=True)
class Role:
    """Calls to one role in the whole run, and their tokens."""

    name: str
    calls: Range
    input_tokens: Range
    output_tokens: Range
    assumption: str


def roles(p: Params, done: Work, rates: Rates, device: str) -> list[Role]:
    """Who is asked behind an API how much; empty where all are the offline ones."""

    def rollouts(counts: Callable[[str], bool]) -> dict[str, int]:
        """Rollouts of each stage whose expert ``counts``."""
        share = sum(map(counts, p.evaluate.experts)) / len(p.evaluate.experts)
        stages = {
            "trajectories": done.teacher_rollouts * counts(p.trajectories.expert),
            "rl": done.rl_rollouts * counts(p.rl.expert),
            "evaluate": round(done.evaluation_rollouts * share),
        }
        return {stage: n for stage, n in stages.items() if n}

    calls, quota, context = rates[device, "expert_calls"], p.agent.expert_quota, p.agent.context_tokens
    usual = min(calls.value, quota)
    characters = rates["expert", "characters_per_token"].value
    found = []
    if by_api := rollouts(lambda expert: expert == "api"):
        read, reply = rates["expert", "input_tokens"], rates["expert", "output_tokens"]
        asked, window = sum(by_api.values()), p.agent.expert_window
        longest = min(context, round(window * (p.agent.observation_chars / characters + p.agent.max_new_tokens)))
        n, most = asked * usual, float(asked * quota)
        found.append(
            Role("expert", (n, most), (n * min(read.value, longest), most * longest),
                 (n * min(reply.value, p.expert.max_tokens), most * p.expert.max_tokens),
                 f"rollouts: {', '.join(f'{stage} {count}' for stage, count in by_api.items())}; calls a rollout {calls}, "
                 f"at most {quota}; input tokens {read}; reply tokens {reply}")
        )  # fmt: skip
    asked = sum(rollouts(lambda expert: expert != "none").values())
    if p.judge.kind == "api" and asked:
        twice, reply = rates["expert", "judge_calls"], rates["expert", "judge_output_tokens"]
        longest = round(p.judge.window * p.judge.message_chars / characters)
        n, most = asked * usual * twice.value, asked * quota * twice.value * (1 + p.judge.malformed_retries)
        found.append(
            Role("judge", (n, most), (n * longest, most * longest),
                 (n * min(reply.value, p.judge.max_tokens), most * p.judge.max_tokens),
                 f"judgements a call {twice}; input {p.judge.window} messages of judge.message_chars; reply tokens {reply}; "
                 "at most: every reply sent back judge.malformed_retries times")
        )  # fmt: skip
    if p.trajectories.teacher == "api":
        turns, sampled = rates["gpu", "turns_before_rl"], rates["gpu", "turn_tokens"]
        n, most = (
            done.teacher_rollouts * limit for limit in (min(p.agent.step_limit, turns.value), p.agent.step_limit)
        )
        found.append(
            Role("teacher", (n, most), (n * context / 4, most * context),
                 (n * sampled.value, most * p.agent.max_new_tokens),
                 f"turns {turns}; tokens a turn {sampled}; a quarter of agent.context_tokens is read a turn on the average, "
                 "none of it cached")
        )  # fmt: skip
    return found


def usd(p: Params, model: str, role: Role) -> Range | None:
    """The cost of ``role`` with ``model``; None where api.prices has no price for it."""
    price = p.api.prices.get(model)
    if price is None:
        return None
    expected, most = (
        (read * price.input + written * price.output) / 1e6
        for read, written in zip(role.input_tokens, role.output_tokens, strict=True)
    )
    return expected, most


def total(found: list[Range]) -> Range:
    return sum(expected for expected, _ in found), sum(most for _, most in found)


def model_of(role: str, env: Mapping[str, str]) -> str | None:
    """The model that the environment names for ``role``."""
    names = {"expert": ("EXPERT",), "judge": ("JUDGE", "EXPERT"), "teacher": ("POLICY",)}[role]
    return next((env[f"PROTEGE_{n}_MODEL"] for n in names if env.get(f"PROTEGE_{n}_MODEL")), None)
