"""Stage instances: the desk suite (bugs proved by their tests), or the rows of a foreign source, in three splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from prefect import State, flow

from protege.config import InstancesParams, Params, SplitName
from protege.core.instance import Instance
from protege.datasets.load import load_instances
from protege.datasets.partition import partition
from protege.desk.desk import allowance, next_batch, prepare, select, write_suite
from protege.desk.modifiers import Candidate
from protege.desk.side_by_side import Wanted, make_candidates
from protege.desk.sources import Package, fetch_sdists, load_packages
from protege.desk.verify import Dropped, Verified
from protege.errors import BadInput, SandboxError
from protege.files import write_atomic, write_json
from tasks.bench import open_sandboxes
from tasks.candidates import PackageBench, baselines, prove
from tasks.outs import fresh_folder
from tasks.preflight import quarantine
from tasks.progress import Progress, say
from tasks.settings import HOME
from tasks.stage import ended, run_stage

OUT = Path("data/instances")


@flow(name="instances", validate_parameters=False)
def instances(params: Params) -> State[Any]:
    return ended("instances", desk(params) if params.instances.desk else foreign(params))


def desk(params: Params) -> str:
    p = params.instances
    wanted = allowance(p)
    packages = _named(load_packages(), list(wanted))
    say("instances", f"fetching {', '.join(package.name for package in packages)}")
    sdists = fetch_sdists(packages, HOME)
    prepared = {package.name: prepare(package, HOME, sdists[package.name]) for package in packages}
    provider = open_sandboxes(params.sandbox, HOME / "pristine")
    say("instances", f"making what the sandboxes start from (backend {provider.backend})")
    provider.check([one.pristine for one in prepared.values()])
    plain = [PackageBench(one, provider, p, params.sandbox) for one in prepared.values()]
    benches = baselines(plain, Progress("instances: baseline", len(plain)))
    results: list[Verified | Dropped] = []
    failed: list[str] = []
    chosen: dict[SplitName, list[Verified]] = {}
    for night in p.of_each_seed():
        to_make = {
            name: Wanted(prepared[name].package, prepared[name].tree, night, limit=n)
            for name, n in allowance(night).items()
        }
        found = make_candidates(to_make, p.workers, Progress(f"instances: seed {night.seed}", len(to_make)).step)
        proved, lost = search(night, found, benches, chosen)
        if len(lost) > len(proved):
            raise SandboxError(f"{len(lost)} of {len(lost) + len(proved)} candidates failed for infrastructure reasons")
        chosen = select(proved, night, chosen)
        known = {r.candidate_id for r in results}
        results += [r for r in proved if r.candidate_id not in known]
        failed += lost
    with fresh_folder(OUT) as folder:
        rows = write_suite(chosen, results, prepared, folder)
    n_proved = sum(isinstance(r, Verified) for r in results)
    reasons = Counter(r.reason for r in results if isinstance(r, Dropped))
    metrics = {
        "candidates": len(results) + len(failed),
        "proved": n_proved,
        "kept": {split: len(items) for split, items in rows.items()},
        "dropped": dict(sorted(reasons.items())),
        "infrastructure": len(failed),
    }
    # Now, so that a problem with an image shows here and not in a later stage.
    sandboxes = open_sandboxes(params.sandbox, OUT / "testbeds")
    sandboxes.check([row for items in rows.values() for row in items])
    metrics.update(quarantine(OUT, rows, sandboxes, p.preflight, p.workers))
    write_json("data/metrics/instances.json", metrics)
    return f"{metrics['kept']} of {n_proved} proved among {metrics['candidates']} candidates"


def search(
    params: InstancesParams,
    found: dict[str, list[Candidate]],
    benches: dict[str, PackageBench],
    before: dict[SplitName, list[Verified]],
) -> tuple[list[Verified | Dropped], list[str]]:
    """Prove candidates in rounds until the splits can be filled or nothing is left to try.

    A candidate that infrastructure kept out is named in the second value and not tried again in this run.
    """
    results: list[Verified | Dropped] = []
    failed: list[str] = []
    while True:
        left = {name: [c for c in items if c.candidate_id not in failed] for name, items in found.items()}
        batch = next_batch(left, results, params, before)
        if not batch:
            return results, failed
        proved, lost = prove([(c, benches[c.package]) for c in batch], Progress("instances", len(batch)))
        results += proved
        failed += lost


def foreign(params: Params) -> str:
    p = params.instances
    rows: dict[str, Instance] = {row.instance_id: row for row in load_instances(p.source)}
    # Which image is missing, and how to get it, is said before any work starts, and before anything else that is wrong.
    sandboxes = open_sandboxes(params.sandbox, None)
    try:
        made = partition(list(rows.values()), p, p.source)
    except BadInput:
        sandboxes.check(list(rows.values()))
        raise
    sandboxes.check([row for items in made.values() for row in items])
    with fresh_folder(OUT) as folder:
        for split, items in made.items():
            write_atomic(folder / f"{split}.jsonl", "".join(json.dumps(row.to_row()) + "\n" for row in items))
        kept = {split: len(items) for split, items in made.items()}
        suite = {"source": p.source, "candidates": len(rows), "kept": sum(kept.values()), "splits": kept, "dropped": {}}
        write_json(folder / "suite.json", suite)
    metrics = {"candidates": len(rows), "kept": kept, **quarantine(OUT, made, sandboxes, p.preflight, p.workers)}
    write_json("data/metrics/instances.json", metrics)
    return f"{kept} of {len(rows)} rows of {p.source}"


def _named(known: dict[str, Package], names: list[str]) -> list[Package]:
    """Raises BadInput for a package that is not pinned."""
    if missing := sorted(set(names) - set(known)):
        raise BadInput(
            f"instances.splits: no package {', '.join(missing)} in data/desk/packages.yaml; there are {', '.join(sorted(known))}"
        )
    return [known[name] for name in names]


if __name__ == "__main__":
    run_stage("instances", instances, lambda params: params.instances.workers)
