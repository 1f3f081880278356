"""The frontier's numbers, from hand-made trajectories whose answers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from protege.config import ReportParams
from protege.core.trajectory import ExpertCall, Failure, Identity, Trajectory
from protege.errors import BadInput
from protege.report.frontier import load_points, write_frontier
from tests.helpers import make_trajectory, make_turn, make_verdict

PARAMS = ReportParams(bootstrap_samples=2000)
ORACLE = Identity(name="oracle", digest="o", kind="oracle", sees_gold=True)


def rollout(
    instance: str,
    sample: int,
    resolved: bool | None,
    tokens: tuple[int, ...] = (),
    refused: int = 0,
    forced: int = 0,
    expert: Identity | None = ORACLE,
    steps: int = 4,
    usd: float = 0.0,
) -> Trajectory:
    """``tokens``: the expert's, call by call; ``resolved`` None: lost to infrastructure."""
    turns = [make_turn(i, "bash", command="ls") for i in range(steps)]
    turns = [t.model_copy(update={"finish_reason": "forced"}) if t.index < forced else t for t in turns]
    calls = [ExpertCall(turn=0, query="?", reply="!", completion_tokens=n, cost_usd=usd) for n in tokens]
    calls += [ExpertCall(turn=0, query="?", reply="no", answered=False) for _ in range(refused)]
    changes = {"trajectory_id": f"{instance}.rl-x.{sample}", "instance_id": instance, "expert": expert}
    changes["policy"] = Identity(name="rl, asks somehow", digest="m", kind="served")
    if resolved is None:
        changes["failure"] = Failure(boundary="sandbox", error="SandboxDied", message="gone")
        changes["exit_status"] = "infrastructure"
    else:
        changes["verdict"] = make_verdict(resolved)
    return make_trajectory(turns, calls, **changes)


def saved(folder: Path, **systems: list[Trajectory]) -> Path:
    for name, trajectories in systems.items():
        for t in trajectories:
            t.save(folder / name.replace("_", "-") / "trajectories")
    return folder


def test_the_numbers_of_a_system(tmp_path: Path) -> None:
    folder = saved(
        tmp_path,
        own=[
            # a: 1 of 2, b: 0 of 1 (one lost), c: lost
            rollout("a", 0, True, (30, 10)),
            rollout("a", 1, False, (0,), refused=2),
            rollout("b", 0, False, (100,), forced=1),
            rollout("b", 1, None),
            rollout("c", 0, None),
        ],
    )
    (own,) = load_points(folder, PARAMS)
    s = own.score
    assert (s.instances, s.n, s.n_infra) == (2, 3, 2)
    assert s.pass_at_1 == pytest.approx(0.25)  # (1/2 + 0/1) / 2, not 1 of 3
    assert own.expert_tokens == pytest.approx((20 + 100) / 2)  # ((40 + 0) / 2 + 100) / 2, not 140 / 3
    assert own.calls == pytest.approx((1.5 + 1) / 2)
    assert own.silent == pytest.approx(0.25) and own.refused == pytest.approx(0.5)
    assert own.forced == pytest.approx(0.5)
    assert s.expert_token_share == pytest.approx(140 / (140 + 3 * 40))
    assert own.cost_usd is None and own.to_own is None
    assert own.expert_tokens_ci == (20, 100)  # of two instances the resampled means are 20, 60 and 100


def test_intervals_resample_instances_and_not_rollouts(tmp_path: Path) -> None:
    """Twenty equal samples of each of two instances are no more evidence than one of each."""

    def made(samples: int) -> list[Trajectory]:
        return [rollout(i, k, k % 2 == 0, (n,)) for i, n in (("a", 10), ("b", 90)) for k in range(samples)]

    few = load_points(saved(tmp_path / "few", own=made(2)), PARAMS)[0]
    many = load_points(saved(tmp_path / "many", own=made(20)), PARAMS)[0]
    assert few.expert_tokens_ci == many.expert_tokens_ci == (10, 90)
    assert few.score.ci == many.score.ci and few.score.ci[1] - few.score.ci[0] > 0.5


