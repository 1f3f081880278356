"""RL runs over the same schedule in one picture: what each step's group did, run beside run.

    python -m benchmarks.rl_curves OUT.png "the paper's advantage=FOLDER/data/rl" "floor 1.0=FOLDER/data/rl"

A dot is a group (one step of one prompt), the line a running mean over ``--window`` steps. A group teaches correctness
only where it is mixed: neither all nor none of it resolved.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import mean
from typing import Any

COLOURS = ["#777777", "#1b6e53", "#b4562b"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("runs", nargs="+", metavar="NAME=FOLDER")
    parser.add_argument("--window", type=int, default=7)
    arguments = parser.parse_args()
    if len(arguments.runs) > len(COLOURS):
        parser.error(f"{len(arguments.runs)} runs; the picture tells {len(COLOURS)} apart")
    runs = {name: groups(Path(folder)) for name, _, folder in (run.partition("=") for run in arguments.runs)}
    for name, found in runs.items():
        mixed = sum(0 < group["correct"] < 1 for group in found)
        print(f"{name}: {mixed} of {len(found)} groups mixed, resolved {mean(g['correct'] for g in found):.0%}")
    save(runs, arguments.window, arguments.out)


def groups(folder: Path) -> list[dict[str, float]]:
    """One entry a group of rewards.jsonl: means over the rollouts that infrastructure did not mask."""
    by_group: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for line in (folder / "rewards.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not row["masked"]:
            by_group.setdefault((row["step"], row["instance_id"]), []).append(row)
    turns = {path.stem: len(json.loads(path.read_text())["turns"]) for path in (folder / "trajectories").glob("*.json")}
    return [
        {
            "step": step + 1,
            "correct": mean(row["correct"] for row in rows),
            "first_warrant": mean([row["calls"][0]["warrant"] for row in rows if row["calls"]] or [0.0]),
            "loop": mean(row["loop"] for row in rows),
            "follow": mean(row["follow"] for row in rows),
            "turns": mean(turns[row["trajectory_id"]] for row in rows),
        }
        for (step, _), rows in sorted(by_group.items())
    ]


PANELS = {
    "correct": "share of the group resolved",
    "first_warrant": "warrant of the first question",
    "loop": "loop reward",
    "follow": "follow reward",
    "turns": "steps of a rollout",
}


def save(runs: dict[str, list[dict[str, float]]], window: int, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(PANELS), figsize=(4.2 * len(PANELS), 3.6))
    for axis, (key, title) in zip(axes, PANELS.items(), strict=True):
        for (name, found), colour in zip(runs.items(), COLOURS, strict=False):
            axis.plot(
                [group["step"] for group in found], [group[key] for group in found], ".", color=colour, alpha=0.35
            )
            steps = sorted({group["step"] for group in found})
            near = [[group[key] for group in found if abs(group["step"] - step) <= window // 2] for step in steps]
            axis.plot(steps, [mean(values) for values in near], color=colour, label=name)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("RL step")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
