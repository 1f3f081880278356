"""Candidates of several packages at once: making them is SWE-smith's Python on one core, minutes for the desk suite."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from protege.config import InstancesParams
from protege.desk.modifiers import Candidate, candidates
from protege.desk.sources import Package

WORTH_A_PROCESS = 100
"""Candidates wanted in all below which starting processes (some seconds each) costs more than it saves."""


@dataclass(frozen=True)
class Wanted:
    """The arguments of ``modifiers.candidates``."""

    package: Package
    tree: Path
    params: InstancesParams
    seed: int | None = None
    limit: int | None = None

    def make(self) -> list[Candidate]:
        return candidates(self.package, self.tree, self.params, self.seed, self.limit)


def make_candidates(
    wanted: Mapping[str, Wanted], workers: int, made: Callable[[str, str], None] = lambda name, what: None
) -> dict[str, list[Candidate]]:
    """What ``make`` gives for each of ``wanted``, in its order, ``workers`` of them at a time.

    ``made(name, what)`` is called in this thread as each is finished. Raises what making one raised.
    """
    found: dict[str, list[Candidate]] = {}
    few = sum(WORTH_A_PROCESS if one.limit is None else one.limit for one in wanted.values()) < WORTH_A_PROCESS
    if workers == 1 or len(wanted) < 2 or few:
        for name, one in wanted.items():
            found[name] = one.make()
            made(name, f"{len(found[name])} candidates")
        return found
    # Not forked: the caller has threads (Prefect's), whose locks a fork would copy as they are held.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(wanted)), context, initializer=_end_with_parent) as pool:
        # What takes longest first: the last one runs alone.
        by_limit = sorted(wanted, key=lambda name: -(wanted[name].limit or 1 << 30))
        futures = {pool.submit(wanted[name].make): name for name in by_limit}
        try:
            for future in as_completed(futures):
                name = futures[future]
                found[name] = future.result()
                made(name, f"{len(found[name])} candidates")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {name: found[name] for name in wanted}


def _end_with_parent() -> None:
    """A worker waits on a pipe that it holds open itself, so it would outlive a parent that was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="ends with its parent", daemon=True).start()
