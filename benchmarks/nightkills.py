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
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.night_cells import NIGHT, Cell, Result, line, result, store
from benchmarks.night_lab import CHAMPION, ROOT, STAGES, Lab, Said, lab, where
from benchmarks.workerkills import killed_worker

FIRST = "2026-01-01"
COMMAND = ("flows.nightly", "--night", NIGHT)
WORKER = "worker"
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


def disturbed(made: Lab, victim: str, reference: Said, wanted: Result) -> list[Cell]:
    """A night in which ``victim`` is killed once in every stage that has it."""
    made.restore()
    since, said = time.time() - 1, Said(made.log)
    todo = list(VICTIMS[victim])
    cells: list[Cell] = []
    open_cells: list[Cell] = []

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
            later = STAGES[STAGES.index(stage) + 1 :] if stage else ()
            if stage and (said.done(stage) or any(map(said.began, later))):  # over before the victim was found
                cells.append(Cell(victim, stage))
                todo.pop(0)
            elif stage and due(said, reference, victim, stage):
                units = store(made.home)
                if kill(made, victim, stage, night):
                    cells.append(Cell(victim, stage, said.lines[stage][-1][1], units=units))
                    open_cells.append(cells[-1])
                    todo.pop(0)
            close(night.pid)
            if time.monotonic() > deadline:
                raise RuntimeError(f"{victim}: the night hangs:\n{made.log.read_text()[-4000:]}")
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
    finish(made, cells, said, reference, wanted, since)
    return cells


def finish(made: Lab, cells: list[Cell], said: Said, reference: Said, wanted: Result, since: float) -> None:
    """Fill in what only the end of the night shows."""
    runs = made.runs(since)
    cells[-1].strays += made.unfinished()
    for cell in cells:
        flow = "evaluate" if cell.stage == CHAMPION else cell.stage
        cell.states = [run["state_type"] for run in runs if run["flow"] in (flow, "nightly")]
        cell.compare(wanted, made.home)
        cell.redone += [f"stage {s}" for s in STAGES[: STAGES.index(cell.stage) + 1] if said.done(s) > 1]
        cell.seconds = round(reference.seconds(cell.stage), 1)
        cell.lost_s = round(said.seconds(cell.stage) - reference.seconds(cell.stage), 1)


def undisturbed(made: Lab) -> tuple[Said, Result]:
    """The first night, which makes a champion; then the reference from the start that all others have too."""
    if made.start("flows.nightly", "--night", FIRST).wait(PATIENCE_S):
        raise RuntimeError(made.log.read_text()[-4000:])
    with (made.home / "flows/model.py").open("a") as source:
        source.write("# a change, so that this stage has something to do in the next night too\n")
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
    parser.add_argument("--victims", default=",".join([*VICTIMS, WORKER]))
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
            new: list[Cell] = []
            try:
                new += (
                    killed_worker(made, times, wanted)
                    if victim == WORKER
                    else disturbed(made, victim, reference, wanted)
                )
            except (RuntimeError, OSError) as error:  # the other victims' nights are worth having
                new.append(Cell(victim, "all", "all: a night", strays=[str(error)]))
            cells += new
            made.log.rename(folder / f"night-{victim}.log")
            made.log.touch()
            print(f"{victim}: {time.monotonic() - began:.0f} s\n" + "\n".join(map(line, new)), flush=True)
            record = {**where(), "undisturbed_s": times, "cells": [c.record() for c in cells]}
            (folder / "kills.json").write_text(json.dumps(record, indent=1) + "\n")
    good, all_ = sum(c.ok for c in cells), sum(bool(c.killed) for c in cells)
    print(f"{good} of {all_} kills ok")
    return 0 if good == all_ else 1


if __name__ == "__main__":
    sys.exit(main())
