"""Views as HTML that needs nothing but itself, and in which nothing of a trajectory can run.

Two defences, each enough alone: everything that is not ours is escaped (Jinja's autoescape) after hidden characters
were made visible, and a content security policy allows only the one script whose hash it names.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from protege.core.trajectory import Trajectory
from protege.errors import BadInput
from protege.files import write_atomic
from protege.report.inspect.breakdown import ROMAN
from protege.report.inspect.model import ORDER, Result, Run, Step, View, arguments, one_line, view
from protege.report.inspect.sources import SEARCHED, Context, Record, read, rows_in
from protege.report.inspect.text import file_name, seconds
from protege.report.render import TEMPLATES, environment, style
from protege.report.score import reward_params

BAR_WIDTH, BARS_HEIGHT = 10, 72
PARAMS = Path("params.yaml")


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
    malformed: int
    seconds: float

    @property
    def rest(self) -> str:
        """The trajectory's id without the instance's, which stands beside it."""
        return self.trajectory_id.removeprefix(self.instance_id).lstrip(".") or self.trajectory_id


def line_of(view: View, href: str, group: str = "") -> Line:
    return Line(
        href=href,
        group=group,
        trajectory_id=view.trajectory.trajectory_id,
        instance_id=view.trajectory.instance_id,
        system=system_of(view.trajectory),
        result=view.result,
        exit_status=view.exit_status,
        reason=view.reason,
        steps=len(view.steps),
        run=view.longest_run,
        looped=view.looped,
        calls=view.totals.asked,
        malformed=view.totals.malformed,
        seconds=view.trajectory.seconds,
    )


def system_of(t: Trajectory) -> str:
    """Policy and expert in a few words."""
    return f"{t.policy.name} + {t.expert.name}" if t.expert else f"{t.policy.name}, no expert"


def trajectory_page(view: View, index: str = "") -> str:
    """The page of one trajectory; ``index`` is a link back, relative to the page."""
    groups: list[dict[str, Any]] = [{"run": run, "steps": _numbered(view.steps, run)} for run in view.runs]
    return _render(
        "trajectory",
        v=view,
        index=index,
        groups=groups,
        strip=_strip(view),
        arguments=arguments,
        one_line=one_line,
        asks=[number for number, step in enumerate(view.steps, 1) if step.base == "ask_expert"],
        roman=ROMAN,
    )


def failures_first(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda r: (ORDER.index(r.result), r.instance_id, r.system, r.trajectory_id))


def index_page(
    lines: Sequence[Line],
    title: str,
    longer_than: int,
    oracles: Sequence[str] = (),
    problems: Sequence[str] = (),
    back: str = "",
) -> str:
    """The table of all, failures first. ``problems`` name files that could not be read; ``back`` links upwards."""
    counts = [(name, n) for name in ORDER if (n := sum(r.result == name for r in lines))]
    return _render(
        "index",
        lines=failures_first(lines),
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

    sheet, script, policy = _assets(name)
    template = environment(html=True).get_template(f"{name}.html")
    return str(template.render(style=Markup(sheet), script=Markup(script), policy=policy, **values))


@cache
def _assets(name: str) -> tuple[str, str, str]:
    sheet, script = style("viewer"), (TEMPLATES / f"{name}.js").read_text(encoding="utf-8")
    allowed = f"default-src 'none'; style-src {_hash(sheet)}; script-src {_hash(script)}"
    return sheet, script, f"{allowed}; base-uri 'none'; form-action 'none'"


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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


@dataclass(frozen=True)
class Entry:
    """A trajectory and where its page goes: ``group`` is the folder below the index, "" for none."""

    found: Record
    group: str = ""

    @property
    def page(self) -> Path:
        """Relative to the index."""
        stem = self.found.path.stem if self.found.path else self.found.trajectory.trajectory_id
        return Path(*(file_name(part) for part in Path(self.group).parts), f"{file_name(stem)}.html")


@dataclass
class Written:
    """What :func:`write_pages` left: the index, its lines in the order of the trajectories, and what it could not read."""

    index: Path
    lines: list[Line] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def ordered(self) -> list[Line]:
        return failures_first(self.lines)


def open_context(near: Path, instances: list[Path] | None = None, params: Path | None = None) -> Context:
    """Gold patches and reward params for trajectories at ``near``.

    Without ``instances`` the rows of the ``instances`` folder beside the trajectories' stage, else of data/instances;
    without ``params`` the params.yaml beside that, else in the current folder, else the defaults.

    Raises:
        BadInput: a file that was named is missing or wrong. A wrong file that was not named is named on the page.
    """
    data = data_folder(near)
    context = Context()
    if instances is not None:
        context.rows = rows_in(instances)
    else:
        load_rows(context, data / "instances")
    chosen = params or next((p for p in (data.parent / PARAMS, PARAMS) if p.is_file()), None)
    if chosen is not None:
        context.reward, context.params_from = reward_params(chosen), f"section reward of {chosen}"
    return context


def load_rows(context: Context, folder: Path) -> None:
    """Add the rows of ``folder``'s files; a file that cannot be read is one of the context's problems."""
    for source in sorted(folder.glob("*.jsonl")):
        try:
            context.rows = {**rows_in([source]), **context.rows}
        except BadInput as error:
            context.problems.append(str(error))


def data_folder(near: Path) -> Path:
    """The pipeline's ``data`` that ``near`` lies in, else the current folder's."""
    here = near.resolve()
    for folder in (here, *here.parents):
        if (folder / "instances").is_dir() and any((folder / name).is_dir() for name in SEARCHED):
            try:
                return folder.relative_to(Path.cwd())
            except ValueError:
                return folder
    return Path("data")


def entries(files: Iterable[Path], root: Path, problems: list[str]) -> Iterator[Entry]:
    """``files`` read one by one, grouped by their folder below ``root``; what cannot be read goes to ``problems``."""
    for path in files:
        try:
            found = read(path)
        except BadInput as error:
            problems.append(str(error))
            continue
        parts = path.parent.relative_to(root).parts
        yield Entry(found, "/".join(part for part in parts if part != "trajectories"))


def write_page(found: Record, context: Context, out: Path) -> View:
    """The page of one trajectory as the file ``out``."""
    seen = view(found, context)
    write_atomic(out, trajectory_page(seen))
    return seen


def write_pages(
    items: Iterable[Entry],
    context: Context,
    folder: Path,
    title: str,
    *,
    back: str = "",
    problems: list[str] | None = None,
) -> Written:
    """A page each, and ``folder/index.html``. ``problems`` (filled while ``items`` is read) stand on the index.

    Raises:
        BadInput: none of ``items`` could be read.
    """
    written = Written(folder / "index.html", problems=problems if problems is not None else [])
    oracles: dict[str, None] = {}
    taken: set[Path] = set()
    for item in items:
        page = item.page
        while page in taken:
            page = page.with_name(f"{page.stem}-{len(taken)}.html")
        taken.add(page)
        seen = view(item.found, context)
        up = "../" * (len(page.parts) - 1)
        write_atomic(folder / page, trajectory_page(seen, index=f"{up}index.html"))
        written.lines.append(line_of(seen, quote(page.as_posix()), item.group))
        for who, identity in (("expert", seen.trajectory.expert), ("policy", seen.trajectory.policy)):
            if identity and identity.sees_gold:
                oracles[f"{who} {identity.name}"] = None
    if not written.lines and written.problems:
        more = f" (and {len(written.problems) - 1} more)" if len(written.problems) > 1 else ""
        raise BadInput(written.problems[0] + more)
    text = index_page(written.lines, title, context.longer_than, list(oracles), written.problems, back)
    write_atomic(written.index, text)
    return written
