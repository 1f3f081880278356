"""What every stage does around its flow: params, one run at a time, the Prefect server, errors for people."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.flow_engine import run_flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from protege.config import Params, load
from protege.errors import BadInput, ProtegeError
from protege.files import read_json, storage_errors, write_json
from tasks.lineage import end, end_with, gone, starter, this_process
from tasks.progress import outlive_reader, say
from tasks.runner import task_runner
from tasks.runs import PARENT, create_run, reap
from tasks.server import ensure, ui
from tasks.settings import HOME

INPUT_FAILED, INFRASTRUCTURE_FAILED = 1, 3
GHOST_PATIENCE_S = 20.0


@contextmanager
def only_run(stage: str) -> Iterator[None]:
    """Hold the stage's lock: DVC frees its own when it is killed, though the stage it started may live on.

    Such a ghost (its DVC is gone) is ended first; what it finished is in the Store. Raises BadInput, naming the
    process, for any other holder.
    """
    path = HOME / "run" / f"stage-{stage}.lock"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        opened = path.open("a+")
    with opened as handle:
        if not _locked(handle) and not (_ended_ghost(stage, path) and _locked(handle, patience_s=10)):
            handle.seek(0)
            raise BadInput(
                f"stage {stage} still runs as process {handle.read().strip()}; wait for it, or stop it with `make down`"
            )
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        write_json(_lineage(path), {**this_process(), "dvc": _dvc()})
        yield
        handle.truncate(0)


def _locked(handle: Any, patience_s: float = 0.0) -> bool:
    deadline = time.monotonic() + patience_s  # the threads of a killed process may end after it
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.1)


def _lineage(lock: Path) -> Path:
    return lock.with_suffix(".json")


def _dvc() -> dict[str, Any] | None:
    """The process that runs this one as a stage; None for a run by hand."""
    return starter() if "DVC_STAGE" in os.environ or PARENT in os.environ else None


def _ended_ghost(stage: str, lock: Path) -> bool:
    """End the holder of ``lock`` if the DVC that started it is gone."""
    try:
        holder = read_json(_lineage(lock))
        ghost = (
            holder["dvc"] is not None
            and gone(holder["dvc"])
            and str(holder["pid"]) == lock.read_text(encoding="utf-8").strip()
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False
    if ghost:
        say(stage, f"ends process {holder['pid']}, an earlier run whose DVC is gone")
        end(holder, GHOST_PATIENCE_S)
    return ghost


def run_stage(stage: str, flow: Flow[Any, Any], workers: Callable[[Params], int] = lambda _: 1) -> None:
    """Run ``flow(params)`` of ``stage`` against the project's Prefect server.

    On our errors it exits with a message: 1 for bad input, 3 for infrastructure that failed.
    """
    began = time.monotonic()
    outlive_reader()
    if dvc := _dvc():
        end_with(dvc)
    try:
        params = load()
        with only_run(stage):
            url = ensure()
            say(stage, f"starts (profile {params.profile}, machine {params.machine}; Prefect UI {ui(url)})")
            with temporary_settings({PREFECT_API_URL: url}):
                if lost := reap():
                    say(stage, f"set {len(lost)} earlier run(s) whose process is gone to Crashed")
                given = {"params": params}
                sized = flow.with_options(task_runner=task_runner(params.runner, workers(params)))
                run_flow(sized, flow_run=create_run(flow, given), parameters=given)
    except ProtegeError as error:
        print(f"{stage}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        sys.exit(INPUT_FAILED if error.boundary == "input" else INFRASTRUCTURE_FAILED)
    say(stage, f"done in {time.monotonic() - began:.0f} s")
