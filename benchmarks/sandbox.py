"""``python -m benchmarks.sandbox``: the sandbox against its peers, all in one run.

Needs Docker and the ``bench`` extra. Removes whatever it made, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure, plot, trajectory
from benchmarks.lab import PARAMS, Lab, machine, open_lab, say, short, table
from benchmarks.peers import MINI, OURS
from protege.files import write_json
from protege.sandbox import images

PARTS = ("overhead", "ready", "grade", "trajectory", "disk")


def main() -> None:
    options = _parser().parse_args()
    logging.basicConfig(level=logging.WARNING)
    parts = tuple(options.only.split(",")) if options.only else PARTS
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"--only knows {', '.join(PARTS)}; not {', '.join(sorted(unknown))}")
    repeats = options.repeats or (15 if options.quick else 150)
    rounds = {1: 2, 8: 1} if options.quick else {1: 5, 8: 2, 32: 1}
    results: dict[str, Any] = {}
    stopped = False
    started = time.monotonic()
    try:
        with open_lab() as lab:
            results["machine"] = {**machine(lab.client), "bridge": lab.bridge, "load": {}, "failed": {}}
            measures: dict[str, Callable[[], Any]] = {
                "overhead": lambda: measure.overhead(lab, repeats),
                "ready": lambda: measure.ready(lab, max(4, repeats // 6)),
                "grade": lambda: measure.grade_one(
                    lab, 2 if options.quick else 5, _desk(lab, options.instances, 1 if options.quick else 4)
                ),
                "trajectory": lambda: trajectory.trajectories(lab, rounds),
                "disk": lambda: measure.disk(lab.client),
            }
            for part in (part for part in PARTS if part in parts):
                results["machine"]["load"][part] = round(os.getloadavg()[0], 2)
                try:
                    results[part] = measures[part]()
                except Exception as error:  # the other parts are worth having
                    say(f"{part} failed: {short(error)}")
                    results["machine"]["failed"][part] = short(error)
    except KeyboardInterrupt as signalled:
        stopped = True
        say(f"interrupted ({signalled or 'Ctrl-C'}); what was measured so far follows")
    if "machine" not in results:
        raise SystemExit(130)
    results["machine"]["load_after"] = [round(value, 2) for value in os.getloadavg()]
    results["machine"]["took_s"] = round(time.monotonic() - started)
    print(report(results))
    if options.json:
        write_json(options.json, results)
    if options.plot:
        plot.save(results, options.plot)
    if stopped or results["machine"]["failed"]:
        raise SystemExit(130 if stopped else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sandbox", description=__doc__)
    parser.add_argument(
        "--repeats", type=int, help="rounds of the shortest action (default 150, quick 15); the rest follows"
    )
    parser.add_argument("--only", default="", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--quick", action="store_true", help="about a minute instead of twelve")
    parser.add_argument(
        "--instances", type=Path, default=Path("data/instances"), help="folder of the desk suite to grade"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    parser.add_argument("--plot", type=Path, help="write a picture (PNG) here")
    return parser


def _desk(lab: Lab, folder: Path, count: int) -> list[tuple[Any, Any]]:
    """A few desk instances, of as many packages as there are."""
    from protege.core.instance import Instance
    from protege.datasets.load import load_instances
    from protege.sandbox.docker import DockerProvider

    found: dict[str, list[Instance]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        for instance in load_instances(str(path)):
            found.setdefault(str((instance.model_extra or {}).get("package")), []).append(instance)
    if not found:
        say(f"grade: no desk instances in {folder}: only the tiny one is graded")
        return []
    # one of each package in turn; only those whose image is here, for a measurement should leave no images behind
    turns = [one for group in itertools.zip_longest(*found.values()) for one in group if one]
    usable = [one for one in turns if images.has_image(lab.client, one.image)][:count]
    if len(usable) < count:
        say(f"grade: the images of only {len(usable)} instances of {folder} are here; the others are left out")
    provider = DockerProvider(PARAMS, folder / "testbeds")
    return [(instance, provider) for instance in usable]


def report(results: dict[str, Any]) -> str:
    """All tables, in markdown."""
    rows: list[tuple[Any, ...]]
    head: tuple[str, ...]
    facts = results["machine"]
    lines = [
        f"# Sandbox benchmark, {facts['started']}, commit {facts['commit']}",
        "",
        f"{facts['cpu']}, {facts['cores']} cores, {facts['memory_gib']} GiB; kernel {facts['kernel']}; Docker {facts['docker']}; "
        f"Python {facts['python']}; " + ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
        f"Load average before {facts['load_before']}, after {facts['load_after']}; {facts['other_containers']} other containers; "
        f"{facts['took_s']} s in all."
        + (" SWE-ReX used the host's network: this engine has no bridge." if not facts.get("bridge", True) else ""),
    ]
    loads = ", ".join(f"{part} {load}" for part, load in facts["load"].items())
    lines.append(f"Load at the start of each part: {loads}.")
    lines += [f"\n**{part} failed**: {why}" for part, why in facts["failed"].items()]
    if "overhead" in results:
        for action, peers in results["overhead"]["actions"].items():
            ours = peers.get(OURS, {}).get("p50", float("nan"))
            rows = [
                (name, item["n"], 1000 * item["p50"], 1000 * item["p99"], item["p50"] / ours, item["failures"])
                for name, item in peers.items()
            ]
            lines += [
                "",
                f"## Overhead of one action: {action}",
                "",
                table(("peer", "n", "p50 ms", "p99 ms", "x ours", "failures"), rows),
            ]
        lines += [f"\n{name}: not measured ({why})" for name, why in results["overhead"]["missing"].items()]
    if "ready" in results:
        ways = results["ready"]["ways"]
        run = ways["docker run --rm --network none IMAGE true"]["p50"]
        rows = [
            (name, item["n"], 1000 * item["p50"], 1000 * item["p99"], item["p50"] / run) for name, item in ways.items()
        ]
        head = ("way", "n", "p50 ms", "p99 ms", "x docker run, no network")
        lines += ["", "## Ready: asked for, until the first command has answered", "", table(head, rows)]
        lines += [f"\n{name}: not measured ({why})" for name, why in results["ready"]["missing"].items()]
    if "grade" in results:
        rows = [
            (
                row["instance"],
                row["n"],
                row["resolved"],
                row["wall"],
                row["tests"],
                row["wall"] / row["tests"],
                row["over"],
                row["over_max"],
            )
            for row in results["grade"]
        ]
        head = ("instance", "n", "resolved", "wall s", "tests s", "wall / tests", "wall - 1.1 x tests s", "its max s")
        lines += ["", "## Grading the gold patch", "", table(head, rows)]
    if "trajectory" in results:
        peer = {row["at_once"]: row["wall"] for row in results["trajectory"] if row["peer"] == MINI}
        rows = [
            (
                f"{row['at_once']} at once, {row['peer']}", row["rounds"], row["wall"], row["each_p50"], row["each_p99"],
                peer.get(row["at_once"], float("nan")) / row["wall"], row["failures"],
            )
            for row in results["trajectory"]
        ]  # fmt: skip
        head = ("50 actions", "rounds", "wall s", "each p50 s", "each p99 s", "x faster than mini", "failures")
        lines += [
            "",
            "## Trajectories end to end (mini-swe-agent's removal in the background is not counted)",
            "",
            table(head, rows),
        ]
        lines += [
            f"\n{row['peer']}, {row['at_once']} at once, first failure: {row['first_failure']}"
            for row in results["trajectory"]
            if row["failures"]
        ]
    if "disk" in results:
        facts = results["disk"]
        rows = [
            (name, item["n"], item["median"] / 1000, item["max"] / 1000) for name, item in facts["packages"].items()
        ]
        rows.append(("all", facts["n"], facts["median"] / 1000, facts["max"] / 1000))
        lines += ["", "## Disk: each further desk instance", "", table(("package", "n", "median KB", "max KB"), rows)]
        if not facts["n"]:
            lines.append("\nNo desk images are on this machine: run the instances stage first.")
        elif facts["once"]:
            lines.append(
                "\nStored once: "
                + ", ".join(f"{name} {size / 1e6:.3g} MB" for name, size in sorted(facts["once"].items()))
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