def test_the_difference_to_the_models_own_choice_is_paired(tmp_path: Path) -> None:
    names = [f"i{k}" for k in range(12)]
    own = [rollout(name, 0, k < 6) for k, name in enumerate(names)]
    worse = [rollout(name, 0, k < 2) for k, name in enumerate(names)]
    lost = [rollout(name, 0, None if k == 0 else k < 6) for k, name in enumerate(names)]
    points = load_points(saved(tmp_path, own=own, always=worse, never=lost), PARAMS)
    never, mine, always = points
    assert [p.system.kind for p in points] == ["never", "own", "always"] and mine.to_own is None
    assert always.to_own is not None and never.to_own is not None
    assert always.to_own.difference == pytest.approx(-4 / 12) and always.to_own.n == 12
    assert always.to_own.ci[0] < -4 / 12 < always.to_own.ci[1] < 0  # unpaired intervals of 6/12 and 2/12 overlap
    assert never.to_own.n == 11 and never.to_own.difference == 0
    assert never.score.pass_at_1 == pytest.approx(5 / 11) and never.score.n_infra == 1


def test_everything_is_written_and_the_oracle_is_named(tmp_path: Path) -> None:
    silent = ORACLE.model_copy(update={"name": "oracle, silent 50%"})
    folder = saved(
        tmp_path,
        never=[rollout("a", 0, False, expert=None), rollout("b", 0, False, expert=None)],
        own=[rollout("a", 0, True, (30,)), rollout("b", 0, False, (10,))],
        random_0_25=[],
        silent_0_5=[],
    )
    saved(folder, always=[rollout("a", 0, True, (30, 40)), rollout("b", 0, None)])
    for name, expert in (("random-0.25", ORACLE), ("random-0.5", ORACLE), ("silent-0.5", silent)):
        for t in (rollout("a", 0, False, (30,), expert=expert), rollout("b", 0, True, (5,), expert=expert)):
            t.save(folder / name / "trajectories")
    points = write_frontier(folder, PARAMS, {"commit": "abc123"})
    written = json.loads((folder / "frontier.json").read_text())
    assert list(written["systems"]) == [p.system.name for p in points]
    assert list(written["systems"]) == ["never", "own", "random-0.25", "random-0.5", "always", "silent-0.5"]
    assert written["experts"]["never"] is None and written["experts"]["own"]["sees_gold"] is True
    assert written["systems"]["own"]["expert_tokens_mean"] == 20 and written["systems"]["always"]["n_infra"] == 1
    page = (folder / "frontier.md").read_text()
    rows = {line.split(" | ")[0].strip("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "has seen the gold patch" in rows["own choice"] and "gold" not in rows["no expert"]
    assert "oracle, silent 50% (has seen the gold patch)" in rows["own choice, expert silent 50%"]
    assert "1 of 2" in rows["after every step"] and "abc123" in page and "USD" not in page
    assert (folder / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_prices_are_shown_only_where_known(tmp_path: Path) -> None:
    folder = saved(tmp_path, own=[rollout("a", 0, True, (30,), usd=0.002)], never=[rollout("a", 0, False, expert=None)])
    write_frontier(folder, PARAMS, {})
    page = (folder / "frontier.md").read_text()
    assert "expert USD" in page and "0.0020" in page


def test_nothing_graded_is_no_zero(tmp_path: Path) -> None:
    folder = saved(tmp_path, own=[rollout("a", 0, None)], always=[rollout("a", 0, True, (3,))])
    own, always = write_frontier(folder, PARAMS, {})
    assert own.score.pass_at_1 is None and own.expert_tokens is None and "pass_at_1" not in own.flat()
    assert always.to_own is not None and always.to_own.n == 0 and "to_own" not in always.flat()


def test_an_empty_folder_and_a_strange_one_are_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="make frontier"):
        load_points(tmp_path, PARAMS)
    with pytest.raises(BadInput, match="nobody"):
        load_points(saved(tmp_path, nobody=[rollout("a", 0, True)]), PARAMS)
