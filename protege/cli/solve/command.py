"""From the options of ``protege solve`` to its exit code: 0 done, 1 bad input, 3 infrastructure, 130 interrupted."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protege.cli.solve.outputs import default_home
from protege.cli.solve.params import SolveParams, choose_model, load_params, project_folder, read_issue
from protege.cli.solve.run import Solution, solve
from protege.cli.solve.serve import ServedModel
from protege.cli.solve.stop import one_interrupt
from protege.cli.solve.tree import list_tree
from protege.cli.solve.words import closing
from protege.errors import BadInput, ProtegeError
from protege.expert.base import Expert


@dataclass(frozen=True)
class Options:
    """What the command line says; see ``protege solve --help``."""

    repo: Path
    issue: str
    model: Path | None = None
    expert: str = "none"
    out: Path | None = None
    force: bool = False
    backend: Literal["auto", "docker", "bubblewrap"] | None = None
    image: str | None = None
    site: Path | None = None
    test_command: str | None = None
    steps: int | None = None
    seed: int = 0
    temperature: float = 0.0
    max_mb: float = 200.0
    url: str | None = None
    as_json: bool = False


def main(options: Options) -> int:
    """Run it: progress and errors on stderr, the outcome on stdout. Returns the exit code."""
    try:
        with one_interrupt(say):
            solution = run(options)
    except KeyboardInterrupt as stopped:
        _say_end("interrupted", stopped)
        return 130
    except ProtegeError as error:
        _say_end(" ".join(str(error).split()), error)
        return 1 if error.boundary == "input" and not isinstance(error, OSError) else 3
    print(solution.model_dump_json(indent=1) if options.as_json else closing(solution))
    return 0


def run(options: Options) -> Solution:
    """Everything that can be checked is checked before a sandbox or a server starts. Raises what ``solve`` does."""
    issue = read_issue(options.issue, sys.stdin.buffer.read() if options.issue == "-" else None)
    project = project_folder()
    params = _params(options, load_params(project))
    home = default_home(options.repo.expanduser().resolve())
    list_tree(options.repo, params.max_mb, params.max_files)  # before the seconds that the tokenizer takes
    expert = _expert(options.expert, params, home)
    model = ServedModel(choose_model(options.model, project), params, home, url=options.url, note=say)
    return solve(
        options.repo,
        issue,
        model,
        params=params,
        expert=expert,
        out=options.out,
        force=options.force,
        home=home,
        image=options.image,
        site=options.site or _project_site(home),
        test_command=options.test_command,
        seed=options.seed,
        say=say,
    )


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _say_end(line: str, error: BaseException) -> None:
    say("\n".join([f"protege: {line}", *getattr(error, "__notes__", [])]))


def _params(options: Options, params: SolveParams) -> SolveParams:
    agent = params.agent.model_copy(update={"step_limit": options.steps} if options.steps else {})
    sandbox = params.sandbox.model_copy(update={"backend": options.backend} if options.backend else {})
    changed = {"agent": agent, "sandbox": sandbox, "temperature": options.temperature, "max_mb": options.max_mb}
    return params.model_copy(update=changed)


def _expert(name: str, params: SolveParams, home: Path) -> Expert | None:
    if name == "none":
        return None
    if name == "oracle":
        raise BadInput("--expert oracle answers from a gold patch, and your own issue has none; use api or none")
    if name != "api":
        raise BadInput(f"--expert {name} is not known; it should be none or api")
    from protege.expert.api import ApiExpert
    from protege.expert.ledger import Ledger

    return ApiExpert(params.expert, params.api, Ledger(params.api, home / "expert"))


def _project_site(home: Path) -> Path | None:
    """pytest and its like, where the desk suite has fetched them already."""
    folder = home / "desk-site"
    return folder if folder.is_dir() else None
