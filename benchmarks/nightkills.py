"""SIGKILL in the middle of every stage of a night, to each process that a night consists of, and what is found after.

The night is the real one at the scale of profiles/tiny.yaml (benchmarks/night_lab.py), with a champion to compare
with. An undisturbed night is the reference. Then, for each kind of victim, a night from the same start in which that
process is killed once in the middle of every stage that has one; where the night itself ends by it, the same command
is given again at once. Writes FOLDER/kills.json and the table in docs/results/kills.md.

    python -m benchmarks.nightkills FOLDER [--victims flow,dvc,nightly,vllm,dockerd]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.kills import _timeless
from benchmarks.night_lab import ROOT, Lab, lab, where

FIRST, NIGHT = "2026-01-01", "2026-01-02"
COMMAND = ("flows.nightly", "--night", NIGHT)
CHAMPION = "champion"
STAGES = ("model", "instances", "trajectories", "validate", "sft", "rl", "evaluate", "report", CHAMPION)
VICTIMS: dict[str, tuple[str, ...]] = {
    "flow": STAGES,
    "dvc": STAGES[:-1],
    "nightly": STAGES,
    "vllm": ("rl", "evaluate", CHAMPION),
    "dockerd": ("instances", "trajectories", "rl", "evaluate", CHAMPION),
}
PATIENCE_S = 900.0
COMMANDS = 4
ENGINE_AWAY_S = 3.0
EXACT = {
    "model": ("data/models/base",),
    "instances": ("data/instances",),
    "validate": ("data/sft/train.parquet",),
    "sft": ("data/models/sft",),
    "rl": ("data/models/rl",),
}
"""Outs whose bytes are compared."""


@dataclass
class Cell:
    """One kill: when it came, and what was found after it."""

    victim: str
    stage: str
    killed: str = ""
    """How far the stage had come: its last line; "" if it had ended before."""
    commands: int = 1
    differs: list[str] = field(default_factory=list)
    redone: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    states: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lost_s: float = 0.0

    @property
    def ok(self) -> bool:
        living = {"RUNNING", "PENDING", "CANCELLING"} & set(self.states)
        return not (self.differs or self.redone or self.strays or living) and bool(self.killed)


class Said:
    """What the nights' log says of each stage, and when it was read there first."""

    def __init__(self, log: Path) -> None:
        self.log, self.lines = log, {stage: [] for stage in STAGES}  # type: dict[str, list[tuple[float, str]]]
        self._read, self._reported = 0, False

    def look(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self._read)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            name = re.match(r"(\w+)(?: step \d+)?: ", line)
            stage = CHAMPION if self._reported and name and name[1] == "evaluate" else name[1] if name else ""
            if stage in self.lines:
                self.lines[stage].append((time.monotonic(), line))
            self._reported = self._reported or line.startswith("report: done in")

    def began(self, stage: str) -> bool:
        return any(": starts (" in line for _, line in self.lines[stage])

    def done(self, stage: str) -> int:
        return sum(": done in " in line for _, line in self.lines[stage])

    def seconds(self, stage: str) -> float:
        """From its first start to its last end."""
        first = next((at for at, line in self.lines[stage] if ": starts (" in line), 0.0)
        return next((at - first for at, line in reversed(self.lines[stage]) if ": done in " in line), 0.0)

    def units(self, stage: str) -> int:
        return sum(bool(re.search(r": \d+/\d+ ", line)) for _, line in self.lines[stage])


