from __future__ import annotations

import pytest

from protege.config import AgentParams, SandboxParams
from protege.core.trajectory import Identity
from tasks import keys
from tasks.keys import grade_key, rollout_key, rollout_seed

POLICY = Identity(name="base", digest="d1", kind="served")
EXPERT = Identity(name="oracle", digest="e1", kind="oracle", sees_gold=True)


def key_of(instance, **changes: object) -> str:
    given: dict[str, object] = {
        "image_digest": "sha256:1",
        "policy": POLICY,
        "expert": EXPERT,
        "judge": None,
        "agent": AgentParams(),
        "sandbox": SandboxParams(),
        "backend": "docker",
        "seed": 1,
        "extra": {"temperature": 0.0},
    }
    return rollout_key(instance, **{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change",
    [
        {"image_digest": "sha256:2"},
        {"policy": Identity(name="base", digest="d2", kind="served")},
        {"expert": None},
        {"expert": Identity(name="oracle", digest="e2", kind="oracle", sees_gold=True)},
        {"judge": Identity(name="judge", digest="j", kind="judge")},
        {"agent": AgentParams(step_limit=3)},
        {"sandbox": SandboxParams(memory_mb=128)},
        {"backend": "bubblewrap"},
        {"seed": 2},
        {"extra": {"temperature": 1.0}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_decides_a_rollout_is_in_its_key(make_instance, change: dict[str, object]) -> None:
    instance = make_instance()
    assert key_of(instance, **change) != key_of(instance)


def test_same_id_with_other_content_is_other_work(make_instance) -> None:
    assert key_of(make_instance()) == key_of(make_instance())
    assert key_of(make_instance()) != key_of(make_instance(problem_statement="something else"))
    assert grade_key(make_instance(), "p", "i", SandboxParams(), "docker") != grade_key(
        make_instance(eval_script="false"), "p", "i", SandboxParams(), "docker"
    )


def test_the_choice_auto_is_not_in_the_key_but_the_backend_it_led_to_is(make_instance) -> None:
    auto, docker = SandboxParams(backend="auto"), SandboxParams(backend="docker")
    assert key_of(make_instance(), sandbox=auto) == key_of(make_instance(), sandbox=docker)


def test_a_verdict_is_keyed_by_the_patch_and_not_by_who_wrote_it(make_instance) -> None:
    first, second = (grade_key(make_instance(), patch, "i", SandboxParams(), "docker") for patch in ("a", "b"))
    assert first != second


def test_other_code_gives_other_keys(make_instance, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key_of(make_instance())
    monkeypatch.setattr(keys, "code_of", lambda *entries: "other")
    assert key_of(make_instance()) != before


def test_seeds_differ_by_what_tells_rollouts_apart_and_repeat() -> None:
    seeds = {rollout_seed(7, name, number) for name in ("a", "b") for number in range(50)}
    assert len(seeds) == 100
    assert rollout_seed(7, "a", 0) == rollout_seed(7, "a", 0) != rollout_seed(8, "a", 0)
    assert all(0 <= seed < 2**31 for seed in seeds)
