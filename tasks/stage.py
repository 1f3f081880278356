"""What every stage does around its flow: params, one run at a time, the Prefect server, errors for people."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect import Flow, State
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Completed

from protege.config import Params, load
from protege.errors import BadInput, ProtegeError
from protege.files import storage_errors
from protege.identity import remember
from tasks.child import PATIENCE_S, Parent
from tasks.progress import outlive_reader, say
from tasks.runner import task_runner
from tasks.runs import create_run, heed_cancel, reap
from tasks.server import ensure, ui
from tasks.settings import HOME

INPUT_FAILED, INFRASTRUCTURE_FAILED = 1, 3


class StillRuns(BadInput):
    """Another process runs this stage, or a night. ``holder`` is what it wrote into the lock: its pid, and what it does."""

    def __init__(self, stage: str, holder: str) -> None:
        self.holder = holder
        super().__init__(f"stage {stage} still runs as process {holder}; wait for it, or stop it with `make down`")


@contextmanager
def only_run(stage: str, patience_s: float = 0.0) -> Iterator[Callable[[str], None]]:
    """Hold the stage's lock; what is yielded writes down what this process does. Raises StillRuns, naming the holder's
    process, if it is not free within ``patience_s``.

    DVC frees its own locks when it is killed, though the stage that it started still has to end.
    """
    path = HOME / "run" / f"stage-{stage}.lock"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+", encoding="utf-8")
    with opened as handle:
        deadline = time.monotonic() + patience_s
        while not _locked(handle):
            if time.monotonic() >= deadline:
                handle.seek(0)
                raise StillRuns(stage, handle.read().strip())
            time.sleep(0.1)

        def write(doing: str = "") -> None:
            handle.truncate(0)
            handle.write(f"{os.getpid()} {doing}".strip())
            handle.flush()

        write()
        yield write
        handle.truncate(0)


def _locked(handle: Any) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def ended(stage: str, line: str) -> State[Any]:
    """Say how ``stage`` came out. What its flow returns: the message of the run's final state is ``line``."""
    say(stage, line)
    return Completed(message=line)


def run_stage(
    stage: str,
    flow: Flow[Any, Any],
    workers: Callable[[Params], int] = lambda _: 1,
    given: Callable[[Params], dict[str, Any]] = lambda params: {"params": params},
    called: Callable[[dict[str, Any]], str] = lambda given: "",
) -> None:
    """Run ``flow(**given(params))`` of ``stage`` against the project's Prefect server.

    ``called`` of what is given stands in the run's name after the stage's.

    Its error goes to the night that runs it. On our errors it exits with a message: 1 for bad input, 3 for
    infrastructure that failed.
    """
    began = time.monotonic()
    outlive_reader()
    parent = Parent.of_this_process()
    if parent:
        parent.end_with()
    try:
        params = load()
        parameters = given(params)
        remember(f"flows.{stage}")
        # an earlier run, whose night or DVC was killed, may be about to end
        with only_run(stage, PATIENCE_S + 5 if parent else 0.0):
            url = ensure()
            say(stage, f"starts (profile {params.profile}, machine {params.machine}; Prefect UI {ui(url)})")
            with temporary_settings({PREFECT_API_URL: url}):
                if lost := reap():
                    say(stage, f"set {len(lost)} earlier run(s) whose process is gone to Crashed")
                sized = flow.with_options(task_runner=task_runner(params.runner, workers(params)))
                run = create_run(flow, parameters, called(parameters))
                with heed_cancel(run, PATIENCE_S):
                    run_flow(sized, flow_run=run, parameters=parameters)
    except Exception as error:
        if parent:
            parent.send(error)
        if not isinstance(error, ProtegeError):
            raise
        print(f"{stage}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(INPUT_FAILED if error.boundary == "input" else INFRASTRUCTURE_FAILED)
    say(stage, f"done in {time.monotonic() - began:.0f} s")
