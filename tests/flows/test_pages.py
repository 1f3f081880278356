"""What the flows write beside their outs: summaries, predictions, and the pages in the Prefect UI."""

from __future__ import annotations

import json
from pathlib import Path

from flows.trajectories import reason, summary
from protege.core.trajectory import Failure, Identity, Trajectory, Verdict
from tasks.evaluation import page, write_evaluation
from tasks.units import Outcome

ORACLE = Identity(name="oracle", digest="o", kind="oracle", sees_gold=True)


def trajectory(name: str, resolved: bool = False, failed: bool = False) -> Trajectory:
    return Trajectory(
        trajectory_id=f"{name}.x",
        instance_id=name,
        instance_digest="d",
        repo="r",
        policy=Identity(name="p", digest="d", kind="served"),
        expert=ORACLE,
        seed=1,
        messages=[],
        turns=[],
        exit_status="infrastructure" if failed else "submitted",
        failure=Failure(boundary="sandbox", error="SandboxDied", message="gone", attempts=3) if failed else None,
        patch="" if failed else f"patch of {name}",
        plan="alone",
        verdict=None
        if failed
        else Verdict(instance_id=name, instance_digest="d", patch_digest="p", resolved=resolved, applied=True),
    )


OUTCOMES = [
    Outcome(trajectory("good", resolved=True), "run-1", cached=True),
    Outcome(trajectory("bad"), "run-2", cached=False),
    Outcome(trajectory("ill", failed=True), "run-3", cached=False),
]


def test_infrastructure_failures_are_counted_apart(tmp_path: Path) -> None:
    counts = write_evaluation(tmp_path, "sft-oracle", OUTCOMES)
    assert (counts["instances"], counts["graded"], counts["resolved"], counts["infrastructure"]) == (3, 2, 1, 1)
    assert counts["infrastructure_ids"] == ["ill"] and counts["unresolved_ids"] == ["bad"]
    assert json.loads((tmp_path / "summary.json").read_text()) == counts


def test_predictions_are_in_the_official_format(tmp_path: Path) -> None:
    write_evaluation(tmp_path, "sft-oracle", OUTCOMES)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert rows[0] == {"instance_id": "good", "model_name_or_path": "sft-oracle", "model_patch": "patch of good"}
    assert [row["instance_id"] for row in rows] == ["good", "bad", "ill"]
    assert len(list((tmp_path / "trajectories").glob("*.json"))) == 3


def test_the_page_has_failures_first_and_links_each_instance_to_its_task_run() -> None:
    text = page("sft-oracle", OUTCOMES, "http://ui")
    assert text.index("[ill.x]") < text.index("[bad.x]") < text.index("[good.x]")
    assert "[bad.x](http://ui/runs/task-run/run-2)" in text
    assert text.startswith("# sft-oracle: 1 of 2 resolved, 1 lost to infrastructure\n")
    assert "seen the gold patch" in text


def test_every_trajectory_has_its_reason() -> None:
    done = [outcome.trajectory for outcome in OUTCOMES]
    assert [reason(t) for t in done] == ["kept", "unresolved: submitted", "infrastructure: sandbox"]
    said = summary(done)
    assert said["counts"] == {"attempts": 3, "kept": 1, "rejected": 2, "infrastructure": 1}
    assert said["plans"] == {"alone": {"attempts": 3, "kept": 1}}
