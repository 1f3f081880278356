"""``protege inspect``: look at one trajectory, or at a folder of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OUT = Path("data/inspect")


def register(app: typer.Typer) -> None:
    app.command(name="inspect")(inspect)


def inspect(
    what: Annotated[str, typer.Argument(metavar="PATH|ID", help="a trajectory file, a folder of them, or an id")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the page, or with several the folder")] = None,
    terminal: Annotated[bool, typer.Option("--terminal", "-t", help="print it here instead")] = False,
    full: Annotated[bool, typer.Option("--full", help="with --terminal: cut nothing")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="everything, for a program")] = False,
    all_: Annotated[bool, typer.Option("--all", help="all trajectories that an id names")] = False,
    replay: Annotated[
        bool, typer.Option("--replay", help="its turns again in a fresh sandbox, then the tests")
    ] = False,
    instances: Annotated[list[Path] | None, typer.Option(help="rows with gold patches")] = None,
    params: Annotated[Path | None, typer.Option(help="where section 'reward' is read")] = None,
    data: Annotated[Path, typer.Option(help="where an id is looked up")] = Path("data"),
) -> None:
    """Show a trajectory: an HTML page (its path is printed), --terminal, or --json.

    A folder, or an id with --all, gives a page each and an index with search and filters. An id is a trajectory's or
    an instance's. Exit status: 0 done, 1 bad input or several trajectories of that id, 3 infrastructure failed.
    """
    from protege.report.inspect.show import Request, run

    if sum((terminal, as_json, replay)) > 1:
        raise typer.BadParameter("use one of --terminal, --json and --replay")
    raise typer.Exit(run(Request(what, out, terminal, full, as_json, all_, replay, instances, params, data, OUT)))
