"""A night's record, ``data/nights/<date>/``: what it was asked, what it came to, and the files that say it again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, ValidationError

from protege.errors import BadInput, BadParams
from protege.files import write_atomic, write_json
from tasks.paramsfile import set_values

NIGHTS = Path("data/nights")
KEPT = ("params.yaml", "dvc.yaml", "dvc.lock")
GO_ON_FOR = timedelta(hours=20)
"""A night that was cut off so long ago at most goes on; an older one is left as it is."""


class Night(BaseModel):
    """One night. ``stages`` by name; ``decided`` is set before the champion is touched, ``finished`` at the end."""

    model_config = ConfigDict(extra="forbid")

    night: str
    seed: int | None
    earlier: list[int] = []
    began: str
    stages: dict[str, Literal["done", "unchanged", "failed"]] = {}
    decided: dict[str, Any] | None = None
    promoted: bool = False
    failed: str = ""
    finished: str = ""
    told: bool = False

    @property
    def folder(self) -> Path:
        return NIGHTS / self.night

    def save(self) -> None:
        write_json(self.folder / "night.json", self.model_dump(mode="json"))

    def keep_files(self) -> None:
        """Copies of what, with the commit, says this night's run completely."""
        for name in KEPT:
            if Path(name).is_file():
                write_atomic(self.folder / name, Path(name).read_bytes())


def begin(asked: str | None, timezone: str, fresh: bool, window: int = 1) -> Night:
    """The night to run: the one asked for, else one that was cut off lately, else today's; it is written down.

    A fresh night goes on training on the instances of the ``window - 1`` finished nights before it.

    Raises BadInput for a date that is none; BadParams for an unknown time zone.
    """
    name = asked or _cut_off() or today(timezone)
    try:
        day = date.fromisoformat(name)
    except ValueError as error:
        raise BadInput(f"night: {name!r} is no date; write it as 2026-11-22") from error
    known = load(name)
    if known is None or known.finished:
        # the same date once more is another run of the same work: it finds everything done
        seed = int(day.strftime("%Y%m%d")) if fresh else None
        known = Night(night=name, seed=seed, earlier=_seeds_before(name, window - 1) if fresh else [], began=now())
    known.failed = ""
    known.save()
    return known


def _seeds_before(name: str, count: int) -> list[int]:
    """Seeds of the last ``count`` finished nights before ``name``, oldest first."""
    names = sorted(path.name for path in NIGHTS.glob("*-*-*") if path.name < name)
    seeds = [night.seed for night in map(load, names) if night and night.finished and night.seed is not None]
    return seeds[-count:] if count else []


def load(name: str) -> Night | None:
    """The record of night ``name``; None where there is none that can be read."""
    try:
        return Night.model_validate_json((NIGHTS / name / "night.json").read_text())
    except (FileNotFoundError, ValidationError):
        return None


def today(timezone: str) -> str:
    try:
        return datetime.now(ZoneInfo(timezone)).date().isoformat()
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise BadParams(
            f"nightly.timezone: {timezone!r} is not known; it should be one such as UTC or Europe/Berlin"
        ) from error


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def unfinished() -> Night | None:
    """The last night, if it has not come to its end."""
    nights = sorted(path.name for path in NIGHTS.glob("*-*-*")) if NIGHTS.is_dir() else []
    last = load(nights[-1]) if nights else None
    return None if last is None or last.finished else last


def _cut_off() -> str | None:
    last = unfinished()
    if last is None or datetime.now(UTC) - datetime.fromisoformat(last.began) >= GO_ON_FOR:
        return None
    return last.night


def seed_params(seed: int | None, earlier: Sequence[int] = ()) -> None:
    """Write ``instances.seed`` and ``instances.earlier`` into params.yaml. Nothing with None.

    Raises BadParams where a line cannot be found.
    """
    if seed is not None:
        set_values({("instances", "seed"): seed, ("instances", "earlier"): list(earlier)})
