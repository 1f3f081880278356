"""What decides the result of a unit of work, as the digest under which the Store keeps it. Pure.

The instance's record, the patch, the image, policy, expert and judge, settings, seed, and the code that does the work
with its engines (protege/identity.py). What is not in a key must not change a result.
"""

from __future__ import annotations

from protege.config import AgentParams, SandboxParams
from protege.core.instance import Instance
from protege.core.trajectory import Identity, patch_digest
from protege.files import digest
from protege.identity import code_of

_SANDBOX = {"docker": "protege.sandbox.docker", "bubblewrap": "protege.sandbox.bubblewrap"}


def rollout_key(
    instance: Instance,
    image_digest: str,
    policy: Identity,
    expert: Identity | None,
    judge: Identity | None,
    agent: AgentParams,
    sandbox: SandboxParams,
    backend: str,
    seed: int,
    extra: dict[str, object] | None = None,
) -> str:
    """Key of one rollout. ``extra`` holds what else decides it, such as the sampling temperature."""
    return digest(
        "rollout",
        instance.digest,
        image_digest,
        policy.model_dump(),
        expert.model_dump() if expert else None,
        judge.model_dump() if judge else None,
        agent.deciding(),
        sandbox.deciding(),
        backend,
        seed,
        extra or {},
        code_of("protege.agent.loop", _SANDBOX[backend]),
    )


def grade_key(instance: Instance, patch: str, image_digest: str, sandbox: SandboxParams, backend: str) -> str:
    """Key of one verdict. Who wrote the patch is not in it: the same patch gets the same verdict."""
    return digest(
        "grade",
        instance.digest,
        patch_digest(patch),
        image_digest,
        sandbox.deciding(),
        backend,
        code_of("protege.grading.grade", _SANDBOX[backend]),
    )


def rollout_seed(base: int, *parts: object) -> int:
    """A seed in [0, 2^31) for one rollout, from the stage's seed and what tells the rollouts apart."""
    return int(digest("seed", base, *[str(part) for part in parts])[:8], 16) % 2**31


def sample_seed(base: int, instance_id: str, sample: int) -> int:
    """The seed of rollout ``sample`` (from 0) of an instance in an evaluation; more samples keep the first ones."""
    return rollout_seed(base, instance_id, *([sample] if sample else []))
