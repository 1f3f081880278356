"""``protege doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def doctor(
        as_json: Annotated[bool, typer.Option("--json", help="the findings, for a program")] = False,
        project: Annotated[Path, typer.Option(help="the project's folder")] = Path(),
    ) -> None:
        """Check this machine and this project, and name the one command that fixes each finding. Exit 1 on a failure."""
        from protege.cli.doctor import as_json as json_text
        from protege.cli.doctor import as_text, examine

        findings = examine(project)
        typer.echo(json_text(findings) if as_json else as_text(findings))
        if any(finding.status == "fail" for finding in findings):
            raise typer.Exit(1)
