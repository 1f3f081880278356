"""The commands that reproduce one instance locally, as far as there are any. None is shown that cannot be run."""

from __future__ import annotations

import shlex
from pathlib import Path

from pydantic import BaseModel

from protege.core.trajectory import Trajectory

_STAGES = {"evaluation": "evaluate", "trajectories": "trajectories"}


class Command(BaseModel):
    """A shell command for the project's folder, and what it does."""

    does: str
    command: str


def commands(trajectory: Trajectory, path: Path | None, gold: bool) -> list[Command]:
    """What can be run for this trajectory. ``gold``: whether the instance's row, with its gold patch, is at hand."""
    if path is None:
        return []
    where = shlex.quote(str(path))
    found = []
    if gold:
        found.append(
            Command(
                does="Replay it: the recorded turns in a fresh sandbox, without a model or an expert; then grade the patch"
                if trajectory.turns
                else "See whether its sandbox works now: there is no turn to replay, so the gold patch is graded in it",
                command=f"protege inspect {where} --replay",
            )
        )
    if trajectory.failure is None and trajectory.exit_status != "infrastructure" and trajectory.verdict is not None:
        found.append(Command(does="Score it again under the params of now", command=f"protege score {where}"))
    own = "champion-evaluation" not in path.parts  # the night makes that one, no stage
    stage = next((_STAGES[part] for part in path.parts if part in _STAGES), None) if own else None
    if stage and trajectory.failure is not None:
        found.append(
            Command(
                does=f"Roll out again what infrastructure kept from ending, this one among it ({stage}: finished units are kept)",
                command=f"dvc repro --force --single-item {stage}",
            )
        )
    return found
