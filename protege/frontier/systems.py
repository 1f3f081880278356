"""From a system's name to who acts in it: policy, expert and limits."""

from __future__ import annotations

from dataclasses import dataclass

from protege.config import STRATEGIES, AgentParams, System
from protege.errors import BadParams
from protege.expert.base import Expert
from protege.expert.oracle import OracleExpert
from protege.expert.silent import SilentExpert
from protege.frontier.asking import AskingPolicy
from protege.frontier.degraded import vague_oracle
from protege.policy.base import Policy


@dataclass(frozen=True)
class Cast:
    """Who acts in one system, within which limits."""

    system: System
    policy: Policy
    expert: Expert | None
    agent: AgentParams


def cast(system: System, policy: Policy, expert: Expert, agent: AgentParams) -> Cast:
    """``system`` with the same model, expert and limits as every other, but for the one thing it is about.

    ``never`` and ``own`` are the plain policy, so their rollouts are those of stage evaluate.

    Raises:
        BadParams: ``vague`` with an expert that has no levels.
    """
    if system.kind in STRATEGIES:
        return Cast(system, AskingPolicy(policy, system, agent.expert_quota), expert, agent)
    if system.kind == "never":
        return Cast(system, policy, None, agent)
    if system.kind == "silent":
        return Cast(system, policy, SilentExpert(expert, system.value), agent)
    if system.kind == "budget0":
        return Cast(system, policy, expert, agent.model_copy(update={"expert_quota": 0}))
    if system.kind == "vague":
        if not isinstance(expert, OracleExpert):
            raise BadParams(
                f"frontier.systems: vague needs frontier.expert: oracle; {expert.identity.name} has no levels"
            )
        return Cast(system, policy, vague_oracle(expert.params), agent)
    return Cast(system, policy, expert, agent)
