"""From the options of ``protege solve`` to its outcome."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

from protege.cli.solve.params import SolveParams, choose_model, default_home, load_params, project_folder, read_issue
from protege.cli.solve.progress import summary
from protege.cli.solve.run import Solution, solve
from protege.cli.solve.serve import ServedModel
from protege.cli.solve.tree import list_tree
from protege.errors import BadInput
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


def main(options: Options) -> None:
    """Run it: progress on stderr, the outcome on stdout. Raises what ``solve`` does, for the command line to report."""
    with one_interrupt(show):
        solution = run(options)
    print(solution.model_dump_json(indent=1) if options.as_json else summary(solution))


def run(options: Options) -> Solution:
    """Everything that can be checked is checked before a sandbox or a server starts. Raises what ``solve`` does."""
    issue = read_issue(options.issue, sys.stdin.buffer.read() if options.issue == "-" else None)
    project = project_folder()
    params = _params(options, load_params(project))
    home = default_home(options.repo.expanduser().resolve())
    list_tree(options.repo, params.max_mb, params.max_files)  # before the seconds that the tokenizer takes
    expert = _expert(options.expert, params, home)
    model = ServedModel(choose_model(options.model, project), params, home, url=options.url, note=show)
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
        report=show,
    )


def show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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


@contextmanager
def one_interrupt(note: Callable[[str], None]) -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP raise KeyboardInterrupt once; later ones only say that the clearing up goes on.

    For a command: after an interrupt the handlers stay until the process ends, which it is to do at once.
    Does nothing outside the main thread, which alone gets signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            note("stopping already: the sandbox and the model server are being removed")
            return
        stopping = True
        raise KeyboardInterrupt

    # what is ignored, as under nohup, stays ignored
    heard = [n for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        if not stopping:  # after an interrupt the process only has to say so and end; a late Ctrl-C must not change how
            for number, handler in before.items():
                signal.signal(number, handler)
