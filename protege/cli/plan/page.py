"""A plan as text for people and as JSON for programs."""

from __future__ import annotations

import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Line:
    """One figure. ``value`` None means that it is not known, and ``assumption`` says why."""

    section: str
    name: str
    value: float | None
    unit: str
    assumption: str
    at_most: float | None = None


@dataclass
class Plan:
    profile: str
    model: str
    device: str
    machine: str
    lines: list[Line] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, section: str, name: str, value: float | None, unit: str, assumption: str, at_most: float | None = None
    ) -> None:
        self.lines.append(Line(section, name, value, unit, assumption, at_most))

    def value(self, section: str, name: str) -> float | None:
        return next(line.value for line in self.lines if (line.section, line.name) == (section, name))


def as_json(made: Plan) -> dict[str, Any]:
    return asdict(made)


def as_text(made: Plan) -> str:
    """A block for each section: name, figure, upper bound where there is one, and the assumption below."""
    lines = [f"Plan of profile {made.profile}: {made.model} on {made.device}. Nothing was run.",
             f"Workers, checkpointing and prices are those of {made.machine}.", ""]  # fmt: skip
    for section in dict.fromkeys(line.section for line in made.lines):
        rows = [line for line in made.lines if line.section == section]
        width = max(len(row.name) for row in rows)
        lines.append("time" if section == "hours" else section)
        for row in rows:
            bound = "" if row.at_most is None else f", at most {_number(row.at_most)}"
            lines.append(f"  {row.name:<{width}}  {_figure(row)}{bound}")
            lines += textwrap.wrap(
                row.assumption, 118, initial_indent=" " * 6, subsequent_indent=" " * 6, break_on_hyphens=False
            )
        lines.append("")
    lines += [f"note: {note}" for note in made.notes] or ["note: nothing speaks against this run"]
    return "\n".join(lines)


def _figure(row: Line) -> str:
    if row.value is None:
        return "unknown"
    if row.unit == "h" and row.value < 1:
        return f"{_number(row.value * 60)} min"
    return f"{_number(row.value)} {row.unit}"


def _number(value: float) -> str:
    for size, name in ((1e9, " G"), (1e6, " M")):
        if value >= size:
            return f"{value / size:.2f}{name}"
    return f"{value:,.0f}" if value >= 100 or value == 0 else f"{value:.2g}" if value < 1 else f"{value:.1f}"
