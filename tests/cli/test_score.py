"""`protege score`: trajectories on disk, new parameters, nothing run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from protege.cli.main import app
from protege.config import RewardParams
from protege.core.reward import score
from protege.core.trajectory import ExpertCall, Failure
from protege.errors import BadInput, BadParams
from protege.report.score import gold_patches, rescore, reward_params, trajectory_files
from tests.helpers import GOLD, make_instance, make_trajectory, make_turn, make_verdict

ROOT = Path(__file__).parents[2]
INSTANCE = make_instance()


def trajectory(name, resolved=True, follow=0.2, **changes):
    turns = [make_turn(0, "ask_expert", query="q"), make_turn(1, "bash", command="ls"), make_turn(2, "submit")]
    calls = [ExpertCall(turn=0, query="q", reply="r", warrant=0.8, follow=follow)]
    values = {"trajectory_id": name, "instance_digest": INSTANCE.digest, "verdict": make_verdict(resolved)}
    return make_trajectory(turns, calls, **(values | changes))


@pytest.fixture
def project(in_tmp: Path) -> Path:
    """params.yaml, instances, and what stage rl leaves: three trajectories, of which one is masked."""
    (in_tmp / "params.yaml").write_text((ROOT / "profiles/smoke.yaml").read_text())
    (in_tmp / "data/instances").mkdir(parents=True)
    (in_tmp / "data/instances/rl.jsonl").write_text(json.dumps(INSTANCE.to_row()) + "\n")
    failure = Failure(boundary="sandbox", error="SandboxDied", message="gone")
    masked = trajectory("c", exit_status="infrastructure", failure=failure, verdict=None)
    lines = []
    for step, t in enumerate((trajectory("a"), trajectory("b", resolved=False, patch=""))):
        t.save(in_tmp / "data/rl/trajectories")
        assert t.verdict is not None
        reward = score(t, t.verdict, GOLD, 1 if step == 0 else 2, RewardParams())
        lines.append({"step": step, "trajectory_id": t.trajectory_id, "masked": False, **reward.model_dump()})
    masked.save(in_tmp / "data/rl/trajectories")
    lines.append({"step": 1, "trajectory_id": "c", "masked": True, "boundary": "sandbox"})
    (in_tmp / "data/rl/rewards.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return in_tmp


def run(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["score", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def test_the_same_parameters_give_the_logged_reward(project):
    found = json.loads(run("data/rl", "--json"))
    rows = {row["trajectory_id"]: row for row in found["trajectories"]}
    assert found["n"] == 2 and rows["c"]["reward"] is None and "masked" in rows["c"]["why"]
    assert (rows["a"]["stage"], rows["b"]["stage"]) == (1, 2)  # as they were logged
    assert rows["a"]["difference"] == rows["b"]["difference"] == found["means"]["difference"] == 0.0
    assert rows["b"]["sim"] == -1.0 and rows["b"]["total"] == pytest.approx(2 * -2.0 + 0.0)


def test_other_parameters_move_what_they_should(project):
    found = json.loads(run("data/rl", "--json", "--set", "reward.follow_low=-1", "--set", "stage_two.w_follow=1.5"))
    a, b = found["trajectories"][:2]
    assert a["follow"] == b["follow"] == -1.0
    assert a["difference"] == pytest.approx(0.2) and found["params"]["stage_two"]["w_follow"] == 1.5
    # b: -1.0 * 1.5 and a gate that is half open, on -0.5 of similarity and 0.3 * 0.8 of warrant
    assert b["total"] == pytest.approx(-1.5 + 0.5 * (-0.5 + 0.24)) and b["logged"] == pytest.approx(-4.0)


def test_the_stage_can_be_chosen(project):
    found = json.loads(run("data/rl/trajectories", "--json", "--stage", "2"))
    assert [row["stage"] for row in found["trajectories"][:2]] == [2, 2]
    assert found["trajectories"][0]["difference"] != 0
    run("data/rl", "--stage", "3", code=2)


def test_the_table(project):
    lines = run("data/rl", "--set", "follow_low=-1").splitlines()
    assert lines[0].split()[:4] == ["trajectory", "stage", "total", "loop"] and lines[0].split()[-1] == "difference"
    assert lines[2].split()[0] == "a" and lines[2].split()[-1] == "+0.200"
    assert lines[5].startswith("mean of 2") and "-0.000" not in "".join(lines)
    assert lines[6] == "no reward: c: infrastructure failure (masked)"
    assert "difference" not in run("data/rl/trajectories/a.json", "--params", "params.yaml", "--set", "w=1", code=1)


def test_without_a_log_there_is_no_difference(project):
    (project / "data/rl/rewards.jsonl").unlink()
    assert "logged" not in run("data/rl")
    assert json.loads(run("data/rl", "--json"))["trajectories"][0]["stage"] == 2


def test_params_come_from_the_file(project):
    text = (project / "params.yaml").read_text().replace("follow_low: -2.0", "follow_low: -1.0")
    (project / "other.yaml").write_text(text)
    assert json.loads(run("data/rl", "--json", "--params", "other.yaml"))["params"]["follow_low"] == -1.0
    (project / "empty.yaml").write_text("profile: x\n")
    assert reward_params(project / "empty.yaml") == RewardParams()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("reward.follow_lows=1", "reward.follow_lows: no such key"),
        ("reward.stage_two.w=1", "reward.stage_two.w: no such key"),
        ("reward.stage_two=1", "should be a section"),
        ("reward.follow_low=much", "reward.follow_low"),
        ("reward.gate_loop_zero=0", "gate_"),
        ("reward.follow_low", "should look like"),
        ("reward.follow_low=[1", "not YAML"),
    ],
)
def test_a_wrong_change_is_named(project, change, told):
    with pytest.raises(BadParams, match="reward|--set") as caught:
        reward_params("params.yaml", [change])
    assert told in str(caught.value)
    assert told in run("data/rl", "--set", change, code=1)


def test_what_is_not_there_is_said(project):
    assert "no such.json" not in run("such.json", code=1) and "such.json does not exist" in run("such.json", code=1)
    (project / "empty").mkdir()
    assert "no trajectory in empty" in run("empty", code=1)
    assert "no nothing.yaml here" in run("data/rl", "--params", "nothing.yaml", code=1)
    (project / "broken.json").write_text('{"trajectory_id": "x"}')
    assert "broken.json is not a trajectory" in run("broken.json", code=1)
    (project / "data/rl/rewards.jsonl").write_text("{}\n{\n")
    assert "rewards.jsonl, line 1" in run("data/rl", code=1)


def test_an_unresolved_trajectory_needs_the_very_instance_it_was_rolled_out_on(project):
    other = make_instance(problem_statement="Another statement.")
    (project / "data/instances/rl.jsonl").write_text(json.dumps(other.to_row()) + "\n")
    assert "the gold patch of calc__calc" in run("data/rl", code=1)
    assert "mean of 1" in run("data/rl/trajectories/a.json")  # resolved: similarity has no part in it
    (project / "own.jsonl").write_text(json.dumps(INSTANCE.to_row()) + "\n")
    assert "mean of 2" in run("data/rl", "--instances", "own.jsonl")


def test_only_trajectories_are_taken_from_a_folder(project):
    (project / "data/rl/summary.json").write_text(json.dumps({"counts": 1, "trajectories": [{"trajectory_id": "a"}]}))
    (project / "data/rl/list.json").write_text(json.dumps([{"trajectory_id": "a"}]))
    assert [p.name for p in trajectory_files(["data/rl", "data/rl/trajectories/a.json"])] == [
        "a.json",
        "b.json",
        "c.json",
    ]


def test_nothing_graded_is_no_zero(project):
    trajectory("d", verdict=None).save(project / "more")
    (scored,) = rescore(trajectory_files(["more"]), RewardParams(), 1, gold_patches([]))
    assert scored.reward is None and scored.why == "not graded"
    with pytest.raises(BadInput):
        trajectory_files(["nowhere"])
