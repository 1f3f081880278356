"""``protege solve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def solve(
        repo: Annotated[Path, typer.Option(help="folder of the repository; it is only read")],
        issue: Annotated[str, typer.Option(help="a text file, or - for standard input")],
        model: Annotated[
            Path | None, typer.Option(help="model folder; default: the champion, else data/models/rl, else sft")
        ] = None,
        expert: Annotated[str, typer.Option(help="none, or api (see docs/expert.md)")] = "none",
        out: Annotated[
            Path | None, typer.Option(help="the patch file; default: <repo name>.patch in the current folder")
        ] = None,
        force: Annotated[bool, typer.Option("--force", help="replace the patch file if it is there")] = False,
        backend: Annotated[
            Literal["auto", "docker", "bubblewrap"] | None, typer.Option(help="sandbox; default: as params.yaml says")
        ] = None,
        image: Annotated[
            str | None, typer.Option(help="Docker image to start from, with the repository's dependencies")
        ] = None,
        site: Annotated[
            Path | None, typer.Option(help="folder of Python packages (pip install --target) for the sandbox")
        ] = None,
        test_command: Annotated[
            str | None, typer.Option(help="run in the sandbox before and after, for information")
        ] = None,
        steps: Annotated[int | None, typer.Option(min=1, help="most steps of the agent")] = None,
        seed: Annotated[int, typer.Option(help="of the sampling; changes nothing at temperature 0")] = 0,
        temperature: Annotated[float, typer.Option(min=0.0, help="of the sampling")] = 0.0,
        max_mb: Annotated[float, typer.Option(help="most that is copied of the repository, in MiB")] = 200.0,
        url: Annotated[str | None, typer.Option(help="a vLLM server that serves this model already")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="the outcome on standard output, for a program")] = False,
    ) -> None:
        """Let the trained protégé work on ISSUE in a sandboxed copy of REPO, and write a patch file."""
        options = dict(locals())
        from protege.cli.solve.command import Options, main

        main(Options(**options))
