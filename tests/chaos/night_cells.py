"""One kill of a night, and whether what was found after it is what an undisturbed night leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from tests.chaos.kills import _timeless
from tests.chaos.night_lab import CHAMPION, STAGES

NIGHT = "2026-01-02"
EXACT = {"model": ("data/models/base",), "instances": ("data/instances",)}
"""Outs whose bytes are compared. Trajectories hold times, so what is trained on them differs from night to night."""
Units = dict[str, tuple[int, int]]
Result = dict[str, dict[str, Any]]


@dataclass
class Cell:
    """One kill. ``killed``: how far the stage had come; "" if it had ended before. ``at``: when (monotonic).

    ``back_s``: seconds from the kill until the stage began again, 0 where it went on by itself; ``lost_s``: how much
    longer the stage took than undisturbed, for all of its kills together.
    """

    victim: str
    stage: str
    killed: str = ""
    commands: int = 1
    differs: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lost_s: float = 0.0
    at: float = 0.0
    back_s: float | None = None
    units: Units = field(default_factory=dict, repr=False)
    """Finished units of work at the instant of the kill."""

    @property
    def ok(self) -> bool:
        living = {"RUNNING", "PENDING", "CANCELLING"} & set(self.states)
        return not (self.differs or self.redone or self.strays or living) and bool(self.killed)

    def compare(self, wanted: Result, home: Path) -> None:
        """Fill in ``differs`` and ``redone`` when the night is over."""
        a, b, after = wanted[self.stage], result(home)[self.stage], store(home)
        self.differs = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        self.redone += [name for name, what in self.units.items() if after.get(name) != what]

    def record(self) -> dict[str, Any]:
        return {
            **{k: v for k, v in vars(self).items() if k not in ("units", "at")},
            "units": len(self.units),
            "ok": self.ok,
        }


def result(home: Path) -> Result:
    """What the night came to, by stage: all of it has to be equal whatever was killed."""
    outs = {}
    for stage in yaml.safe_load((home / "dvc.lock").read_text())["stages"].values():
        outs.update({out["path"]: out["md5"] for out in stage.get("outs", [])})
    found: Result = {stage: {path: outs[path] for path in EXACT.get(stage, ())} for stage in STAGES}
    for path in sorted((home / "data/trajectories").rglob("*.json")):
        found["trajectories"][path.name] = _timeless(_without_images(json.loads(path.read_text())))
    rows = pq.read_table(home / "data/sft/train.parquet", columns=["trajectory_id"])["trajectory_id"].to_pylist()
    found["validate"]["rows"] = sorted(rows)
    found["sft"]["steps"] = [point["step"] for point in json.loads((home / "data/models/sft/curve.json").read_text())]
    for line in (home / "data/rl/rewards.jsonl").read_text().splitlines():
        reward = json.loads(line)
        found["rl"][reward["trajectory_id"]] = reward
    for name, folder in (("evaluate", home / "data"), (CHAMPION, home / "data/champion-evaluation")):
        for path in sorted((folder / "evaluation").glob("*/trajectories/*.json")):
            t = json.loads(path.read_text())
            verdict = (t["verdict"] or {}).get("resolved"), t["exit_status"], t["failure"]
            found[name][f"verdict of {path.stem}"] = verdict
            found[name][f"patch of {path.stem}"] = t["patch"]
    for path in sorted((home / "data/metrics/systems").glob("*.json")):
        metrics = json.loads(path.read_text())
        found["report"][path.stem] = {key: metrics[key] for key in ("n", "resolved", "n_infra")}
    decided = json.loads((home / f"data/nights/{NIGHT}/night.json").read_text())["decided"]
    found[CHAMPION]["decision"] = [decided["promote"], decided["reasons"], decided["paired"]]
    return found


def _without_images(trajectory: dict[str, Any]) -> dict[str, Any]:
    """Each night's engine builds its images anew; their ids hold the time."""
    verdict = trajectory.get("verdict") or {}
    return {**trajectory, "image_digest": "", "verdict": {**verdict, "image_digest": ""}}


def store(home: Path) -> Units:
    """Finished units by file; one that is done again gets another inode and time."""
    found = {}
    for path in (home / ".cache/protege/store").rglob("*.json"):
        if not path.name.startswith("."):
            info = path.stat()
            found[str(path.relative_to(home))] = (info.st_ino, info.st_mtime_ns)
    return found


HEAD = (
    "| stage | killed | when it said | commands | result | done twice | left over | runs in Prefect | back after (s) "
    "| stage took longer by (s) | |\n|---|---|---|---:|---|---|---|---|---:|---:|---|"
)


def line(cell: Cell) -> str:
    """A row of the table."""
    if not cell.killed:
        return f"| {cell.stage} | {cell.victim} | had ended before | | | | | | | | – |"
    states = ", ".join(f"{cell.states.count(s)} {s.lower()}" for s in sorted(set(cell.states)))
    marks = [f"{len(x)}: {x[0]}" if x else good for x, good in (
        (cell.differs, "equal"), (cell.redone, f"nothing of {len(cell.units)}"), (cell.strays, "nothing"))]  # fmt: skip
    said = cell.killed.partition(": ")[2][:40].replace("|", "/")
    return (
        f"| {cell.stage} | {cell.victim} | {said} | {cell.commands} | {' | '.join(marks)} | {states} "
        f"| {cell.back_s} | {cell.lost_s} of {cell.seconds} | {'ok' if cell.ok else 'NOT OK'} |"
    )
