"""What experts, judges and teachers behind an API would be paid."""

from __future__ import annotations

from dataclasses import dataclass

from protege.cli.plan.hours import Work
from protege.cli.plan.rates import Rates
from protege.params import Params


@dataclass(frozen=True)
class Asked:
    """Calls to one role in the whole run, and their tokens: as expected, and at most (every quota used, every reply full)."""

    role: str
    calls: int
    calls_at_most: int
    input_tokens: int
    output_tokens: int
    input_tokens_at_most: int
    output_tokens_at_most: int
    assumption: str


def asked(p: Params, done: Work, rates: Rates, device: str) -> list[Asked]:
    """Who is asked behind an API how much; empty where all are the offline ones."""
    with_expert = {
        "trajectories": done.teacher_rollouts * (p.trajectories.expert != "none"),
        "rl": done.rl_rollouts * (p.rl.expert != "none"),
        "evaluate": round(
            done.evaluation_rollouts * sum(e != "none" for e in p.evaluate.experts) / max(1, len(p.evaluate.experts))
        ),
    }
    by_api = {
        "trajectories": done.teacher_rollouts * (p.trajectories.expert == "api"),
        "rl": done.rl_rollouts * (p.rl.expert == "api"),
        "evaluate": round(done.evaluation_rollouts * ("api" in p.evaluate.experts) / max(1, len(p.evaluate.experts))),
    }
    calls, quota = rates[device, "expert_calls"], p.agent.expert_quota
    usual = min(calls.value, quota)
    read, reply = rates["expert", "input_tokens"], rates["expert", "output_tokens"]
    chars = rates["expert", "characters_per_token"].value
    found = []
    if total := sum(by_api.values()):
        most_in = min(
            p.agent.context_tokens,
            round(p.agent.expert_window * (p.agent.observation_chars / chars + p.agent.max_new_tokens)),
        )
        usual_in, usual_out = min(read.value, most_in), min(reply.value, p.expert.max_tokens)
        where = ", ".join(f"{stage} {count}" for stage, count in by_api.items() if count)
        found.append(
            Asked(
                "expert", round(total * usual), total * quota,
                round(total * usual * usual_in), round(total * usual * usual_out),
                total * quota * most_in, total * quota * p.expert.max_tokens,
                f"rollouts: {where}; calls a rollout {calls}, at most {quota}; input tokens {read}; reply tokens {reply}",
            )
        )  # fmt: skip
    if p.judge.kind == "api" and (total := sum(with_expert.values())):
        twice, out = rates["expert", "judge_calls"], rates["expert", "judge_output_tokens"]
        most = round(p.judge.window * p.judge.message_chars / chars)
        n, n_most = total * usual * twice.value, total * quota * twice.value * (1 + p.judge.malformed_retries)
        found.append(
            Asked(
                "judge", round(n), round(n_most), round(n * most), round(n * min(out.value, p.judge.max_tokens)),
                round(n_most * most), round(n_most * p.judge.max_tokens),
                f"judgements a call {twice}; input {p.judge.window} messages of judge.message_chars; reply tokens {out}; "
                "at most: every reply sent back judge.malformed_retries times",
            )
        )  # fmt: skip
    if p.trajectories.teacher == "api":
        turns = min(p.agent.step_limit, rates["gpu", "turns_before_rl"].value)
        n = done.teacher_rollouts
        context = p.agent.context_tokens
        found.append(
            Asked(
                "teacher", round(n * turns), n * p.agent.step_limit,
                round(n * turns * context / 4), round(n * turns * rates["gpu", "turn_tokens"].value),
                n * p.agent.step_limit * context, n * p.agent.step_limit * p.agent.max_new_tokens,
                f"turns {rates['gpu', 'turns_before_rl']}; a quarter of agent.context_tokens is read a turn on the average, none of it cached",
            )
        )  # fmt: skip
    return found


def usd(p: Params, model: str, a: Asked) -> tuple[float, float] | None:
    """Expected cost of ``a`` with ``model``, and its most; None where api.prices has no price for it."""
    price = p.api.prices.get(model)
    if price is None:
        return None
    expected = (a.input_tokens * price.input + a.output_tokens * price.output) / 1e6
    return expected, (a.input_tokens_at_most * price.input + a.output_tokens_at_most * price.output) / 1e6
