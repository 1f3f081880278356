"""The task that makes the edit exercises of the stage trajectories."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.states import Completed

from protege.config import Params
from protege.core.instance import Instance
from protege.core.patches import changes
from protege.desk.desk import prepare
from protege.desk.rehearse import Exercise, Function, bugs, rehearse
from protege.desk.side_by_side import Wanted, make_candidates
from protege.desk.sources import fetch_sdists, load_packages
from protege.errors import BadParams
from protege.files import Store, digest
from protege.identity import code_of
from tasks.progress import Progress, say
from tasks.settings import HOME

SPARE = 1.4
"""Bugs made for one exercise wanted: some cannot be told in words, small packages have fewer than their share."""


def functions_of(rows: Sequence[Instance]) -> set[Function]:
    """The functions that ``rows`` are about."""
    found: set[Function] = set()
    for row in rows:
        extra = row.model_extra or {}
        found |= {(str(extra.get("package")), c.path, str(extra.get("entity"))) for c in changes(row.patch)}
    return found


@task(name="exercises", retries=2, retry_delay_seconds=5, persist_result=False, cache_policy=NO_CACHE)
def make_exercises(params: Params, away: set[Function]) -> Any:
    """The value is a list of Exercise, none about a function of ``away`` (those of the rl and eval splits).

    Raises:
        BadParams: there is no package, or one that is not pinned, or one of the eval split's.
    """
    p, splits = params.exercises, params.instances.splits
    names = sorted({*(splits["sft"].packages if "sft" in splits else ()), *p.packages})
    known, held = load_packages(), set(splits["eval"].packages if "eval" in splits else ())
    if wrong := [name for name in p.packages if name not in known or name in held]:
        usable = sorted(set(known) - held)
        raise BadParams(f"exercises.packages: {', '.join(wrong)}; it should name packages among {', '.join(usable)}")
    if not names:
        raise BadParams(
            "exercises.count: instances.splits.sft names no packages; name some in exercises.packages, or set it to 0"
        )
    key = digest("exercises", p.deciding(), names, [known[n].model_dump(mode="json") for n in names],
                 params.instances.deciding(), params.agent.observation_chars, params.oracle.max_overlap_chars, sorted(away), code_of("protege.desk.rehearse", "protege.desk.side_by_side"))  # fmt: skip
    store = Store(HOME / "store")
    if (kept := store.get("exercises", key)) is not None:
        return Completed(name="Cached", data=[_read(one) for one in kept["exercises"]])
    sdists = fetch_sdists([known[name] for name in names], HOME)
    share = ceil(SPARE * p.count / len(names))
    wanted = {
        name: Wanted(known[name], prepare(known[name], HOME, sdists[name]).tree, params.instances, p.seed, share)
        for name in names
    }
    found = make_candidates(wanted, params.instances.workers, Progress("exercises", len(names)).step)
    made: list[Exercise] = []
    for number, candidate in enumerate(bugs(found, away, sum(map(len, found.values())))):
        if len(made) == p.count:
            break
        limits = params.oracle.max_overlap_chars, params.agent.observation_chars
        if (exercise := rehearse(candidate, *limits, seed=p.seed + number)) is not None:
            made.append(exercise)
            if len(made) % 200 == 0:
                say("exercises", f"{len(made)}/{p.count}")
    store.put("exercises", key, {"exercises": [vars(one) for one in made]})
    return Completed(data=made)


def _read(kept: dict[str, Any]) -> Exercise:
    return Exercise(**{**kept, "said": tuple((text, seen) for text, seen in kept["said"])})
