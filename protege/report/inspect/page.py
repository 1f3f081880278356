"""Views as HTML that needs nothing but itself, and in which nothing of a trajectory can run.

Two defences, each enough alone: everything that is not ours is escaped (Jinja's autoescape) after hidden characters
were made visible, and a content security policy allows only the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from protege.core.trajectory import ToolCall
from protege.report.inspect.model import ORDER, Result, Run, Step, View, arguments
from protege.report.inspect.reckoning import ROMAN
from protege.report.inspect.text import shown, visible

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
BAR_WIDTH, BARS_HEIGHT = 10, 72


@dataclass(frozen=True)
class Line:
    """One row of the index. ``href`` is relative to the index, quoted."""

    href: str
    group: str
    trajectory_id: str
    instance_id: str
    system: str
    result: Result
    exit_status: str
    reason: str
    steps: int
    run: int
    looped: bool
    calls: int
    seconds: float

    @property
    def rest(self) -> str:
        """The trajectory's id without the instance's, which stands beside it."""
        return self.trajectory_id.removeprefix(self.instance_id).lstrip(".") or self.trajectory_id


def line_of(view: View, href: str, group: str = "") -> Line:
    return Line(
        href=href,
        group=group,
        trajectory_id=view.trajectory_id,
        instance_id=view.instance_id,
        system=system_of(view),
        result=view.result,
        exit_status=view.exit_status,
        reason=view.reason,
        steps=len(view.steps),
        run=view.longest_run,
        looped=view.looped,
        calls=view.totals.asked,
        seconds=view.seconds,
    )


def system_of(view: View) -> str:
    """Policy and expert in a few words."""
    return f"{view.policy.name} + {view.expert.name}" if view.expert else f"{view.policy.name}, no expert"


def trajectory_page(view: View, index: str = "") -> str:
    """The page of one trajectory; ``index`` is a link back, relative to the page."""
    groups: list[dict[str, Any]] = [{"run": run, "steps": _numbered(view.steps, run)} for run in view.runs]
    return _render(
        "trajectory",
        v=view,
        index=index,
        groups=groups,
        strip=_strip(view),
        asks=[number for number, step in enumerate(view.steps, 1) if step.base == "ask_expert"],
        roman=ROMAN,
    )


def index_page(
    lines: Sequence[Line],
    title: str,
    longer_than: int,
    oracles: Sequence[str] = (),
    problems: Sequence[str] = (),
    back: str = "",
) -> str:
    """The table of all, failures first. ``problems`` name files that could not be read; ``back`` links upwards."""
    ordered = sorted(lines, key=lambda r: (ORDER.index(r.result), r.instance_id, r.system, r.trajectory_id))
    counts = [(name, n) for name in ORDER if (n := sum(r.result == name for r in lines))]
    return _render(
        "index",
        lines=ordered,
        title=title,
        counts=counts,
        systems=sorted({r.system for r in lines}),
        longer_than=longer_than,
        oracles=oracles,
        problems=problems,
        back=back,
    )


def _render(name: str, **values: Any) -> str:
    from markupsafe import Markup

    style, script, policy = _assets(name)
    return (
        _environment()
        .get_template(f"{name}.html")
        .render(style=Markup(style), script=Markup(script), policy=policy, **values)
    )


@cache
def _assets(name: str) -> tuple[str, str, str]:
    style, script = (TEMPLATES / "style.css").read_text(), (TEMPLATES / f"{name}.js").read_text()
    allowed = (
        f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    return style, script, allowed


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: visible(value) if type(value) is str else value,
    )
    environment.filters.update(
        cut=shown,
        secs=seconds,
        signed=signed,
        difflines=diff_lines,
        arguments=arguments,
        oneline=one_line,
        brief=lambda text: text if len(text) <= 300 else text[:300] + " …",
        lines=lambda text: f"{n} line{'s' if n != 1 else ''}" if (n := len(text.splitlines())) else "empty",
        capitalise=lambda text: text[:1].upper() + text[1:],
        wbr=lambda name: Markup("<wbr>").join(visible(part) for part in re.split(r"(?<=[_.])(?![_.])", name)),
    )
    return environment


def seconds(value: float) -> str:
    """
    >>> seconds(0.004), seconds(9.96), seconds(125)
    ('0.00 s', '10.0 s', '2 min 5 s')
    """
    if value >= 60:
        return f"{int(value) // 60} min {int(value) % 60} s"
    return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"


def signed(value: float) -> str:
    """
    >>> signed(-0.5), signed(0.0), signed(-0.0001)
    ('−0.50', '0.00', '0.00')
    """
    text = f"{value:.2f}".replace("-", "\u2212")
    return "0.00" if text == "\u22120.00" else text


def diff_lines(patch: str) -> list[tuple[str, str]]:
    """The lines of a diff, each with its CSS class."""
    return [(_kind(line), line) for line in shown(patch).rstrip("\n").split("\n")]


def _kind(line: str) -> str:
    if line.startswith(("diff ", "+++ ", "--- ", "index ")):
        return "file"
    return {"+": "add", "-": "del", "@": "at"}.get(line[:1], "")


def one_line(call: ToolCall) -> str:
    """A call in a line: its arguments without their names, newlines as signs, cut at 160 characters."""
    text = "  ".join(value for _, value in arguments(call) if value).replace("\n", " ⏎ ")
    return text if len(text) <= 160 else text[:160] + " …"


def _numbered(steps: Sequence[Step], run: Run) -> list[dict[str, Any]]:
    own = steps[run.first : run.last + 1]
    return [
        {
            **{name: getattr(step, name) for name in ("turn", "base", "thought", "expert")},
            "number": n + 1,
            "place": place,
        }
        for place, (n, step) in enumerate(enumerate(own, run.first), 1)
    ]


def _strip(view: View) -> dict[str, Any] | None:
    """Geometry of the bars of seconds by turn, or None where no time was recorded."""
    spent = [(max(0.0, s.turn.model_seconds), max(0.0, s.turn.tool_seconds)) for s in view.steps]
    tallest = max((model + tool for model, tool in spent), default=0.0)
    if tallest <= 0:
        return None
    bars, marks = [], {}
    for i, (step, (model, tool)) in enumerate(zip(view.steps, spent, strict=True)):
        model_h, tool_h = (round(BARS_HEIGHT * value / tallest, 2) for value in (model, tool))
        mark, name = _mark(step)
        if mark:
            marks[mark] = name
        bars.append(
            {
                "number": i + 1,
                "title": f"turn {i + 1}: {step.base}, model {seconds(model)}, tools {seconds(tool)}",
                "left": i * BAR_WIDTH,
                "full": BAR_WIDTH,
                "x": i * BAR_WIDTH + 1,
                "w": BAR_WIDTH - 2,
                "model_y": BARS_HEIGHT - model_h,
                "model_h": model_h,
                "tool_y": round(BARS_HEIGHT - model_h - tool_h, 2),
                "tool_h": tool_h,
                "mark": mark,
            }
        )
    # a few turns do not fill the width: bars as broad as the page would say nothing
    return {
        "bars": bars,
        "width": max(len(bars), 20) * BAR_WIDTH,
        "tallest": tallest,
        "marks": list(marks.items()),
    }


def _mark(step: Step) -> tuple[str, str]:
    if step.base == "ask_expert":
        return "expert", "asked the expert"
    if step.turn.malformed:
        return "malformed", "malformed"
    return ("loop", "in a loop") if step.run.loops else ("", "")
