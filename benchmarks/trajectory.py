"""Whole trajectories, alone and many at once: where the overheads of start, actions and removal add up."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from benchmarks.lab import Lab, percentile, say, short
from benchmarks.measure import turns
from benchmarks.peers import MINI, OURS, Box, MiniSweAgent, Ours, docker_provider, installed


def _trajectory_actions() -> list[tuple[str, int]]:
    """Fifty commands with their exit status: look around, try things, edit, test, look at the diff."""
    look = [
        "ls -la", "git log --oneline | head -5", "git status --short", "cat calc.py", "cat tests/test_calc.py",
        "find . -name '*.py' -not -path './.git/*'", "grep -rn 'def ' --include=*.py .", "wc -l calc.py",
        "python3 -c 'import calc; print(calc.add(2, 3))'", "head -3 calc.py", "sed -n 1,5p calc.py", "pwd; id -u; env | wc -l",
    ]  # fmt: skip
    edit = [
        "sed -i 's/return a - b/return a + b/' calc.py", "git diff --stat", "python3 -c 'import calc; assert calc.add(2, 3) == 5'",
        "printf 'def triple(a):\\n    return 3 * a\\n' >> calc.py", "python3 -m py_compile calc.py", "tail -4 calc.py",
        "grep -c return calc.py", "mkdir -p notes && echo tried > notes/log.txt", "cat notes/log.txt", "rm -r notes", "cp calc.py /tmp/calc.bak",
        "diff calc.py /tmp/calc.bak", "ls tests",
    ]  # fmt: skip
    again = [
        "git diff", "cat calc.py | head -20", "python3 -c 'import calc; print(calc.triple(2))'", "grep -n triple calc.py",
        "sed -i '/def triple/,$d' calc.py", "cat calc.py", "git status --short", "awk 'NR<4' calc.py", "sort calc.py | uniq | wc -l",
        "echo $((6 * 7))", "for n in 1 2 3; do echo $n; done", "stat -c %a calc.py", "true",
    ]  # fmt: skip
    tests = "python3 -m pytest -q -p no:cacheprovider tests/test_calc.py"
    actions = [(command, 0) for command in look] + [("grep -n nowhere calc.py", 1), (tests, 0)]
    actions += [(command, 0) for command in edit] + [(tests, 0)]
    actions += [(command, 0) for command in again]
    rest = [
        "ls",
        "cat run.sh",
        "./run.sh",
        "git rev-parse HEAD",
        "du -sk .",
        "python3 --version",
        "git branch -a",
        "grep -n double calc.py",
    ]
    actions += [(command, 0) for command in rest]
    return [*actions, ("git diff", 0)]


TRAJECTORY = _trajectory_actions()


def trajectories(lab: Lab, rounds: dict[int, int]) -> list[dict[str, Any]]:
    """Whole trajectories (open, 50 actions, close), ``n`` at once, ``rounds[n]`` times; ours and the peer take turns."""
    assert len(TRAJECTORY) == 50, len(TRAJECTORY)
    provider = docker_provider()
    ways: dict[str, Callable[[], Box]] = {OURS: lambda: Ours(provider, lab)}
    if installed("minisweagent"):
        ways[MINI] = lambda: MiniSweAgent(lab)
    found = []
    for at_once, count in rounds.items():
        walls: dict[str, list[float]] = defaultdict(list)
        each: dict[str, list[float]] = defaultdict(list)
        wrong: dict[str, list[str]] = defaultdict(list)
        for round_ in range(count):
            for name in turns(list(ways), round_):
                say(f"trajectory: {at_once} at once, round {round_ + 1} of {count}, {name}")
                pool = ThreadPoolExecutor(at_once)
                started = time.perf_counter()
                try:
                    futures = [pool.submit(_one_trajectory, lab, ways[name]) for _ in range(at_once)]
                    outcomes = [future.result() for future in futures]
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
                walls[name].append(time.perf_counter() - started)
                pool.shutdown()
                each[name] += [took for took, _ in outcomes]
                wrong[name] += [problem for _, problem in outcomes if problem]
                lab.settle()
        for name in ways:
            found.append(
                {
                    "at_once": at_once,
                    "peer": name,
                    "rounds": count,
                    "wall": percentile(walls[name], 0.5),
                    "each_p50": percentile(each[name], 0.5),
                    "each_p99": percentile(each[name], 0.99),
                    "failures": len(wrong[name]),
                    "first_failure": wrong[name][0] if wrong[name] else "",
                }
            )
    return found


def _one_trajectory(lab: Lab, opener: Callable[[], Box]) -> tuple[float, str]:
    """Seconds, and what went wrong first ("" if nothing did)."""
    started = time.perf_counter()
    problem, output = "", ""
    box: Box | None = None
    try:
        box = None if lab.stopped.is_set() else opener()
        for command, wanted in TRAJECTORY:
            if box is None or lab.stopped.is_set():
                return time.perf_counter() - started, "interrupted"
            code, output = box.run(command)
            if code != wanted and not problem:
                problem = f"{command!r} exited {code}, not {wanted}: {output[-200:]}"
        if not problem and "+    return a + b" not in output:
            problem = f"the diff lacks the edit: {output[-200:]}"
    except Exception as error:
        problem = short(error)
    finally:
        if box is not None:
            box.close()
    return time.perf_counter() - started, problem
