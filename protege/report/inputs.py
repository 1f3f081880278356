"""Everything the report reads. What is missing is named, never an error."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protege.core.trajectory import Trajectory, load_trajectories
from protege.report.leaks import Leak, leaks
from protege.report.metrics import System, load_systems
from protege.validation.table import is_kept

TERMS = (
    *("total", "correct", "loop", "follow", "expert_calls", "steps", "longest_run", "warrant", "b2b", "sim", "expert"),
    *("g_loop", "g_follow", "no_call"),
)
"""What is plotted over RL's steps, in this order: the reward's terms (reward.py) and the behaviour they are about."""


@dataclass
class Inputs:
    """The pipeline's outputs as far as they exist; ``missing`` says in words what does not, and what makes it."""

    systems: list[System]
    suite: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    synthesis: dict[str, Counter[str]] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    sft_curve: list[tuple[float, float]] = field(default_factory=list)
    rl_terms: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    stage_two: float | None = None
    leaks: list[Leak] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def load_inputs(data_dir: Path | str, leak_chars: int = 20) -> Inputs:
    """Read what the stages left under ``data_dir`` (docs/design/0001-contracts.md)."""
    root = Path(data_dir)
    found = Inputs(systems=load_systems(root / "evaluation"))
    if not found.systems:
        found.missing.append("no evaluation (data/evaluation): run the stage 'evaluate'")
    found.suite = _object(root / "instances" / "suite.json", found, "suite counts", "instances")
    found.validation = _object(root / "validation" / "result.json", found, "validation result", "validate")
    for folder in sorted((root / "trajectories").glob("*/")):
        found.synthesis[folder.name] = Counter(
            "duplicate" if folder.name == "duplicates" else _fate(t) for t in load_trajectories(folder)
        )
    if not found.synthesis:
        found.summary = _object(root / "trajectories" / "summary.json", found, "synthesis counts", "trajectories")
    found.leaks = leaks(found.systems, root, leak_chars)
    found.sft_curve = _sft_curve(root / "models" / "sft" / "curve.json", found)
    found.rl_terms = _rl_terms(root / "rl" / "steps.jsonl", found)
    return found


def _fate(trajectory: Trajectory) -> str:
    """Why a synthesised trajectory was kept or rejected, in a few words."""
    if is_kept(trajectory):
        return "kept"
    if trajectory.failure is not None:
        return f"infrastructure: {trajectory.failure.boundary}"
    if trajectory.exit_status != "submitted":
        return trajectory.exit_status.replace("_", " ")
    if trajectory.verdict is None:
        return "not graded"
    if trajectory.verdict.empty_patch:
        return "empty patch"
    return "tests fail" if trajectory.verdict.applied else "patch does not apply"


def _read(path: Path, found: Inputs, what: str, stage: str) -> Any:
    if not path.is_file():
        found.missing.append(f"no {what} ({path.name}): run the stage '{stage}'")
        return None
    try:
        text = path.read_text(encoding="utf-8")
        return (
            [json.loads(line) for line in text.splitlines() if line.strip()]
            if path.suffix == ".jsonl"
            else json.loads(text)
        )
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        found.missing.append(f"unreadable {what} ({path.name}: {error}): run the stage '{stage}' again")
        return None


def _object(path: Path, found: Inputs, what: str, stage: str) -> dict[str, Any]:
    value = _read(path, found, what, stage)
    return value if isinstance(value, dict) else {}


def _sft_curve(path: Path, found: Inputs) -> list[tuple[float, float]]:
    rows = _read(path, found, "learning curve", "sft") or []
    return [(float(r["step"]), float(r["loss"])) for r in rows if _number(r.get("step")) and _number(r.get("loss"))]


def _rl_terms(path: Path, found: Inputs) -> dict[str, list[tuple[float, float]]]:
    rows = _read(path, found, "reinforcement-learning steps", "rl") or []
    terms: dict[str, list[tuple[float, float]]] = {}
    for number, row in enumerate(rows):
        step = float(row["step"]) if _number(row.get("step")) else float(number)
        values = _terms(row)
        if row.get("stage") == 2 and found.stage_two is None:
            found.stage_two = step
        for term in TERMS:
            if term in values:
                terms.setdefault(term, []).append((step, values[term]))
    return terms


def _terms(row: dict[str, Any]) -> dict[str, float]:
    """The mean of every reward term of one step, as train/rollouts.py logs them; "total" is ``reward_mean``."""
    terms = row.get("terms")
    values = {
        name: float(value) for name, value in (terms if isinstance(terms, dict) else {}).items() if _number(value)
    }
    if _number(row.get("reward_mean")):
        values["total"] = float(row["reward_mean"])
    return values


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