def result(home: Path) -> dict[str, dict[str, Any]]:
    """What the night came to, by stage: what has to be equal whatever was killed."""
    outs = {}
    for stage in yaml.safe_load((home / "dvc.lock").read_text())["stages"].values():
        outs.update({out["path"]: out["md5"] for out in stage.get("outs", [])})
    found: dict[str, dict[str, Any]] = {stage: {} for stage in STAGES}
    for stage, paths in EXACT.items():
        found[stage] = {path: outs[path] for path in paths}
    for path in sorted((home / "data/trajectories").rglob("*.json")):
        found["trajectories"][path.name] = _timeless(json.loads(path.read_text()))
    for line in (home / "data/rl/rewards.jsonl").read_text().splitlines():
        reward = json.loads(line)
        found["rl"][reward["trajectory_id"]] = reward
    for stage, folder in (("evaluate", home / "data"), (CHAMPION, home / ".cache/protege/champion/data")):
        for path in sorted((folder / "evaluation").glob("*/trajectories/*.json")):
            t = json.loads(path.read_text())
            verdict = (t["verdict"] or {}).get("resolved"), t["exit_status"], t["failure"]
            found[stage][f"verdict of {path.stem}"] = verdict
            found[stage][f"patch of {path.stem}"] = t["patch"]
    for path in sorted((home / "data/metrics/systems").glob("*.json")):
        metrics = json.loads(path.read_text())
        found["report"][path.stem] = {key: metrics[key] for key in ("n", "resolved", "n_infra")}
    decided = json.loads((home / f"data/nights/{NIGHT}/night.json").read_text())["decided"]
    found[CHAMPION]["decision"] = [decided["promote"], decided["reasons"], decided["paired"]]
    return found


def store(home: Path) -> dict[str, tuple[int, int]]:
    """Finished units by file; one that is done again gets another inode and time."""
    found = {}
    for path in (home / ".cache/protege/store").rglob("*.json"):
        if not path.name.startswith("."):
            info = path.stat()
            found[str(path.relative_to(home))] = (info.st_ino, info.st_mtime_ns)
    return found


