"""The measurements but for trajectories. Each returns plain data (seconds unless the name says otherwise) and prints its progress."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.lab import PARAMS, Lab, percentile, say, short, summary
from benchmarks.peers import (
    MINI,
    POOL,
    REX,
    REX_EXECUTE,
    Box,
    MiniSweAgent,
    Ours,
    SweRex,
    SweRexExecute,
    docker_provider,
    installed,
    openers,
)

BLOB = "yes \"$(printf '%099d' 0)\" | head -n 1000 > /tmp/blob"  # 1,000 lines of 100 bytes
IN_A_ROW = "true, ten in a row"
ACTIONS = {"true": ("true", 0), IN_A_ROW: ("true", 0), "100 KB": ("cat /tmp/blob", 99_000)}


def overhead(lab: Lab, repeats: int) -> dict[str, Any]:
    """Wall time of one action in an open sandbox: ``{action: {peer: summary}}``; the peers take turns."""
    with contextlib.ExitStack() as stack:
        boxes: dict[str, Box] = {}
        missing: dict[str, str] = {}
        for name, opener in openers(lab).items():
            try:
                box = opener()
            except Exception as error:
                missing[name] = short(error)
                say(f"overhead: {name} could not be opened: {missing[name]}")
                continue
            stack.callback(box.close)
            boxes[name] = box
            if isinstance(box, SweRex):
                boxes[REX_EXECUTE] = SweRexExecute(box)
            box.run(BLOB)
        result: dict[str, Any] = {"missing": missing, "actions": {}}
        for action, (command, least) in ACTIONS.items():
            # one at a time the machine has gone to sleep before each action; in a row it is awake
            count, row = {"true": (repeats, 1), IN_A_ROW: (max(2, repeats // 10), 10)}.get(
                action, (max(5, repeats // 3), 1)
            )
            say(f"overhead: {action}, {count} rounds of {len(boxes)} peers")
            times: dict[str, list[float]] = defaultdict(list)
            failures: dict[str, int] = defaultdict(int)
            for round_ in range(-2, count):  # two rounds to warm up
                for name in (name for name in turns(list(boxes), round_) for _ in range(row)):
                    started = time.perf_counter()
                    code, output = boxes[name].run(command)
                    took = time.perf_counter() - started
                    if round_ < 0:
                        continue
                    times[name].append(took)
                    failures[name] += code != 0 or len(output) < least
            result["actions"][action] = {name: {**summary(times[name]), "failures": failures[name]} for name in boxes}
    lab.settle()
    return result


def ready(lab: Lab, repeats: int) -> dict[str, Any]:
    """From asking for a sandbox until its first command has answered: ``{way: summary}``; the ways take turns."""
    provider = docker_provider()
    starts: dict[str, Callable[[], Box | None]] = {
        "ours, cold": lambda: Ours(provider, lab),
        "docker run --rm --network none IMAGE true": lambda: _docker_run(lab, ["--network", "none"]),
    }
    missing: dict[str, str] = {}
    if lab.bridge:
        starts["docker run --rm IMAGE true"] = lambda: _docker_run(lab, [])
    else:
        missing["docker run --rm IMAGE true"] = "this engine has no bridge network"
    if installed("minisweagent"):
        starts[MINI] = lambda: MiniSweAgent(lab)
    with contextlib.ExitStack() as stack:
        try:
            from protege.sandbox.pool import WarmPool

            pool = stack.enter_context(WarmPool(provider, PARAMS))
            pool.plan([lab.tiny.instance] * (repeats + 4))
            starts[POOL] = lambda: Ours(pool, lab)
        except ImportError as error:
            missing[POOL] = f"{error}"
        times: dict[str, list[float]] = defaultdict(list)
        say(f"ready: {repeats} rounds of {len(starts)} ways" + (f"; missing: {missing}" if missing else ""))
        for round_ in range(-1, repeats):
            for name in turns(list(starts), round_):
                took = _until_ready(starts[name])
                if round_ >= 0:
                    times[name].append(took)
                # neither the pool's refill nor a peer's removal in the background belongs to the next one's time
                time.sleep(1.0 if name in (MINI, POOL) else 0.1)
    result = {name: summary(times[name]) for name in starts}
    if installed("swerex"):
        few = max(2, min(5, repeats // 5))
        say(f"ready: SWE-ReX, {few} times")
        lab.with_swerex()
        try:
            result[REX] = summary([_until_ready(lambda: SweRex(lab)) for _ in range(few)])
        except Exception as error:
            missing[REX] = short(error)
            say(f"ready: SWE-ReX could not be started: {short(error)}")
    lab.settle()
    return {"ways": result, "missing": missing}


def _docker_run(lab: Lab, network: list[str]) -> None:
    command = ["docker", "run", "--rm", *network, *lab.labels, lab.image, "true"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _until_ready(start: Callable[[], Box | None]) -> float:
    started = time.perf_counter()
    box = start()
    if box is not None:
        code, _ = box.run("true")
        assert code == 0, f"the first command exited {code}"
    took = time.perf_counter() - started
    if box is not None:
        box.close()
    return took


def grade_one(lab: Lab, repeats: int, rows: list[tuple[Any, Any]]) -> list[dict[str, Any]]:
    """Grading the gold patch of each ``(instance, provider)``: wall time beside the tests' own, as the harness logs it."""
    from protege.grading.grade import grade

    found = []
    for instance, provider in [(lab.tiny.instance, docker_provider()), *rows]:
        walls, tests, resolved = [], [], 0
        say(f"grade: {instance.instance_id}, {repeats} times")
        for number in range(repeats + 1):
            logs = lab.folder / "grade" / f"{instance.instance_id}-{number}"
            started = time.perf_counter()
            verdict = grade(instance, instance.patch, provider, log_dir=logs)
            wall = time.perf_counter() - started
            own = _test_seconds(logs)
            if number == 0 or own is None:  # the first imports the harness
                continue
            walls.append(wall)
            tests.append(own)
            resolved += verdict.resolved
        over = [wall - 1.1 * own for wall, own in zip(walls, tests, strict=True)]
        found.append(
            {
                "instance": instance.instance_id,
                "n": len(walls),
                "resolved": resolved,
                "wall": percentile(walls, 0.5),
                "tests": percentile(tests, 0.5),
                "over": percentile(over, 0.5),
                "over_max": max(over, default=float("nan")),
            }
        )
    return found


