"""What ``protege inspect`` does, without the command line around it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from protege.errors import BadInput
from protege.report.inspect.model import View, reason_of, result_of, view
from protege.report.inspect.pages import Entry, entries, line_of, open_context, write_page, write_pages
from protege.report.inspect.sources import read, search, trajectories_in
from protege.report.inspect.text import file_name, visible


@dataclass(frozen=True)
class Request:
    """The command's arguments; ``home`` is where pages go without ``out``."""

    what: str
    out: Path | None
    terminal: bool
    full: bool
    as_json: bool
    all_: bool
    replay: bool
    instances: list[Path] | None
    params: Path | None
    data: Path
    home: Path


def run(request: Request) -> int:
    """Carry it out; what was asked for goes to stdout. Returns the exit status.

    Raises:
        BadInput: see the modules; ProtegeError: a replay's sandbox failed.
    """
    path = Path(request.what)
    if not request.what.strip() or len(request.what) > 4000:
        raise BadInput("give a trajectory file, a folder of them, or an id")
    if _is(path.is_file):
        return _one(request, path)
    if _is(path.is_dir):
        return _several(request, trajectories_in(path), path, path.resolve().name)
    if path.suffix == ".json" or len(path.parts) > 1:
        raise BadInput(f"{request.what} does not exist; give a trajectory file, a folder of them, or an id")
    hits = search(request.what, request.data)
    if len(hits) == 1:
        return _one(request, hits[0])
    if request.all_:
        return _several(request, hits, request.data, request.what)
    print(f"{len(hits)} trajectories of {visible(request.what)}; give one of these, or --all:", file=sys.stderr)
    for hit in hits:
        print(f"  {visible(str(hit))}  {visible(_summary(hit))}", file=sys.stderr)
    return 1


def _is(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except OSError:  # a name that no file can have, or a folder that is closed to us
        return False


def _summary(path: Path) -> str:
    try:
        t = read(path).trajectory
    except BadInput as error:
        return str(error)
    who = f"{t.policy.name} + {t.expert.name}" if t.expert else f"{t.policy.name}, no expert"
    reason = f" ({reason_of(t).splitlines()[0][:80]})" if result_of(t) in ("infrastructure", "not graded") else ""
    return f"{result_of(t)}{reason}, {who}, {len(t.turns)} steps, seed {t.seed}, {t.started_at or 'no date'}"


def _one(request: Request, path: Path) -> int:
    found = read(path)
    context = open_context(path, request.instances, request.params)
    if request.replay:
        from protege.report.inspect.replay import replay

        return replay(found, context, request.params)
    if request.as_json:
        values = view(found, context).model_dump(mode="json", exclude={"trajectory": {"turns", "tokens"}})
        print(json.dumps(values, indent=1))  # ASCII: safe on a terminal
    elif request.terminal:
        from protege.report.inspect.terminal import Printer, console

        Printer(console(), request.full).view(view(found, context))
    else:
        out = request.out or request.home / f"{file_name(path.stem)}.html"
        if out.is_dir():
            out = out / f"{file_name(path.stem)}.html"
        write_page(found, context, out)
        print(out)
    return 0


def _several(request: Request, files: list[Path], root: Path, title: str) -> int:
    if request.replay:
        raise BadInput(f"--replay is for one trajectory; {request.what} names {len(files)}")
    context = open_context(root, request.instances, request.params)
    problems: list[str] = []
    items = entries(files, root, problems)
    if request.as_json or request.terminal:
        views = [(item, view(item.found, context)) for item in items]
        if not views:
            raise BadInput(problems[0])
        if request.as_json:
            print(json.dumps([_brief(item, seen) for item, seen in views], indent=1))
        else:
            from protege.report.inspect.terminal import console, print_lines

            print_lines([line_of(seen, "", item.group) for item, seen in views], console())
    else:
        folder = request.out or request.home / file_name(title)
        if folder.is_file() or folder.suffix == ".html":
            raise BadInput(f"--out {folder}: {request.what} names {len(files)} trajectories, so it should be a folder")
        written = write_pages(items, context, folder, title, problems=problems)
        print(written.index)
    for problem in problems:
        print(visible(problem), file=sys.stderr)
    return 0


def _brief(item: Entry, seen: View) -> dict[str, object]:
    line = line_of(seen, "", item.group)
    values = {name: getattr(line, name) for name in line.__dataclass_fields__ if name != "href"}
    reward = seen.breakdown.reward.total if seen.breakdown else None
    return {"path": seen.source, **values, "reward": reward}
