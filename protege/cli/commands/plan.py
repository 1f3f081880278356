"""``protege plan``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer


def _profiles() -> list[str]:
    return sorted(path.stem for path in Path("profiles").glob("*.yaml"))


def register(app: typer.Typer) -> None:
    @app.command()
    def plan(
        profile: Annotated[
            str | None, typer.Option(help="one of profiles/; default: params.yaml", autocompletion=lambda: _profiles())
        ] = None,
        machine: Annotated[
            str | None, typer.Option(help="one of machines/; default: machine.yaml, else the one that fits --gpus")
        ] = None,
        device: Annotated[str, typer.Option(help="auto, cpu or gpu; auto: cpu below a billion parameters")] = "auto",
        gpu: Annotated[str, typer.Option(help="a100, h100 or h200")] = "h100",
        gpus: Annotated[int, typer.Option(min=1, help="how many, on one machine")] = 8,
        as_json: Annotated[
            bool, typer.Option("--json", help="every figure with its assumption, for a program")
        ] = False,
    ) -> None:
        """What a run would need (memory, tokens, hours, disk, cost), with each assumption. Runs nothing."""
        from protege.cli import plan as planning
        from protege.config import MACHINE, load
        from protege.errors import BadParams

        chosen: dict[str, Literal["cpu", "gpu"] | None] = {"auto": None, "cpu": "cpu", "gpu": "gpu"}
        if device not in chosen:
            raise BadParams(f"--device {device}: it is one of {', '.join(chosen)}")
        path = Path("params.yaml") if profile is None else Path("profiles") / f"{profile}.yaml"
        if profile is not None and not path.is_file():
            raise BadParams(
                f"no profile {profile!r}; there are: {', '.join(_profiles()) or 'none here, run in the project folder'}"
            )
        how = None if machine is None else Path("machines") / f"{machine}.yaml"
        if how is None and not Path(MACHINE).is_file() and planning.device_of(load(path), chosen[device]) == "gpu":
            ready = Path("machines") / ("gpu-8x80g.yaml" if gpus >= 8 else "gpu-80g.yaml")
            how = ready if ready.is_file() else None
        made = planning.plan(load(path, how), device=chosen[device], gpu=gpu, gpus=gpus)
        typer.echo(
            json.dumps(planning.as_json(made), indent=1, ensure_ascii=False) if as_json else planning.as_text(made)
        )