def _test_seconds(logs: Path) -> float | None:
    for path in logs.rglob("run_instance.log"):
        seen = re.search(r"Test runtime: ([0-9_,]*[0-9.]+) seconds", path.read_text(errors="replace"))
        if seen:
            return float(seen.group(1).replace("_", "").replace(",", ""))
    return None


def disk(client: Any) -> dict[str, Any]:
    """Bytes that each desk instance's image on this machine adds to its package's image, from the engine's sizes."""
    added: dict[str, list[int]] = defaultdict(list)
    once: dict[str, int] = {}
    for item in client.api.images(filters={"label": "protege.instance"}):
        detail = client.api.inspect_image(item["Id"])
        labels = detail["Config"]["Labels"] or {}
        tags = [tag for tag in detail["RepoTags"] or () if tag.startswith("protege-desk-")]
        if not tags or labels["protege.instance"].endswith(".pristine") or not detail.get("Parent"):
            continue
        parent = client.api.inspect_image(detail["Parent"])
        added[labels.get("protege.package", "?")].append(detail["Size"] - parent["Size"])
        below = 0
        for image in reversed(_ancestors(client, parent)):  # base, site, package: each is stored once
            for tag in image["RepoTags"] or ():
                once[tag] = image["Size"] - below
                below = image["Size"]
    every = [size for sizes in added.values() for size in sizes]
    return {
        "n": len(every),
        "median": percentile(every, 0.5),
        "max": max(every, default=0),
        "packages": {
            name: {"n": len(sizes), "median": percentile(sizes, 0.5), "max": max(sizes)}
            for name, sizes in sorted(added.items())
        },
        "once": once,
    }


def _ancestors(client: Any, image: dict[str, Any]) -> list[dict[str, Any]]:
    found = [image]
    while found[-1].get("Parent"):
        found.append(client.api.inspect_image(found[-1]["Parent"]))
    return found


def turns(names: list[str], round_: int) -> list[str]:
    """Another one begins each round, so that none always follows the same neighbour."""
    start = round_ % len(names)
    return names[start:] + names[:start]
