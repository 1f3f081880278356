"""The leak audit: how much of the gold patch the expert's replies gave away, verbatim, wherever it was asked.

Every reply's longest overlap with a changed gold line is in its trajectory (``ExpertCall.overlap_chars``, audit.py);
here it is summed up for each evaluated system, for the synthesised trajectories and for reinforcement learning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from protege.core.trajectory import Trajectory
from protege.report.metrics import System


@dataclass(frozen=True)
class Leak:
    """Overlaps of all answered calls of one origin, in characters. ``worst`` is the trajectory of the longest one."""

    label: str
    calls: int
    median: float
    longest: int
    above: int
    worst: str

    @property
    def share_above(self) -> float:
        return self.above / self.calls


def leaks(systems: Sequence[System], data_dir: Path | str, limit: int) -> list[Leak]:
    """One record for each origin with an answered call; ``above`` counts the replies beyond ``limit`` characters."""
    root = Path(data_dir)
    origins: list[tuple[str, Iterable[tuple[str, int]]]] = [(s.label, _overlaps(s.trajectories)) for s in systems]
    for folder in sorted((root / "trajectories").glob("*/")):
        origins.append((f"synthesised: {folder.name}", _on_disk(folder)))
    origins.append(("reinforcement learning", _on_disk(root / "rl" / "trajectories")))
    found = []
    for label, overlaps in origins:
        rows = list(overlaps)
        if rows:
            values = [chars for _, chars in rows]
            worst = max(rows, key=lambda row: row[1])
            above = sum(chars > limit for chars in values)
            found.append(Leak(label, len(rows), median(values), worst[1], above, worst[0]))
    return found


def _overlaps(trajectories: Iterable[Trajectory]) -> list[tuple[str, int]]:
    return [(t.trajectory_id, c.overlap_chars) for t in trajectories for c in t.expert_calls if c.answered]


def _on_disk(folder: Path) -> list[tuple[str, int]]:
    """Only what is needed of the files: a run of reinforcement learning leaves thousands, token records and all."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        calls = [call for call in record["expert_calls"] if call["answered"]]
        rows += [(record["trajectory_id"], int(call["overlap_chars"])) for call in calls]
    return rows


NOTE = (
    "Longest run of characters that an expert's reply shares with a changed line of the gold patch, white space "
    "normalised. A name that the advice must use is an overlap too: read the longest and the share, not the median alone."
)
