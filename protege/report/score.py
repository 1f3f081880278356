"""Re-score trajectories that are on disk under other reward parameters; nothing is run.

What is needed is all there: the trajectory with its judge scores and its verdict, and the instance's gold patch for
the similarity term. The reward that was logged when it was made (``rewards.jsonl`` of data/rl) is shown beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from protege.config import RewardParams
from protege.core.reward import Reward, Stage, score
from protege.core.trajectory import Trajectory
from protege.datasets.load import load_instances
from protege.errors import BadInput, BadParams
from protege.report.inspect.sources import Logged, ids, read

TERMS = ("total", "loop", "g_loop", "follow", "g_follow", "correct", "sim", "warrant", "b2b", "quota", "no_call")


@dataclass(frozen=True)
class Scored:
    """One trajectory's reward. ``reward`` is None where ``why`` says why it has none; ``logged`` is the old total."""

    path: Path
    trajectory: Trajectory
    reward: Reward | None
    why: str = ""
    logged: float | None = None

    @property
    def difference(self) -> float | None:
        return None if self.reward is None or self.logged is None else self.reward.total - self.logged


def reward_params(path: Path | str | None, changes: Sequence[str] = ()) -> RewardParams:
    """Section ``reward`` of a params file (the defaults without one), with ``changes`` such as
    ``reward.stage_two.w_follow=1.5`` made to it.

    Raises:
        BadParams: no such file, no such key, or a value of the wrong kind; the message names it.
    """
    raw: Any = {}
    if path is not None:
        try:
            raw = (yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}).get("reward") or {}
        except FileNotFoundError:
            raise BadParams(f"no {path} here; give --params FILE, or run in the project's folder") from None
        except (yaml.YAMLError, AttributeError) as error:
            raise BadParams(f"{path} is not a params file: {error}") from None
    values = _merged(RewardParams().model_dump(), raw, "reward")
    for change in changes:
        key, separator, text = change.partition("=")
        parts = key.strip().removeprefix("reward.").split(".")
        if not separator:
            raise BadParams(f"--set {change}: it should look like reward.follow_low=-1.0")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise BadParams(f"--set {change}: the value is not YAML") from None
        nested: Any = value
        for part in reversed(parts):
            nested = {part: nested}
        values = _merged(values, nested, "reward")
    try:
        return RewardParams.model_validate(values)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, ('reward', *e['loc'])))}: {e['msg']}" for e in error.errors())
        raise BadParams(wrong) from None


def _merged(values: dict[str, Any], changes: Any, where: str) -> dict[str, Any]:
    if not isinstance(changes, dict):
        raise BadParams(f"{where}: it should be a section of keys, not {changes!r}")
    result = dict(values)
    for key, value in changes.items():
        if key not in values:
            raise BadParams(f"{where}.{key}: no such key; there are: {', '.join(values)}")
        inner = values[key]
        result[key] = _merged(inner, value, f"{where}.{key}") if isinstance(inner, dict) else value
    return result


def trajectory_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files themselves, and in a folder every ``*.json`` below it that lies in a folder of trajectories.

    Raises:
        BadInput: a path does not exist, or there is no trajectory at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += [p for p in sorted(path.rglob("*.json")) if ids(p)]
        elif path.is_file():
            found.append(path)
        else:
            raise BadInput(f"{path} does not exist; give trajectory files or folders, such as data/rl/trajectories")
    if not found:
        raise BadInput(f"no trajectory in {', '.join(map(str, paths))}; such as data/rl/trajectories has them")
    return list(dict.fromkeys(found))


def gold_patches(sources: Iterable[Path | str]) -> dict[tuple[str, str], str]:
    """Gold patch by (instance id, instance digest), from files of instances."""
    return {(i.instance_id, i.digest): i.patch for source in sources for i in load_instances(source)}


