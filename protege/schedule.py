"""When deployments run: the schedules of prefect.yaml, checked without Prefect, so that the doctor can do it too."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from protege.config import timezone_problem

FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
ALIASES = {"@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"}
_PART = re.compile(r"(\*|([a-z0-9]+)(?:-([a-z0-9]+))?)(?:/([1-9][0-9]*))?")


def cron_problem(cron: str) -> str:
    """What is wrong with a cron expression; "" when nothing is.

    >>> cron_problem("0 2 * * *"), cron_problem("*/15 8-18 1,15 jan-mar mon-fri"), cron_problem("@daily")
    ('', '', '')
    >>> cron_problem("61 2 * * *")
    "the minute '61' is not from 0 to 59"
    >>> cron_problem("0 2 * *")
    'it has 4 fields, not 5 (minute, hour, day, month, weekday)'
    """
    if cron.lower() in ALIASES:
        return ""
    parts = cron.lower().split()
    if len(parts) != len(FIELDS):
        return f"it has {len(parts)} fields, not 5 (minute, hour, day, month, weekday)"
    for text, (name, low, high) in zip(parts, FIELDS, strict=True):
        for part in text.split(","):
            found = _PART.fullmatch(part)
            ends = [_number(end, name) for end in found.groups()[1:3] if end is not None] if found else [-1]
            if any(not low <= end <= high for end in ends):
                return f"the {name} {part!r} is not from {low} to {high}"
            if len(ends) == 2 and ends[0] > ends[1]:
                return f"the {name} {part!r} runs backwards"
    return ""


def _number(text: str, field: str) -> int:
    names = {"month": MONTHS, "weekday": WEEKDAYS}.get(field, ())
    if text in names:
        return names.index(text) + (field == "month")
    return int(text) if text.isdigit() else -1


@dataclass(frozen=True)
class Deployments:
    """What stands under ``deployments`` of a file, and every problem with its schedules: file, key and value."""

    listed: list[dict[str, Any]]
    problems: list[str]


def read(file: Path) -> Deployments:
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        return Deployments([], [f"{file} cannot be read: {error}"])
    except yaml.YAMLError as error:
        return Deployments([], [f"{file} is not YAML: {' '.join(str(error).split())}"])
    listed = raw.get("deployments") if isinstance(raw, dict) else None
    if not isinstance(listed, list) or not all(isinstance(d, dict) for d in listed):
        return Deployments([], [f"{file}: deployments: it should be a list of deployments"])
    return Deployments(listed, [f"{file}: {said}" for d in listed for said in _problems(d)])


def _problems(deployment: dict[str, Any]) -> Iterator[str]:
    schedules = deployment.get("schedules") or []
    for number, schedule in enumerate(schedules if isinstance(schedules, list) else [schedules]):
        key = f"deployment {deployment.get('name')}: schedules[{number}]"
        cron = schedule.get("cron") if isinstance(schedule, dict) else None
        if not isinstance(cron, str):
            yield f'{key}.cron: {cron!r} is no cron expression; write one such as "0 2 * * *"'
            continue
        if problem := cron_problem(cron):
            yield f'{key}.cron: {cron!r} is no cron expression: {problem}; write one such as "0 2 * * *"'
        if (zone := schedule.get("timezone")) is not None and (problem := timezone_problem(zone)):
            yield f"{key}.timezone: {problem}"