def kill(made: Lab, victim: str, stage: str, night: subprocess.Popen[bytes]) -> bool:
    """SIGKILL to the victim; False if there is none at this instant."""
    if victim == "dockerd":
        made.engine.stop(how=signal.SIGKILL)
        time.sleep(ENGINE_AWAY_S)  # as long as a service manager takes
        made.engine.start()
        return True
    find: dict[str, Callable[[], int | None]] = {
        "flow": lambda: made.flow("evaluate" if stage == CHAMPION else stage),
        "dvc": made.dvc,
        "nightly": lambda: night.pid,
        "vllm": made.model_server,
    }
    if (pid := find[victim]()) is None:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def due(said: Said, reference: Said, victim: str, stage: str) -> bool:
    """Half of what the undisturbed stage says has been said; for the model server: it has answered for a rollout."""
    if victim == "vllm":
        return said.units(stage) > 0
    return said.began(stage) and len(said.lines[stage]) >= max(1, len(reference.lines[stage]) // 2)


def disturbed(made: Lab, victim: str, reference: Said, wanted: dict[str, dict[str, Any]]) -> list[Cell]:
    """A night in which ``victim`` is killed once in every stage that has it."""
    made.restore()
    since, said = time.time() - 1, Said(made.log)
    todo, cells, open_cells = list(VICTIMS[victim]), [], []  # type: list[str], list[Cell], list[Cell]
    units: dict[str, dict[str, tuple[int, int]]] = {}

    def close(night: int | None) -> None:
        for cell in [c for c in open_cells if night is None or said.done(c.stage)]:
            if night is None or any(said.began(s) for s in STAGES[STAGES.index(cell.stage) + 1 :]):
                cell.strays = made.strays(night)
                open_cells.remove(cell)

    for _ in range(COMMANDS + len(todo)):
        night, deadline = made.start(*COMMAND), time.monotonic() + PATIENCE_S
        while night.poll() is None:
            said.look()
            stage = todo[0] if todo else None
            if stage and said.done(stage):  # it was over before the victim was found
                cells.append(Cell(victim, stage))
                todo.pop(0)
            elif stage and due(said, reference, victim, stage):
                units[stage] = store(made.home)
                if kill(made, victim, stage, night):
                    cells.append(Cell(victim, stage, said.lines[stage][-1][1]))
                    open_cells.append(cells[-1])
                    todo.pop(0)
            close(night.pid)
            if time.monotonic() > deadline:
                night.kill()
            time.sleep(0.01)
        said.look()
        if night.returncode == 0:
            break
        for cell in open_cells:
            cell.commands += 1
    else:
        raise RuntimeError(f"{victim}: the night does not end well:\n{made.log.read_text()[-4000:]}")
    time.sleep(5)  # the guard of a model server ends it within 3 s
    close(None)
    finish(made, cells, said, reference, wanted, units, since)
    return cells


def finish(
    made: Lab,
    cells: list[Cell],
    said: Said,
    reference: Said,
    wanted: dict[str, dict[str, Any]],
    units: dict[str, dict[str, tuple[int, int]]],
    since: float,
) -> None:
    """Fill in what only the end of the night shows."""
    got, after, runs = result(made.home), store(made.home), made.runs(since)
    for cell in cells:
        flow = "evaluate" if cell.stage == CHAMPION else cell.stage
        own = [run["state_type"] for run in runs if run["flow"] in (flow, "nightly")]
        cell.states = own + made.unfinished()
        a, b = wanted[cell.stage], got[cell.stage]
        cell.differs = sorted(key for key in a.keys() | b.keys() if a.get(key) != b.get(key))
        before = units.get(cell.stage, {})
        cell.redone = [name for name, what in before.items() if after.get(name) != what]
        cell.redone += [
            f"stage {s} ran {n} times to its end" for s in STAGES if (n := said.done(s)) != reference.done(s)
        ]
        cell.seconds = round(reference.seconds(cell.stage), 1)
        cell.lost_s = round(said.seconds(cell.stage) - reference.seconds(cell.stage), 1)


HEAD = (
    "| stage | killed | after | commands | result | done twice | left over | runs in Prefect | lost (s) | |\n"
    "|---|---|---|---:|---|---|---|---|---:|---|"
)


def line(cell: Cell) -> str:
    if not cell.killed:
        return f"| {cell.stage} | {cell.victim} | – | | | | | | | had ended before |"
    states = ", ".join(f"{n} {s.lower()}" for s in sorted(set(cell.states)) if (n := cell.states.count(s)))
    marks = [f"{len(x)}: {x[0]}" if x else good for x, good in (
        (cell.differs, "equal"), (cell.redone, "nothing"), (cell.strays, "nothing"))]  # fmt: skip
    said = cell.killed.partition(": ")[2][:40].replace("|", "/")
    return (
        f"| {cell.stage} | {cell.victim} | {said} | {cell.commands} | {' | '.join(marks)} | {states} "
        f"| {cell.lost_s} of {cell.seconds} | {'ok' if cell.ok else 'NOT OK'} |"
    )


def undisturbed(made: Lab) -> tuple[Said, dict[str, dict[str, Any]]]:
    """The first night, which makes a champion; then the reference from the start that all others have too."""
    if made.start("flows.nightly", "--night", FIRST).wait(PATIENCE_S):
        raise RuntimeError(made.log.read_text()[-4000:])
    made.keep()
    made.restore()
    said, night = Said(made.log), made.start(*COMMAND)
    while night.poll() is None:
        said.look()
        time.sleep(0.01)
    said.look()
    if night.returncode:
        raise RuntimeError(made.log.read_text()[-4000:])
    return said, result(made.home)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="kept: the project and the logs of its nights")
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--table", type=Path, default=ROOT / "docs/results/kills.md")
    asked = parser.parse_args()
    folder: Path = asked.folder.resolve()
    cells: list[Cell] = []
    with lab(folder) as made:
        began = time.monotonic()
        reference, wanted = undisturbed(made)
        times = {stage: round(reference.seconds(stage), 1) for stage in STAGES}
        print(f"undisturbed, both nights: {time.monotonic() - began:.0f} s; {times}", flush=True)
        for victim in asked.victims.split(","):
            began = time.monotonic()
            cells += (new := disturbed(made, victim, reference, wanted))
            made.log.rename(folder / f"night-{victim}.log")
            made.log.touch()
            print(f"{victim}: {time.monotonic() - began:.0f} s\n" + "\n".join(map(line, new)), flush=True)
            record = {**where(), "undisturbed_s": times, "cells": [{**asdict(c), "ok": c.ok} for c in cells]}
            (folder / "kills.json").write_text(json.dumps(record, indent=1) + "\n")
    good, all_ = sum(c.ok for c in cells), sum(bool(c.killed) for c in cells)
    print(f"{good} of {all_} kills ok")
    return 0 if good == all_ else 1


if __name__ == "__main__":
    sys.exit(main())
