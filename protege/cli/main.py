"""``protege …`` for people: the subcommands, one error handler, the exit codes (docs/commands.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from protege.cli.commands import doctor, inspect, plan, provenance, solve
from protege.errors import BadInput, BadParams, ProtegeError
from protege.files import write_atomic

EXIT_CODES = (
    "Exit codes: 0 done; 1 bad input, or a finding of `doctor`; 2 wrong usage; "
    "3 infrastructure failed (engine, expert, model server, disk); 130 interrupted."
)
PROFILES = Path("profiles")
MACHINES = Path("machines")
TABLE = Path("data/report/report.md")


def exit_code(error: ProtegeError) -> int:
    """1 where the user's input is at fault, 3 for infrastructure, a disk that cannot be written included."""
    return 1 if error.boundary == "input" and not isinstance(error, OSError) else 3


def _report(line: str, error: BaseException) -> None:
    """On stderr, with what was noted on the error: where the work until then is kept."""
    typer.echo("\n".join([f"protege: {line}", *getattr(error, "__notes__", [])]), err=True)


class Commands(TyperGroup):
    """Turns our errors into one line on stderr and an exit code, for every subcommand."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ProtegeError as error:
            _report(" ".join(str(error).split()), error)
            raise typer.Exit(exit_code(error)) from error
        except KeyboardInterrupt as error:
            _report("interrupted", error)
            raise typer.Exit(130) from None


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="SWE-Protégé: a small model that learns to ask.",
    epilog=EXIT_CODES,
)


def names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def use(folder: Path, name: str, target: str) -> Path:
    """Make <folder>/<name>.yaml the file ``target``. Raises BadParams for an unknown name."""
    source = folder / f"{name}.yaml"
    if not source.is_file():
        there = ", ".join(names(folder)) or "none here, run in the project folder"
        raise BadParams(f"no {folder.name.removesuffix('s')} {name!r}; there are: {there}")
    return write_atomic(target, source.read_bytes())


def results_table() -> str:
    """The tables of the report, as text. Raises BadInput before the first report."""
    if not TABLE.is_file():
        raise BadInput(f"no {TABLE} yet; run `make demo` or `dvc repro`")
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith("|")), None)
    if first is None:
        return TABLE.read_text(encoding="utf-8").rstrip()
    rows = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip().strip("|").split("|")])
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    aligned = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
        if not all(set(cell) <= set("-: ") for cell in row)
    ]
    return "\n".join([aligned[0], "-" * len(aligned[0]), *aligned[1:]])


@app.command()
def profile(
    name: Annotated[
        str, typer.Argument(help="one of profiles/: smoke, desk, paper, tiny", autocompletion=lambda: names(PROFILES))
    ],
) -> None:
    """Copy profiles/NAME.yaml to params.yaml: what is computed."""
    use(PROFILES, name, "params.yaml")
    typer.echo(f"params.yaml is now profile {name}; `make demo` runs it")


@app.command()
def machine(
    name: Annotated[
        str,
        typer.Argument(
            help="one of machines/: cpu, gpu-24g, gpu-80g, gpu-8x80g", autocompletion=lambda: names(MACHINES)
        ),
    ],
) -> None:
    """Copy machines/NAME.yaml to machine.yaml: how this machine computes it. It changes no result."""
    use(MACHINES, name, "machine.yaml")
    typer.echo(f"machine.yaml is now {name}; without it the one that fits is found")


@app.command()
def results() -> None:
    """Print the table of results of the last report."""
    typer.echo(results_table())


@app.command()
def score(
    trajectories: Annotated[list[Path], typer.Argument(help="trajectory files, or folders of them")],
    params: Annotated[Path, typer.Option(help="where section 'reward' is read")] = Path("params.yaml"),
    changes: Annotated[list[str] | None, typer.Option("--set", help="such as reward.follow_low=-1")] = None,
    stage: Annotated[int | None, typer.Option(min=1, max=2, help="default: the logged stage, else 2")] = None,
    instances: Annotated[list[Path] | None, typer.Option(help="rows with gold patches")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="everything, for a program")] = False,
) -> None:
    """Re-score TRAJECTORIES under new reward parameters, without running anything."""
    from protege.report import score as scoring

    sources = instances if instances is not None else sorted(Path("data/instances").glob("*.jsonl"))
    reward = scoring.reward_params(params, changes or ())
    files = scoring.trajectory_files(trajectories)
    then: Literal[1, 2] | None = None if stage is None else 1 if stage == 1 else 2
    scored = scoring.rescore(files, reward, then, scoring.gold_patches(sources))
    typer.echo(json.dumps(scoring.as_json(scored, reward), indent=1) if as_json else scoring.as_table(scored))


@app.command()
def rows(
    dataset: Annotated[str, typer.Argument(help="a dataset on the hub, such as SWE-bench/SWE-bench_Verified")],
    file: Annotated[Path, typer.Argument(help="the .jsonl file to write, for instances.source")],
    split: Annotated[str, typer.Option(help="of the dataset")] = "test",
) -> None:
    """Make a file of rows of a dataset on the Hugging Face hub, which DVC can follow by its content."""
    from protege.datasets.load import fetch_rows

    typer.echo(f"{fetch_rows(dataset, file, split)} rows in {file}; set instances.source: {file}")


for module in (doctor, solve, inspect, plan, provenance):
    module.register(app)


if __name__ == "__main__":
    app()
