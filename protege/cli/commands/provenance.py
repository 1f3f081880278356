"""``protege provenance MODEL``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def provenance(
        model: Annotated[Path, typer.Argument(help="a model folder, such as data/models/rl, or data/champion")],
        as_json: Annotated[bool, typer.Option("--json", help="everything, for a program")] = False,
    ) -> None:
        """Print the chain of hashes behind MODEL: data, params, images and code. Exit code 1 if a link does not hold."""
        from protege.report import provenance as chain_of

        chain = chain_of.provenance(model)
        typer.echo(json.dumps(chain, indent=1) if as_json else chain_of.as_text(chain))
        if chain["problems"]:
            raise typer.Exit(1)
