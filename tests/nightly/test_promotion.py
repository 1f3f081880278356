from __future__ import annotations

from pathlib import Path

import pytest

from protege.config import NightlyParams, load
from protege.core.trajectory import Identity
from protege.policy.model_folder import model_digest
from protege.report.promotion import Measured, Paired, decide
from tasks.promotion import exchange, judge, table
from tests.helpers import make_trajectory, make_verdict
from tests.nightly.project import ROOT

P = NightlyParams(margin=0.05, max_loop_share=0.4, max_infra_share=0.2)
OLD = Measured("old", 40, 0, 0.5, 0.1)
NEW = Measured("new", 40, 0, 0.55, 0.1)


def paired(low: float, n: int = 40) -> Paired:
    return Paired(n, 0.05, (low, 0.2), 0.5)


@pytest.mark.parametrize(
    ("candidate", "champion", "found", "promoted", "why"),
    [
        (NEW, None, None, True, "no champion yet, and the base model was not evaluated"),
        (
            Measured("new", 9, 0, 1.0, 0.0),
            None,
            None,
            False,
            "only 9 instances have a verdict; a decision needs 10 (with",
        ),
        (NEW, OLD, paired(-0.049), True, "not worse"),
        (NEW, OLD, paired(-0.05), False, "may be worse"),
        (NEW, OLD, paired(0.01), True, "n = 40"),
        (NEW, OLD, Paired(0, 0.0, (-1.0, 1.0), 1.0), False, "cannot be compared"),
        (NEW, OLD, None, False, "cannot be compared"),
        (NEW, OLD, paired(0.01, 9), False, "only 9 instances"),
        (NEW, OLD, paired(0.01, 10), True, "n = 10"),
        (Measured("old", 40, 0, 0.5, 0.1), OLD, None, False, "byte for byte"),
        (Measured("new", 40, 0, 0.9, 0.41), OLD, paired(0.1), False, "loops in 41%"),
        (Measured("new", 40, 0, 0.9, 0.4), OLD, paired(0.1), True, "not worse"),
        (Measured("new", 40, 0, 0.9, 0.41), None, None, False, "loops in 41%"),
        (Measured("new", 0, 40, None, None), None, None, False, "no graded instance"),
        (Measured("new", 31, 9, 0.9, 0.0), OLD, paired(0.1, 31), False, "9 of 40"),
        (NEW, Measured("old", 31, 9, 0.5, 0.0), paired(0.1, 31), False, "the champion lost 9 of 40"),
        (
            NEW,
            Measured("old", 0, 40, None, None),
            Paired(0, 0.0, (-1.0, 1.0), 1.0),
            False,
            "the champion has no graded",
        ),
    ],
)
def test_who_becomes_champion(
    candidate: Measured, champion: Measured | None, found: Paired | None, promoted: bool, why: str
) -> None:
    decision = decide(candidate, champion, found, P)
    assert decision.promote is promoted
    assert why in "; ".join(decision.reasons)


def test_what_so_many_instances_can_show_is_said_with_every_comparison() -> None:
    """Computed: more instances show less."""
    said = "; ".join(decide(NEW, OLD, paired(0.01, 20), P).reasons)
    assert "n = 20 (with n = 20 only differences above 26 points show)" in said
    few = "; ".join(decide(NEW, OLD, paired(0.01, 9), P).reasons)
    assert "a decision needs 10 (with n = 10 only differences above 48 points show)" in few


def evaluated(model: str, resolved: int, n: int) -> None:
    """A model's folder, and its evaluation without an expert on ``n`` instances."""
    folder = Path("data/models") / model
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(model, encoding="utf-8")
    policy = Identity(name=model, digest=model_digest(folder), kind="served")
    for number in range(n):
        make_trajectory(
            [],
            trajectory_id=f"i{number}.{model}",
            instance_id=f"i{number}",
            policy=policy,
            verdict=make_verdict(number < resolved),
        ).save(Path(f"data/evaluation/{model}-none/trajectories"))


@pytest.mark.parametrize(
    ("base", "rl", "n", "promoted", "why"),
    [
        (0, 0, 2, False, "against the base model, interval [-0.658, +0.658], n = 2"),
        (20, 10, 40, False, "against the base model"),
        (10, 20, 40, True, "there is no champion yet; Pass@1 +0.250 against the base model, interval [+0.10"),
        (None, 20, 40, True, "there is no champion yet, and the base model was not evaluated"),
    ],
)
def test_the_base_model_is_the_first_to_beat(
    in_tmp: Path, base: int | None, rl: int, n: int, promoted: bool, why: str
) -> None:
    evaluated("rl", rl, n)
    if base is not None:
        evaluated("base", base, n)
    p = NightlyParams(model="rl", expert="none", margin=0.05, min_graded=2)
    decision, record = judge(load(ROOT / "profiles/tiny.yaml").model_copy(update={"nightly": p}), None, None)
    assert decision.promote is promoted and why in "; ".join(decision.reasons)
    assert record["champion"] is None and (record["base"] is None) == (base is None)
    assert ("| base |" in table(record)) == (base is not None)


def test_a_champion_that_loops_more_than_is_allowed_does_not_protect_itself() -> None:
    """The bound is for the new model: an old one over it may be replaced by a better one."""
    assert decide(NEW, Measured("old", 40, 0, 0.5, 0.9), paired(0.0), P).promote


def test_every_reason_against_is_told() -> None:
    decision = decide(Measured("new", 30, 10, 0.1, 0.9), OLD, paired(-0.9, 30), P)
    assert len(decision.reasons) == 3 and not decision.promote


def test_two_folders_change_places(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/b").exists() and (tmp_path / "b/a").exists()
    with pytest.raises(OSError):
        exchange(tmp_path / "a", tmp_path / "missing")
