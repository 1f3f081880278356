"""What decides the result of a unit of work, as the digest under which the Store keeps it. Pure.

Rule 3 of docs/architecture.md: instance record, patch, image digest, model digest, expert, params, seed, and the
version of the code that does the work. What is not in a key must not change a result.
"""

from __future__ import annotations

from functools import cache

from protege.config import AgentParams, SandboxParams
from protege.core.instance import Instance
from protege.core.trajectory import Identity, patch_digest
from protege.files import code_version, digest

ROLLOUT_CODE = (
    "agent/loop.py",
    "core/markers.py",
    "core/loops.py",
    "agent/tools.py",
    "expert/audit.py",
    "core/patches.py",
    "agent/prompts",
    "policy",
    "expert",
    "sandbox",
    "core/trajectory.py",
)
GRADE_CODE = ("grading/grade.py", "grading", "sandbox")

_code = cache(code_version)


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
        agent.model_dump(),
        sandbox.deciding(),
        backend,
        seed,
        extra or {},
        _code(*ROLLOUT_CODE),
    )


def grade_key(instance: Instance, patch: str, image_digest: str, sandbox: SandboxParams, backend: str) -> str:
    """Key of one verdict. Who wrote the patch is not in it: the same patch gets the same verdict."""
    return digest(
        "grade", instance.digest, patch_digest(patch), image_digest, sandbox.deciding(), backend, _code(*GRADE_CODE)
    )


def rollout_seed(base: int, *parts: object) -> int:
    """A seed in [0, 2^31) for one rollout, from the stage's seed and what tells the rollouts apart."""
    return int(digest("seed", base, *[str(part) for part in parts])[:8], 16) % 2**31


def sample_seed(base: int, instance_id: str, sample: int) -> int:
    """The seed of rollout ``sample`` (from 0) of an instance in an evaluation; more samples keep the first ones."""
    return rollout_seed(base, instance_id, *([sample] if sample else []))
