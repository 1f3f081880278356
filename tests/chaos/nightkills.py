"""SIGKILL in the middle of every stage of a night, to each process that a night consists of, and what is found after.

The night is the real one at the scale of profiles/tiny.yaml (tests/chaos/night_lab.py), with a champion to compare with.
An undisturbed night is the reference. The disturbed one begins from the same files; in the middle of each stage each
process is killed in turn, once: the stage's flow, the night itself (the same command is then given again at once),
the Docker engine (a private one) and the model server. Writes FOLDER/kills.json, prints the table of docs/results/kills.md.

    python -m tests.chaos.nightkills FOLDER [--victims flow,nightly,dockerd,vllm]
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
from pathlib import Path

from tests.chaos.night_cells import HEAD, NIGHT, Cell, Result, line, result, store
from tests.chaos.night_lab import CHAMPION, STAGES, Lab, Said, lab, where

FIRST = "2026-01-01"
COMMAND = ("flows.nightly", "--night", NIGHT)
VICTIMS: dict[str, tuple[str, ...]] = {
    "flow": STAGES,
    "nightly": STAGES,
    "dockerd": ("instances", "trajectories", "rl", "evaluate"),
    "vllm": ("rl", "evaluate"),
}
"""Victim -> the stages that have it, in the order in which they are killed in a stage."""
PATIENCE_S = 3000.0
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
        "nightly": lambda: night.pid,
        "vllm": made.model_server,
    }
    if (pid := find[victim]()) is None:
        return False
    os.kill(pid, signal.SIGKILL)
    return True


def due(said: Said, reference: Said, victim: str, stage: str) -> bool:
    """Half of what the undisturbed stage says has been said since its last start; a model server has served a rollout."""
    lines = said.since_start(stage)
    if victim == "vllm":
        return any(re.search(r": \d+/\d+ ", line) and "cached" not in line for line in lines)
    return len(lines) >= max(1, len(reference.lines[stage]) // 2)


def disturbed(made: Lab, plan: list[tuple[str, str]], reference: Said, wanted: Result) -> list[Cell]:
    """A night in which each (stage, victim) of ``plan`` is killed in turn."""
    made.restore()
    since, said, todo = time.time() - 1, Said(made.log), list(plan)
    cells: list[Cell] = []
    looked: set[str] = set()
    for _ in range(len(plan) + 2):
        night, deadline = made.start(*COMMAND), time.monotonic() + PATIENCE_S
        while night.poll() is None:
            said.look()
            stage, victim = todo[0] if todo else ("", "")
            last = cells[-1] if cells else None
            if last and last.back_s is None and (said.since_start(last.stage, last.at) or said.over(last.stage)):
                last.back_s = round(time.monotonic() - last.at, 1)
            for cell in (c for c in cells if said.over(c.stage) and c.stage not in looked):
                cell.strays += made.strays(night.pid)
                looked.add(cell.stage)
            if stage and said.over(stage):
                cells.append(Cell(victim, stage, back_s=0.0))  # over before the victim was found
                todo.pop(0)
            elif stage and (last is None or last.back_s is not None) and due(said, reference, victim, stage):
                units, how_far = store(made.home), said.since_start(stage)[-1]
                if kill(made, victim, stage, night):
                    within = 0.0 if victim in ("vllm", "dockerd") else None  # the stage itself goes on
                    cells.append(Cell(victim, stage, how_far, at=time.monotonic(), back_s=within, units=units))
                    todo.pop(0)
                    print(f"{time.strftime('%H:%M:%S')} {stage}: {victim} killed at `{how_far}`", flush=True)
            if time.monotonic() > deadline:
                raise RuntimeError(f"the night hangs:\n{made.log.read_text()[-4000:]}")
            time.sleep(0.01)
        said.look()
        if night.returncode == 0:
            break
        if cells:
            cells[-1].commands += 1
    else:
        raise RuntimeError(f"the night does not end well:\n{made.log.read_text()[-4000:]}")
    time.sleep(5)  # the guard of a model server ends it within 3 s
    finish(made, cells, said, reference, wanted, since)
    return cells


def finish(made: Lab, cells: list[Cell], said: Said, reference: Said, wanted: Result, since: float) -> None:
    """Fill in what only the end of the night shows."""
    runs = made.runs(since)
    cells[-1].strays += made.strays(None) + made.unfinished()
    for cell in cells:
        flow = "evaluate" if cell.stage == CHAMPION else cell.stage
        cell.states = [run["state_type"] for run in runs if run["flow"] in (flow, "nightly")]
        cell.compare(wanted, made.home)
        # a stage that was over and had no kill of its own left, and yet ran again
        kills = {s: sum(c.stage == s and bool(c.killed) for c in cells) for s in STAGES}
        before = STAGES[: STAGES.index(cell.stage) + 1]
        cell.redone += [f"stage {s}" for s in before if said.done(s) > 1 + kills[s]]
        cell.seconds = reference.took(cell.stage)
        cell.lost_s = round(said.seconds(cell.stage) - cell.seconds)


def undisturbed(made: Lab, done: Path | None) -> tuple[Said, Result]:
    """The first night, which makes a champion; then the reference, from the start that the disturbed night has too.

    Both are taken from folder ``done`` of an earlier run if that is given.
    """
    if done:
        for name in ("kept", "undisturbed", "undisturbed.log"):
            subprocess.run(["cp", "-a", str(done / name), str(made.folder / name)], check=True)
    else:
        if made.start("flows.nightly", "--night", FIRST).wait(PATIENCE_S):
            raise RuntimeError(made.log.read_text()[-4000:])
        with (made.home / "flows/model.py").open("a") as source:
            source.write("# a change, so that this stage has something to do in the next night too\n")
        made.keep("kept")
        made.restore()
        if made.start(*COMMAND).wait(PATIENCE_S):
            raise RuntimeError(made.log.read_text()[-4000:])
        made.keep("undisturbed")
        made.log.rename(made.folder / "undisturbed.log")
    said = Said(made.folder / "undisturbed.log")
    said.look()
    return said, result(made.folder / "undisturbed")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="kept: the project and the logs of its nights")
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--stages", default=",".join(STAGES))
    parser.add_argument("--undisturbed", type=Path, metavar="FOLDER", help="of an earlier run: its undisturbed nights")
    asked = parser.parse_args()
    folder, origin, began = asked.folder.resolve(), where(), time.monotonic()
    plan = [(s, v) for s in asked.stages.split(",") for v in asked.victims.split(",") if s in VICTIMS[v]]
    for sent in (signal.SIGINT, signal.SIGTERM):  # a background job ignores the first; the lab is cleaned up
        signal.signal(sent, signal.default_int_handler)
    with lab(folder) as made:
        reference, wanted = undisturbed(made, asked.undisturbed)
        times = {stage: reference.took(stage) for stage in STAGES}
        print(f"undisturbed after {time.monotonic() - began:.0f} s; stages: {times}\n", flush=True)
        cells = disturbed(made, plan, reference, wanted)
        made.log.rename(folder / "disturbed.log")
    print("\n".join([HEAD, *map(line, cells)]), flush=True)
    record = {**origin, "undisturbed_s": times, "cells": [c.record() for c in cells]}
    (folder / "kills.json").write_text(json.dumps(record, indent=1) + "\n")
    good, all_ = sum(c.ok for c in cells), sum(bool(c.killed) for c in cells)
    print(f"\n{good} of {all_} kills ok, {len(cells) - all_} came too late; {time.monotonic() - began:.0f} s in all")
    return 0 if good == all_ else 1


if __name__ == "__main__":
    sys.exit(main())
