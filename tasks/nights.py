"""A night's record, ``data/nights/<date>/``: what it was asked, what it came to, and the files that say it again.

A second run of a date whose night is finished is a night of its own, ``<date>.2``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, ValidationError

from protege.errors import BadInput
from protege.files import write_atomic, write_json
from tasks.paramsfile import set_values

NIGHTS = Path("data/nights")
KEPT = ("params.yaml", "dvc.yaml", "dvc.lock")
_NAME = re.compile(r"\d{4}-\d\d-\d\d(\.\d+)?")
GO_ON_FOR = timedelta(hours=20)
"""A night that was cut off so long ago at most goes on; an older one is left as it is."""


Outcome = Literal["done", "unchanged", "failed"]


class Night(BaseModel):
    """One night. ``stages`` by name; ``decided`` is set before the champion is touched, ``finished`` at the end.

    What is assigned is checked then: a record that was saved can be read.
    """

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    night: str
    seed: int | None
    earlier: list[int] = []
    began: str
    stages: dict[str, Outcome] = {}
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

    def outcome(self, stage: str, outcome: Outcome) -> None:
        """Set the outcome of ``stage`` and save the record; a stage that was done stays so."""
        if outcome != "unchanged" or self.stages.get(stage) != "done":
            self.stages = {**self.stages, stage: outcome}
        self.save()

    def keep_files(self) -> None:
        """Copies of what, with the commit, says this night's run completely."""
        for name in KEPT:
            if Path(name).is_file():
                write_atomic(self.folder / name, Path(name).read_bytes())


def begin(asked: str | None, timezone: str, fresh: bool, window: int = 1) -> Night:
    """The night to run: that of the date asked for, else one that was cut off lately, else today's; it is written down.

    A fresh night goes on training on the instances of the ``window - 1`` finished nights before it.

    Raises BadInput for a date that is none, or a record that cannot be read.
    """
    name = asked or _cut_off() or today(timezone)
    date_, _, _ = name.partition(".")
    try:
        if not _NAME.fullmatch(name):
            raise ValueError(name)
        day = date.fromisoformat(date_)
    except ValueError as error:
        raise BadInput(f"night: {name!r} is no date; write it as 2026-11-22") from error
    same_day = [other for other in names() if other.partition(".")[0] == date_]
    known = load(same_day[-1]) if same_day else None
    if known is None or known.finished:
        # the same date once more: the same instances, and what has not changed is not done again
        seed = int(day.strftime("%Y%m%d")) if fresh else None
        name = f"{date_}.{_count(same_day[-1]) + 1}" if same_day else date_
        known = Night(night=name, seed=seed, earlier=_seeds_before(date_, window - 1) if fresh else [], began=now())
    known.failed = ""
    known.save()
    return known


def names() -> list[str]:
    """All nights that have a record, the oldest first."""
    found = (path.parent.name for path in NIGHTS.glob("*/night.json"))
    return sorted(filter(_NAME.fullmatch, found), key=lambda name: (name.partition(".")[0], _count(name)))


def _count(name: str) -> int:
    """Which run of its date the night ``name`` is; the first has no number."""
    return int(name.partition(".")[2] or 1)


def _seeds_before(date_: str, count: int) -> list[int]:
    """Seeds of the last ``count`` finished nights before the day ``date_``, oldest first; nights of one seed count once."""
    nights = [load(name) for name in names() if name.partition(".")[0] < date_]
    seeds = dict.fromkeys(night.seed for night in nights if night and night.finished and night.seed is not None)
    return list(seeds)[-count:] if count else []


def load(name: str) -> Night | None:
    """The record of night ``name``, None where there is none. Raises BadInput for one that cannot be read."""
    path = NIGHTS / name / "night.json"
    try:
        return Night.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValidationError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is no record of a night; correct it, or move its folder away: {error}") from error


def today(timezone: str) -> str:
    return datetime.now(ZoneInfo(timezone)).date().isoformat()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def unfinished() -> Night | None:
    """The last night, if it has not come to its end."""
    nights = names()
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