def rescore(
    files: Sequence[Path], params: RewardParams, stage: Stage | None, gold: dict[tuple[str, str], str]
) -> list[Scored]:
    """Every trajectory's reward under ``params``, in ``stage`` or, without one, in the stage it was logged in (else 2).

    An infrastructure failure has no reward, nor has what was never graded.

    Raises:
        BadInput: a file is not a trajectory, or an unresolved one's gold patch is not in ``gold``.
    """
    logged = Logged()
    return [_scored(path, params, stage, gold, logged) for path in files]


def _scored(
    path: Path, params: RewardParams, stage: Stage | None, gold: dict[tuple[str, str], str], logged: Logged
) -> Scored:
    trajectory = read(path).trajectory
    if trajectory.exit_status == "infrastructure":
        return Scored(path, trajectory, None, "infrastructure failure (masked)")
    if trajectory.verdict is None:
        return Scored(path, trajectory, None, "not graded")
    patch = gold.get((trajectory.instance_id, trajectory.instance_digest))
    if patch is None and not trajectory.resolved:
        raise BadInput(
            f"{path}: the gold patch of {trajectory.instance_id} (as it was rolled out) is not at hand, and the "
            "similarity of an unresolved patch needs it; give --instances FILE with that row"
        )
    old = logged.of(path, trajectory.trajectory_id)
    then: Stage = stage or (1 if old and old[0] == 1 else 2)
    reward = score(trajectory, trajectory.verdict, patch or "", then, params)
    return Scored(path, trajectory, reward, logged=old[1] if old else None)


def means(scored: Sequence[Scored]) -> dict[str, float]:
    """The mean of each term over what has a reward, of the logged total, and of the difference to it."""
    rewards = [s.reward for s in scored if s.reward is not None]
    values = {term: _mean([float(getattr(r, term)) for r in rewards]) for term in TERMS} if rewards else {}
    pairs = [(s.logged, s.difference) for s in scored if s.logged is not None and s.difference is not None]
    if pairs:
        values["logged"], values["difference"] = _mean([a for a, _ in pairs]), _mean([b for _, b in pairs])
    return values


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def as_json(scored: Sequence[Scored], params: RewardParams) -> dict[str, Any]:
    rows = []
    for s in scored:
        head: dict[str, Any] = {"trajectory_id": s.trajectory.trajectory_id, "path": str(s.path)}
        if s.reward is None:
            rows.append({**head, "reward": None, "why": s.why})
        else:
            rows.append({**head, **s.reward.model_dump(), "logged": s.logged, "difference": s.difference})
    counted = sum(s.reward is not None for s in scored)
    return {"params": params.model_dump(), "n": counted, "means": means(scored), "trajectories": rows}


def as_table(scored: Sequence[Scored]) -> str:
    """One line a trajectory, then the means; what has no reward below, by its reason."""
    some_logged = any(s.logged is not None for s in scored)
    head = ["trajectory", "stage", *TERMS, *(["logged", "difference"] if some_logged else [])]
    rows = [head]
    for s in (s for s in scored if s.reward is not None):
        cells = [s.trajectory.trajectory_id, str(s.reward.stage if s.reward else ""), *_cells(s)]
        rows.append(cells + ([_number(s.logged), _number(s.difference, sign=True)] if some_logged else []))
    counted = len(rows) - 1
    if mean := means(scored):
        last = [_number(mean.get("logged")), _number(mean.get("difference"), sign=True)] if some_logged else []
        rows.append([f"mean of {counted}", "", *(_number(mean[term]) for term in TERMS), *last])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1 : counted + 1], rule, *lines[counted + 1 :]]
    lines += [f"no reward: {s.trajectory.trajectory_id}: {s.why}" for s in scored if s.reward is None]
    return "\n".join(lines)


def _cells(s: Scored) -> list[str]:
    return [_number(float(getattr(s.reward, term))) for term in TERMS]


def _number(value: float | None, sign: bool = False) -> str:
    if value is None:
        return "–"
    value = round(value, 3) + 0.0  # no "-0.000"
    return f"{value:+.3f}" if sign else f"{value:.3f}"
