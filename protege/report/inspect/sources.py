"""Where a view's context comes from: the trajectory's file, the instance's gold patch, the logged reward."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path

from pydantic import ValidationError

from protege.config import RewardParams
from protege.core.instance import Instance
from protege.core.trajectory import Trajectory
from protege.datasets.load import load_instances
from protege.errors import BadInput
from protege.report.inspect.text import visible

SEARCHED = ("evaluation", "champion-evaluation", "rl", "trajectories")
"""Folders of ``data`` in which an id is looked up."""

_HEAD = re.compile(r'\s*\{\s*"trajectory_id":\s*("(?:[^"\\]|\\.)*"),\s*"instance_id":\s*("(?:[^"\\]|\\.)*")')


@dataclass(frozen=True)
class Record:
    """A trajectory and its file."""

    trajectory: Trajectory
    path: Path | None = None


@dataclass
class Logged:
    """Stage and total of rewards that were logged, by the folder that was logged for and the trajectory's id."""

    values: dict[tuple[Path, str], tuple[int, float]] = field(default_factory=dict)
    read: set[Path] = field(default_factory=set)

    def of(self, path: Path, trajectory_id: str) -> tuple[int, float] | None:
        """The logged reward of the trajectory in ``path``: ``rewards.jsonl`` beside its folder, or within it."""
        for folder in (path.parent, path.parent.parent):
            self._load(folder / "rewards.jsonl")
            if (found := self.values.get((folder, trajectory_id))) is not None:
                return found
        return None

    def _load(self, path: Path) -> None:
        if path in self.read:
            return
        self.read.add(path)
        if not path.is_file():
            return
        for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            try:
                line = json.loads(text)
                if not line.get("masked"):
                    self.values[path.parent, line["trajectory_id"]] = (int(line["stage"]), float(line["total"]))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise BadInput(
                    f"{path}, line {number}: not a logged reward ({error}); made by `dvc repro rl`"
                ) from None


@dataclass
class Context:
    """What views are made with, shared by all trajectories of one call.

    ``rows`` are the instances by id; ``params_from`` says in words where ``reward`` was read; ``longer_than`` is the
    run length above which a trajectory counts as a loop; ``problems`` is what could not be read.
    """

    rows: dict[str, Instance] = field(default_factory=dict)
    reward: RewardParams = field(default_factory=RewardParams)
    params_from: str = "the paper's values and our defaults"
    logged: Logged = field(default_factory=Logged)
    longer_than: int = 10
    problems: list[str] = field(default_factory=list)
    _digests: dict[str, str] = field(default_factory=dict)

    def gold(self, trajectory: Trajectory) -> tuple[str | None, str]:
        """The gold patch of the instance as it was rolled out, or None and why it is not at hand."""
        row = self.rows.get(trajectory.instance_id)
        if row is None:
            return None, "no row of this instance is at hand; give --instances FILE"
        known = self._digests.setdefault(row.instance_id, row.digest)
        if trajectory.instance_digest and known != trajectory.instance_digest:
            return None, "the row of this instance at hand has another content than the one that was rolled out"
        return row.patch, ""

    def logged_reward(self, found: Record) -> tuple[int, float] | None:
        """Stage and total as reinforcement learning logged them, or None."""
        if found.path is None:
            return None
        try:
            return self.logged.of(found.path, found.trajectory.trajectory_id)
        except BadInput as error:  # a broken log must not hide the trajectory
            if str(error) not in self.problems:
                self.problems.append(str(error))
            return None


def rows_in(sources: Iterable[Path | str]) -> dict[str, Instance]:
    """Instances by id; of an id that is in several files, the first. Raises BadInput, BadRow."""
    rows: dict[str, Instance] = {}
    for source in sources:
        for instance in load_instances(source):
            rows.setdefault(instance.instance_id, instance)
    return rows


def read(path: Path) -> Record:
    """The trajectory in ``path``.

    Raises:
        BadInput: it cannot be read, or is no trajectory as this version writes them; the message names the first faults.
    """
    try:
        return Record(Trajectory.model_validate_json(path.read_text(encoding="utf-8")), path)
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise BadInput(f"{path} is not a trajectory: it is not UTF-8 text") from None
    except ValidationError as error:
        # a wrong value says more than a missing one
        worst = sorted(error.errors(), key=lambda e: e["type"] == "missing")[:5]
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'the file'}: {e['msg']}" for e in worst)
        raise BadInput(
            f"{path} is not a trajectory: {visible(wrong)}; one that this version has written is needed"
        ) from None


def ids(path: Path) -> tuple[str, str] | None:
    """Trajectory id and instance id from the file's first lines, or None for another kind of file."""
    try:
        with path.open(encoding="utf-8", errors="replace") as handle:
            match = _HEAD.match(handle.read(4000))
        return (json.loads(match[1]), json.loads(match[2])) if match else None
    except (OSError, ValueError):
        return None


def trajectories_in(folder: Path) -> list[Path]:
    """Every trajectory file below ``folder``. Raises BadInput where there is none."""
    found = [path for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".") and ids(path)]
    if not found:
        raise BadInput(
            f"no trajectory in {folder}; data/evaluation, data/rl and data/trajectories hold some after a run"
        )
    return found


def search(wanted: str, data: Path) -> list[Path]:
    """The files under ``data`` whose trajectory id or instance id is ``wanted``.

    Raises:
        BadInput: there is none; the message names the nearest ids.
    """
    hits: list[Path] = []
    known: set[str] = set()
    for folder in SEARCHED:
        for path in sorted((data / folder).rglob("*.json")):
            if pair := ids(path):
                known.update(pair)
                if wanted in pair:
                    hits.append(path)
    if hits:
        return hits
    where = ", ".join(f"{data}/{folder}" for folder in SEARCHED)
    if not known:
        raise BadInput(
            f"{wanted}: no such file or folder, and {where} hold no trajectory yet; run `dvc repro evaluate`"
        )
    near = sorted(name for name in known if wanted in name) or get_close_matches(wanted, sorted(known), 3, 0.75)
    hint = f"; do you mean {visible(', '.join(near[:3]))}" + (" …?" if len(near) > 3 else "?") if near else ""
    raise BadInput(f"{wanted}: no such file or folder, and no trajectory or instance of that id in {where}{hint}")
